"""Fields over bytes, and the structures made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.hardware.nvme import identify, logs
from vfio_user.hardware.nvme.identify import (
    IdentifyController,
    IdentifyNamespace,
    NamespaceIdentifierType,
    controller_list,
    namespace_descriptors,
    namespace_list,
    unpack_controller_list,
    unpack_namespace_list,
)
from vfio_user.hardware.nvme.structure import Number, Numbers, Raw, Structure, Text


class Sample(Structure):
    SIZE = 32
    number = Number(1, 3)
    text = Text(4, 8)
    raw = Raw(12, 4)
    array = Numbers(16, 2, 3)


def test_fields_are_bytes_at_their_offsets() -> None:
    sample = Sample(number=0x010203, text="ab", raw=b"xy", array=(1, 0x203))
    assert sample.pack() == b"\0\3\2\1ab      xy\0\0\1\0\3\2\0\0".ljust(32, b"\0")
    again = Sample.unpack(sample.pack() + b"more")
    assert again == sample
    assert (again.number, again.text, again.raw, again.array) == (0x010203, "ab", b"xy\0\0", (1, 0x203, 0))
    assert Sample(number=1) != sample
    assert Sample.fields() == ["number", "text", "raw", "array"]
    assert repr(Sample(number=3, raw=b"q", array=(0, 5))) == "Sample(number=3, raw=b'q', array=(0, 5))"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="16777216 is no unsigned integer of 3 bytes"):
        Sample(number=1 << 24)
    with pytest.raises(ValueError, match="'123456789' does not fit 8 bytes"):
        Sample(text="123456789")
    with pytest.raises(ValueError, match="31 bytes are no Sample: it has 32"):
        Sample.unpack(bytes(31))
    with pytest.raises(AttributeError, match=r"Sample\.pack is no field"):
        Sample(pack=1)


def test_wrong_declarations_are_refused() -> None:
    def beyond() -> None:
        type("Beyond", (Structure,), {"SIZE": 4, "number": Number(2, 4)})

    def twice() -> None:
        type("Twice", (Structure,), {"SIZE": 8, "one": Number(0, 4), "two": Number(3, 2)})

    for make, text in ((beyond, "ends at byte 6"), (twice, "overlaps one at byte 0")):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            make()
        assert text in str(caught.value.__cause__ or caught.value)


@pytest.mark.parametrize(
    ("structure", "field", "offset"),
    [
        (IdentifyController, "mdts", 77),
        (IdentifyController, "oacs", 256),
        (IdentifyController, "tnvmcap", 280),
        (IdentifyController, "sqes", 512),
        (IdentifyController, "nn", 516),
        (IdentifyController, "sgls", 536),
        (IdentifyController, "subnqn", 768),
        (IdentifyNamespace, "flbas", 26),
        (IdentifyNamespace, "dlfeat", 33),
        (IdentifyNamespace, "nvmcap", 48),
        (IdentifyNamespace, "nguid", 104),
        (IdentifyNamespace, "lbaf", 128),
        (logs.SmartLog, "data_units_read", 32),
        (logs.SmartLog, "error_log_entries", 176),
        (logs.ErrorLogEntry, "nsid", 24),
    ],
)
def test_offsets_of_the_specification(structure: type[Structure], field: str, offset: int) -> None:
    assert getattr(structure, field).offset == offset


def test_every_page_has_its_size() -> None:
    for kind in vars(identify).values():
        if isinstance(kind, type) and issubclass(kind, Structure) and kind.__name__.startswith("Identify"):
            assert len(kind().pack()) == 4096
    assert logs.SelfTestLog.SIZE == 4 + 20 * logs.SelfTestResult.SIZE
    assert len(logs.CommandEffectsLog().pack()) == 4096


@given(st.sets(st.integers(1, 0xFFFF_FFFE), max_size=1100))
def test_a_namespace_list_holds_the_first_1024_in_order(nsids: set[int]) -> None:
    assert unpack_namespace_list(namespace_list(nsids)) == sorted(nsids)[:1024]


@given(st.sets(st.integers(0, 0xFFFF), max_size=50))
def test_a_controller_list(cntlids: set[int]) -> None:
    assert unpack_controller_list(controller_list(cntlids)) == sorted(cntlids)


@pytest.mark.parametrize("data", [b"\xff\x0f" + bytes(4094), b"\2\0\1\0\1\0", b"\2\0\2\0\1\0"])
def test_what_is_no_controller_list(data: bytes) -> None:
    with pytest.raises(ValueError, match="controller list"):
        unpack_controller_list(data)


def test_namespace_descriptors() -> None:
    page = namespace_descriptors(
        [(NamespaceIdentifierType.EUI64, b"12345678"), (NamespaceIdentifierType.COMMAND_SET, b"\0")]
    )
    assert page[:18] == b"\1\x08\0\x0012345678\4\1\0\0\0\0"
    assert len(page) == 4096

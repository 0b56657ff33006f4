from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.hardware.scsi.cdb import LAYOUTS, Command, cdb_length
from vfio_user.hardware.scsi.codes import OperationCode
from vfio_user.hardware.scsi.sense import FieldPointer


@pytest.mark.parametrize(
    ("cdb", "fields"),
    [
        ("08 1f0203 04 00", {"lba": 0x1F0203, "length": 4}),
        (
            "28 f8 01020304 1f 0506 04",
            {"protect": 7, "dpo": 1, "fua": 1, "lba": 0x01020304, "length": 0x506, "naca": 1},
        ),
        ("a8 08 01020304 05060708 3f 00", {"fua": 1, "lba": 0x01020304, "length": 0x05060708, "group": 0x1F}),
        ("88 10 0102030405060708 090a0b0c 00 00", {"dpo": 1, "lba": 0x0102030405060708, "length": 0x090A0B0C}),
        ("2f 06 00000001 00 0002 00", {"byte_check": 3, "lba": 1, "length": 2, "protect": 0}),
        ("93 09 0000000000000001 00000002 00 00", {"unmap": 1, "no_data_out_buffer": 1, "anchor": 0}),
        ("1a 08 ff 01 20 00", {"disable_block_descriptors": 1, "page_control": 3, "page": 0x3F, "subpage": 1}),
        ("12 01 80 0102 00", {"vital_product_data": 1, "page": 0x80, "allocation_length": 0x102}),
        ("9e 10 0000000000000000 00000020 00 00", {"service_action": 0x10, "allocation_length": 32}),
        ("a3 0c 83 9e 0010 00000200 00 00", {"timeouts": 1, "reporting_options": 3, "requested_action": 16}),
        ("5f 06 01 0000 00000018 00", {"service_action": 6, "scope": 0, "type": 1, "parameter_list_length": 24}),
        ("1b 01 00 00 02 00", {"immediate": 1, "load_eject": 1, "start": 0, "power_condition": 0}),
        (
            "43 02 00 000000 aa 000c 40",
            {"msf": 1, "format": 0, "track": 0xAA, "allocation_length": 12, "old_format": 1},
        ),
        ("4d 00 42 ff 00 0005 0100 00", {"page_control": 1, "page": 2, "subpage": 0xFF, "parameter_pointer": 5}),
    ],
)
def test_fields(cdb: str, fields: dict[str, int]) -> None:
    command = Command(bytes.fromhex(cdb))
    assert {name: getattr(command, name) for name in fields} == fields
    assert command.operation_code == bytes.fromhex(cdb)[0]


@pytest.mark.parametrize(("code", "length"), [(0x00, 6), (0x28, 10), (0x5F, 10), (0x88, 16), (0xA0, 12), (0xC0, 6)])
def test_length_by_group(code: int, length: int) -> None:
    assert cdb_length(code) == length


def test_a_layout_is_as_long_as_its_group_and_ends_with_the_control_byte() -> None:
    for (code, _), layout in LAYOUTS.items():
        assert layout.length == cdb_length(code)
        assert layout.fields["naca"].byte == layout.length - 1


def test_every_operation_code_has_a_layout() -> None:
    assert {code for code, _ in LAYOUTS} == set(OperationCode)


def test_no_two_fields_overlap() -> None:
    for key, layout in LAYOUTS.items():
        assert int.from_bytes(layout.mask(), "big").bit_count() == sum(f.width for f in layout.fields.values()), key


@given(st.sampled_from(sorted(LAYOUTS, key=str)), st.binary(max_size=20))
def test_decoding_never_fails(key: tuple[int, int | None], rest: bytes) -> None:
    cdb = bytes([key[0]]) + (bytes([key[1]]) if key[1] is not None else b"") + rest
    if key[1] is None or len(cdb) > 1:
        command = Command(cdb)
        assert command.layout is LAYOUTS[key]
        for name in command.layout.fields:
            assert getattr(command, name) >= 0


def test_names() -> None:
    command = Command(bytes.fromhex("2800000000000000000000"))
    assert "lba" in command
    assert "page" not in command
    assert command.pointer("protect") == FieldPointer(1, 7)
    with pytest.raises(AttributeError, match="has no field 'page'"):
        _ = command.page
    assert Command.has_service_actions(0x9E)
    assert not Command.has_service_actions(0x28)
    assert Command.key(b"") == (0, None)
    assert Command.key(b"\x9e") == (0x9E, 0)

"""DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.codecs import Case, CodecTests
from tests.support.numbers import u32
from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import IrqIndex, IrqInfoFlags, IrqSetFlags
from vfio_user.protocol.irq import IrqInfo, IrqInfoRequest, SetIrqs

NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD
MASK, UNMASK, TRIGGER = IrqSetFlags.ACTION_MASK, IrqSetFlags.ACTION_UNMASK, IrqSetFlags.ACTION_TRIGGER

TABLE = [
    Case("info request", IrqInfoRequest(IrqIndex.MSIX), "10000000 00000000 02000000 00000000"),
    Case("info request, an index that is none", IrqInfoRequest(0xDEADBEEF), "10000000 00000000 efbeadde 00000000"),
    Case(
        "info reply",
        IrqInfo(IrqIndex.INTX, IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED, 1),
        "10000000 07000000 00000000 01000000",
    ),
    Case("info reply, absent", IrqInfo(IrqIndex.MSI, IrqInfoFlags(0), 0), "10000000 00000000 01000000 00000000"),
    Case(
        "set, MSI-X vector 0 without a descriptor, as QEMU does",
        SetIrqs(EVENTFD | TRIGGER, IrqIndex.MSIX, 0, 1),
        "14000000 24000000 02000000 00000000 01000000",
    ),
    Case(
        "set, disable the index",
        SetIrqs(NONE | TRIGGER, IrqIndex.MSIX, 0, 0),
        "14000000 21000000 02000000 00000000 00000000",
    ),
    Case(
        "set, unmask INTx",
        SetIrqs(NONE | UNMASK, IrqIndex.INTX, 0, 1),
        "14000000 11000000 00000000 00000000 01000000",
    ),
    Case(
        "set, all vectors of MSI-X",
        SetIrqs(EVENTFD | TRIGGER, IrqIndex.MSIX, 0, 2048),
        "14000000 24000000 02000000 00000000 00080000",
    ),
    Case(
        "set, mask by booleans",
        SetIrqs(BOOL | MASK, IrqIndex.MSIX, 4, 3, b"\0\1\xff"),
        "17000000 0a000000 02000000 04000000 03000000 0001ff",
        longer=False,
    ),
    Case(
        "set, booleans of no vector",
        SetIrqs(BOOL | TRIGGER, IrqIndex.MSI, 0, 0, bools=b""),
        "14000000 22000000 01000000 00000000 00000000",
        longer=False,
    ),
]


@pytest.mark.parametrize("case", TABLE, ids=str)
class TestTable(CodecTests):
    pass


@pytest.mark.parametrize("argsz", [0, 15])
def test_info_argsz(argsz: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"DEVICE_GET_IRQ_INFO: argsz {argsz} is smaller"):
        IrqInfoRequest.decode(argsz.to_bytes(4, "little") + bytes(12))


@pytest.mark.parametrize("argsz", [0, 19])
def test_set_argsz(argsz: int) -> None:
    payload = argsz.to_bytes(4, "little") + SetIrqs(NONE | TRIGGER, 0, 0, 0).encode()[4:]
    with pytest.raises(RemoteProtocolError, match=rf"DEVICE_SET_IRQS: argsz {argsz} is smaller"):
        SetIrqs.decode(payload)


def test_argsz_beyond_the_fixed_part_is_ignored() -> None:
    payload = (0xFFFFFFFF).to_bytes(4, "little") + SetIrqs(NONE | TRIGGER, 0, 0, 0).encode()[4:]
    assert SetIrqs.decode(payload) == SetIrqs(NONE | TRIGGER, 0, 0, 0)


@pytest.mark.parametrize("flags", range(64))
def test_set_flags_are_one_action_and_one_kind_of_data(flags: int) -> None:
    payload = SetIrqs(IrqSetFlags(flags), 0, 0, 0).encode()
    one_data = (flags & 0x07).bit_count() == 1
    one_action = (flags & 0x38).bit_count() == 1
    if one_data and one_action:
        assert SetIrqs.decode(payload).flags == flags
    else:
        what = "kind of data" if one_action else "action"
        with pytest.raises(RemoteProtocolError, match=rf"flags {flags:#x} must have exactly one {what}"):
            SetIrqs.decode(payload)


@pytest.mark.parametrize("bit", range(6, 32))
def test_set_flags_without_a_meaning(bit: int) -> None:
    flags = 1 << bit | NONE | TRIGGER
    with pytest.raises(RemoteProtocolError, match=rf"flags {flags:#x} has bits that mean nothing"):
        SetIrqs.decode(SetIrqs(flags, 0, 0, 0).encode())


@pytest.mark.parametrize(("count", "length"), [(0, 1), (3, 2), (3, 4), (0xFFFFFFFF, 3)])
def test_as_many_booleans_as_vectors(count: int, length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"{length} bytes of booleans came for {count} vectors"):
        SetIrqs.decode(SetIrqs(BOOL | TRIGGER, 0, 0, count, bytes(length)).encode())


@given(st.builds(IrqInfo, u32, u32.map(IrqInfoFlags), u32))
def test_info_round_trip(message: IrqInfo) -> None:
    assert IrqInfo.decode(message.encode()) == message


@given(st.sampled_from([NONE, BOOL, EVENTFD]), st.sampled_from([MASK, UNMASK, TRIGGER]), u32, u32, u32, st.binary())
def test_set_round_trip(
    data: IrqSetFlags, action: IrqSetFlags, index: int, start: int, count: int, bools: bytes
) -> None:
    if data is BOOL:
        message = SetIrqs(data | action, index, start, len(bools), bools)
    else:
        message = SetIrqs(data | action, index, start, count)
    assert SetIrqs.decode(message.encode()) == message


@pytest.mark.parametrize("kind", [IrqInfoRequest, IrqInfo, SetIrqs])
@given(data=st.binary(max_size=40))
def test_any_bytes(kind: type[IrqInfoRequest | IrqInfo | SetIrqs], data: bytes) -> None:
    try:
        message = kind.decode(data)
    except RemoteProtocolError:
        return
    assert type(message) is kind

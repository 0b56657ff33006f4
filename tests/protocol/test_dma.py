"""DMA_MAP, DMA_UNMAP, DMA_READ and DMA_WRITE."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.codecs import Case, CodecTests
from tests.support.numbers import u32, u64
from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import DmaMapFlags, DmaUnmapFlags
from vfio_user.protocol.dma import DmaMap, DmaRead, DmaReadReply, DmaUnmap, DmaWrite, DmaWriteReply

READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE
NO_FLAGS = DmaUnmapFlags(0)

TABLE = [
    Case(
        "map, 256 MiB at 0, as QEMU does",
        DmaMap(READ_WRITE, 0, 0, 0x1000_0000),
        "20000000 03000000 0000000000000000 0000000000000000 0000001000000000",
    ),
    Case(
        "map, all fields",
        DmaMap(DmaMapFlags.READ | DmaMapFlags.ACCESS_FILE_IO, 0x1122, 0x3344_0000_0000, 0x5566),
        "20000000 09000000 2211000000000000 0000000044330000 6655000000000000",
    ),
    Case(
        "map, flags that mean nothing are the receiver's to refuse",
        DmaMap(DmaMapFlags(0x8000_0010), 0, 0, 0),
        "20000000 10000080 0000000000000000 0000000000000000 0000000000000000",
    ),
    Case(
        "unmap, one range",
        DmaUnmap(NO_FLAGS, 0x1000, 0x2000),
        "18000000 00000000 0010000000000000 0020000000000000",
    ),
    Case(
        "unmap, everything: the reply of libvfio-user",
        DmaUnmap(DmaUnmapFlags.ALL, 0, 0),
        "18000000 02000000 0000000000000000 0000000000000000",
    ),
    Case(
        "unmap, with a dirty bitmap of 0.9.1",
        DmaUnmap(DmaUnmapFlags.GET_DIRTY_BITMAP, 0x1000, 0x2000, argsz=48),
        "30000000 01000000 0010000000000000 0020000000000000",
    ),
    Case(
        "unmap, the largest argsz",
        DmaUnmap(NO_FLAGS, 0x1000, 0x2000, argsz=1 << 20),
        "00001000 00000000 0010000000000000 0020000000000000",
    ),
    Case("read", DmaRead(0x1122_0000_3344, 0x1_0000_0005), "4433000022110000 0500000001000000"),
    Case("read reply", DmaReadReply(0x1000, b"abc"), "0010000000000000 0300000000000000 616263", longer=False),
    Case("read reply, nothing", DmaReadReply(0x1000, b""), "0010000000000000 0000000000000000", longer=False),
    Case("write", DmaWrite(0x1000, b"abc"), "0010000000000000 0300000000000000 616263"),
    Case("write, nothing", DmaWrite(0x1000, b""), "0010000000000000 0000000000000000"),
    Case(
        "write reply",
        DmaWriteReply(0x1000, 3),
        "0010000000000000 0300000000000000",
        longer=False,
        shorter=frozenset([0, 12]),
    ),
]


@pytest.mark.parametrize("case", TABLE, ids=str)
class TestTable(CodecTests):
    pass


@pytest.mark.parametrize("argsz", [0, 31])
def test_map_argsz(argsz: int) -> None:
    payload = argsz.to_bytes(4, "little") + DmaMap(READ_WRITE, 0, 0, 4096).encode()[4:]
    with pytest.raises(RemoteProtocolError, match=rf"DMA_MAP: argsz {argsz} is smaller"):
        DmaMap.decode(payload)


@pytest.mark.parametrize(("argsz", "why"), [(0, "is smaller"), (23, "is smaller"), ((1 << 20) + 1, "is over")])
def test_unmap_argsz(argsz: int, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"DMA_UNMAP: argsz {argsz} {why}"):
        DmaUnmap.decode(DmaUnmap(NO_FLAGS, 0, 0, argsz).encode())


@given(u32)
@pytest.mark.parametrize("flags", range(9))
def test_unmap_flags_are_none_or_one_that_is_known(flags: int, high: int) -> None:
    for value in (flags, flags | high):
        payload = DmaUnmap(DmaUnmapFlags(value), 0, 0).encode()
        if value in (0, 1, 2):
            assert DmaUnmap.decode(payload).flags == value
        else:
            with pytest.raises(RemoteProtocolError, match=rf"flags {value:#x} is neither"):
                DmaUnmap.decode(payload)


@pytest.mark.parametrize(("iova", "size"), [(0x1000, 0), (0, 0x1000), (0x1000, 0x1000)])
def test_unmapping_everything_names_no_range(iova: int, size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"address 0 and size 0, not {iova:#x} and {size:#x}"):
        DmaUnmap.decode(DmaUnmap(DmaUnmapFlags.ALL, iova, size).encode())


@pytest.mark.parametrize(
    ("payload", "reply"),
    [
        ("", DmaWriteReply(None, None)),
        ("0010000000000000 03000000", DmaWriteReply(0x1000, 3)),
        ("0010000000000000 0300000000000000", DmaWriteReply(0x1000, 3)),
    ],
)
def test_write_replies_of_three_generations(payload: str, reply: DmaWriteReply) -> None:
    assert DmaWriteReply.decode(bytes.fromhex(payload)) == reply


def test_a_write_reply_that_says_nothing() -> None:
    assert DmaWriteReply(None, None).encode() == b""


def test_a_write_that_counts_more_than_it_brings() -> None:
    with pytest.raises(RemoteProtocolError, match="3 bytes of data came for a count of 4") as caught:
        DmaWrite.decode(bytes.fromhex("0010000000000000 0400000000000000 616263"))
    assert caught.value.errno_hint == errno.E2BIG


@given(st.builds(DmaMap, u32.map(DmaMapFlags), u64, u64, u64))
def test_map_round_trip(message: DmaMap) -> None:
    assert DmaMap.decode(message.encode()) == message


@given(st.builds(DmaUnmap, st.sampled_from([NO_FLAGS, DmaUnmapFlags(1)]), u64, u64, st.integers(24, 1 << 20)))
def test_unmap_round_trip(message: DmaUnmap) -> None:
    assert DmaUnmap.decode(message.encode()) == message


@given(st.builds(DmaReadReply, u64, st.binary(max_size=64)) | st.builds(DmaWrite, u64, st.binary(max_size=64)))
def test_transfer_round_trip(message: DmaReadReply | DmaWrite) -> None:
    assert type(message).decode(message.encode()) == message


MESSAGES = [DmaMap, DmaUnmap, DmaRead, DmaReadReply, DmaWrite, DmaWriteReply]


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.binary(max_size=48))
def test_any_bytes(kind: Any, data: bytes) -> None:
    try:
        message = kind.decode(data)
    except RemoteProtocolError:
        return
    assert type(message) is kind

"""DEVICE_GET_REGION_IO_FDS: both forms of an entry, the room rule, and every wrong size."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.codecs import Case, CodecTests
from tests.support.numbers import u32, u64
from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import IoEventFdFlags, IoRegionFdFlags
from vfio_user.protocol.region_io_fds import IoEventFd, IoRegionFd, RegionIoFds, RegionIoFdsRequest, Shadow

DATAMATCH, PIO = IoEventFdFlags.DATAMATCH, IoEventFdFlags.PIO


@pytest.mark.parametrize(
    "case",
    [
        Case("no room", RegionIoFdsRequest(2), "10000000 00000000 02000000 00000000"),
        Case("room for one", RegionIoFdsRequest(0, 56), "38000000 00000000 00000000 00000000"),
        Case("most room", RegionIoFdsRequest(0xFFFF_FFFF, 1 << 20), "00001000 00000000 ffffffff 00000000"),
    ],
    ids=str,
)
class TestRequest(CodecTests):
    pass


@pytest.mark.parametrize(
    ("argsz", "flags", "count", "what"),
    [(15, 0, 0, "argsz 15"), ((1 << 20) + 1, 0, 0, "1048577"), (16, 1, 0, "flags 0x1"), (16, 0, 3, "count 3")],
)
def test_wrong_requests(argsz: int, flags: int, count: int, what: str) -> None:
    with pytest.raises(RemoteProtocolError, match=what):
        RegionIoFdsRequest.decode(struct.pack("<IIII", argsz, flags, 0, count))


REPLIES = [
    (
        "nothing",
        RegionIoFds.of(1, ()),
        "10000000 00000000 01000000 00000000",
    ),
    (
        "two, as specified",
        RegionIoFds.of(0, (IoEventFd(0x10, 4, 0), IoEventFd(0x20, 2, 1, DATAMATCH | PIO, 0x1234))),
        (
            "60000000 00000000 00000000 02000000"
            "10000000 00000000 04000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000"
            "20000000 00000000 02000000 00000000 01000000 00000000 03000000 00000000 34120000 00000000"
        ),
    ),
    (
        "as libvfio-user sends it",
        RegionIoFds.of(0, (IoEventFd(0x20, 2, 1, DATAMATCH, 0x1234),), long=True),
        (
            "40000000 00000000 00000000 01000000"
            "20000000 00000000 02000000 00000000 01000000 00000000 01000000 00000000 00000000 0000000034120000 00000000"
        ),
    ),
    (
        "with a shadow",
        RegionIoFds.of(3, (IoEventFd(0x20, 2, 1, shadow=Shadow(4, 0x500)), IoRegionFd(0, 0x10, 2, user_data=9))),
        (
            "70000000 00000000 03000000 02000000"
            "20000000 00000000 02000000 00000000 01000000 02000000 00000000 04000000 00050000 00000000 0000000000000000"
            "00000000 00000000 10000000 00000000 02000000 01000000 00000000 00000000 09000000 00000000 0000000000000000"
        ),
    ),
    (
        "an ioregionfd",
        RegionIoFds.of(3, (IoRegionFd(0x100, 0x80, 0, IoRegionFdFlags.PIO | IoRegionFdFlags.POSTED_WRITES, 7),)),
        (
            "38000000 00000000 03000000 01000000"
            "00010000 00000000 80000000 00000000 00000000 01000000 03000000 00000000 07000000 00000000"
        ),
    ),
]


@pytest.mark.parametrize(("message", "hexadecimal"), [row[1:] for row in REPLIES], ids=[row[0] for row in REPLIES])
class TestReply:
    def test_both_ways(self, message: RegionIoFds, hexadecimal: str) -> None:
        data = bytes.fromhex(hexadecimal)
        assert message.argsz == len(data)
        encoded, complete = message.encode(message.argsz)
        assert encoded.hex(" ", 4) == data.hex(" ", 4)
        assert complete
        assert RegionIoFds.decode(data) == message
        assert RegionIoFds.decode(memoryview(data + bytes(100))) == message

    def test_every_truncation(self, message: RegionIoFds, hexadecimal: str) -> None:
        data = bytes.fromhex(hexadecimal)
        for length in range(len(data)):
            if length != 16:
                with pytest.raises(RemoteProtocolError):
                    RegionIoFds.decode(data[:length])

    def test_without_room_the_head_tells_how_much_is_needed(self, message: RegionIoFds, hexadecimal: str) -> None:
        if message.entries:
            encoded, complete = message.encode(message.argsz - 1)
            assert not complete
            assert encoded == bytes.fromhex(hexadecimal)[:16]
            told = RegionIoFds.decode(encoded)
            assert (told.entries, told.count, told.argsz) == ((), message.count, message.argsz)


@pytest.mark.parametrize("size", [16 + 39, 16 + 41, 16 + 44, 16 + 56, 16, 0, 0xFFFF_FFFF])
def test_entries_of_no_known_size(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="each has 40 or 48"):
        RegionIoFds.decode(struct.pack("<IIII", size, 0, 0, 1) + bytes(200))


def test_more_entries_than_bytes() -> None:
    with pytest.raises(RemoteProtocolError, match="take 4294967256 bytes, and 200 came"):
        RegionIoFds.decode(struct.pack("<IIII", 16 + 40 * 107374181, 0, 0, 107374181) + bytes(184))


def test_a_shadow_does_not_fit_the_short_form() -> None:
    with pytest.raises(RemoteProtocolError, match="shadow"):
        RegionIoFds.decode(struct.pack("<IIII", 56, 0, 0, 1) + struct.pack("<QQIIIIQ", 0, 4, 0, 2, 0, 0, 0))


def test_an_unknown_type_is_left_out() -> None:
    entries = struct.pack("<QQIIIIQ", 0, 4, 0, 77, 0, 0, 0) + struct.pack("<QQIIIIQ", 8, 4, 0, 0, 0, 0, 0)
    assert RegionIoFds.decode(struct.pack("<IIII", 96, 0, 0, 2) + entries).entries == (IoEventFd(8, 4, 0),)


EVENT_FLAGS = st.builds(IoEventFdFlags, st.integers(0, 0xFFFF_FFFF))
EVENTFDS = st.builds(IoEventFd, u64, u64, u32, EVENT_FLAGS, u64, st.none() | st.builds(Shadow, u32, u64))
REGIONFDS = st.builds(IoRegionFd, u64, u64, u32, st.builds(IoRegionFdFlags, st.integers(0, 0xFFFF_FFFF)), u64)


@given(u32, st.lists(EVENTFDS | REGIONFDS, max_size=6), st.booleans())
def test_any_reply_survives(index: int, entries: list[IoEventFd | IoRegionFd], long: bool) -> None:
    message = RegionIoFds.of(index, tuple(entries), long=long)
    assert RegionIoFds.decode(message.encode(message.argsz)[0]) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for codec in (RegionIoFds, RegionIoFdsRequest):
        with contextlib.suppress(RemoteProtocolError):
            codec.decode(data)

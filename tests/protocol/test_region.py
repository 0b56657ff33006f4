"""DEVICE_GET_REGION_INFO with its capabilities, and the accesses."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.codecs import Case, CodecTests
from tests.support.numbers import u32, u64
from vfio_user.errors import LocalProtocolError, RemoteProtocolError
from vfio_user.protocol.constants import RegionFlags, RegionIndex
from vfio_user.protocol.header import HEADER, Header
from vfio_user.protocol.region import (
    ACCESS,
    ACCESS_MESSAGE,
    INTEGER_ACCESS_MESSAGE,
    MAX_MULTI_WRITES,
    MappableArea,
    MultiWrite,
    RegionAccess,
    RegionInfo,
    RegionInfoRequest,
    RegionWriteMulti,
    WriteMultiReply,
)

READ_WRITE = RegionFlags.READ | RegionFlags.WRITE
MAPPABLE = READ_WRITE | RegionFlags.MMAP

TABLE = [
    Case(
        "info request",
        RegionInfoRequest(RegionIndex.CONFIG),
        "20000000 00000000 07000000 00000000 0000000000000000 0000000000000000",
    ),
    Case(
        "info request, with room, of an index that is none",
        RegionInfoRequest(0xDEADBEEF, argsz=80),
        "50000000 00000000 efbeadde 00000000 0000000000000000 0000000000000000",
    ),
    Case("access", RegionAccess(0x1122334455667788, 7, 4), "8877665544332211 07000000 04000000"),
    Case("access, an index that is none", RegionAccess(0, 0xDEADBEEF, 0xFFFFFFFF), f"{'00' * 8} efbeadde ffffffff"),
    Case("no writes", RegionWriteMulti(()), "0000000000000000", longer=False),
    Case(
        "two writes",
        RegionWriteMulti((MultiWrite(0x10, 0, 4, b"\1\2\3\4\0\0\0\0"), MultiWrite(0x18, 2, 8, b"ABCDEFGH"))),
        "0200000000000000"
        "1000000000000000 00000000 04000000 0102030400000000"
        "1800000000000000 02000000 08000000 4142434445464748",
        longer=False,
    ),
    Case("writes done", WriteMultiReply(2), "0200000000000000"),
]


@pytest.mark.parametrize("case", TABLE, ids=str)
class TestTable(CodecTests):
    pass


@pytest.mark.parametrize("argsz", [0, 31])
def test_info_argsz(argsz: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"DEVICE_GET_REGION_INFO: argsz {argsz} is smaller"):
        RegionInfoRequest.decode(RegionInfoRequest(0, argsz).encode())


# REGION_INFO replies: (what is known of the region, exact payload when there is room for all of it).
INFOS: list[tuple[str, RegionInfo, str]] = [
    (
        "absent",
        RegionInfo(RegionIndex.VGA),
        "20000000 00000000 08000000 00000000 0000000000000000 0000000000000000",
    ),
    (
        "plain",
        RegionInfo(RegionIndex.CONFIG, READ_WRITE, 4096),
        "20000000 03000000 07000000 00000000 0010000000000000 0000000000000000",
    ),
    (
        "mappable as a whole",
        RegionInfo(0, MAPPABLE, 0x10000, fd_offset=0x3000),
        "20000000 07000000 00000000 00000000 0000010000000000 0030000000000000",
    ),
    (
        "one area",
        RegionInfo(0, MAPPABLE, 0x4000, areas=(MappableArea(0x1000, 0x1000),)),
        (
            "40000000 0f000000 00000000 20000000 0040000000000000 0000000000000000"
            "0100 0100 00000000 01000000 00000000 0010000000000000 0010000000000000"
        ),
    ),
    (
        "two areas",
        RegionInfo(2, MAPPABLE, 0x4000, areas=(MappableArea(0, 0x1000), MappableArea(0x3000, 0x1000))),
        (
            "50000000 0f000000 02000000 20000000 0040000000000000 0000000000000000"
            "0100 0100 00000000 02000000 00000000 0000000000000000 0010000000000000 0030000000000000 0010000000000000"
        ),
    ),
    (
        "the migration region of 0.9.1",
        RegionInfo(RegionIndex.MIGRATION, READ_WRITE, 0x1000, region_type=(3, 1)),
        "30000000 0b000000 09000000 20000000 0010000000000000 0000000000000000 0200 0100 00000000 03000000 01000000",
    ),
    (
        "both capabilities",
        RegionInfo(RegionIndex.MIGRATION, MAPPABLE, 0x2000, areas=(MappableArea(0x1000, 0x1000),), region_type=(3, 1)),
        (
            "50000000 0f000000 09000000 20000000 0020000000000000 0000000000000000"
            "0100 0100 40000000 01000000 00000000 0010000000000000 0010000000000000"
            "0200 0100 00000000 03000000 01000000"
        ),
    ),
]


@pytest.mark.parametrize(("info", "payload"), [row[1:] for row in INFOS], ids=[row[0] for row in INFOS])
class TestInfo:
    def test_encodes_to_exactly_these_bytes(self, info: RegionInfo, payload: str) -> None:
        data = bytes.fromhex(payload)
        for room in (len(data), len(data) + 1, 0xFFFFFFFF):
            encoded, complete = info.encode(room)
            assert (encoded.hex(" ", 4), complete) == (data.hex(" ", 4), True)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_decodes(self, info: RegionInfo, payload: str, kind: type[bytes]) -> None:
        data = bytes.fromhex(payload)
        flags = info.flags | (RegionFlags.CAPS if info.areas or info.region_type else RegionFlags(0))
        assert RegionInfo.decode(kind(data)) == dataclasses.replace(info, flags=flags, argsz=len(data))

    def test_refuses_every_truncation(self, info: RegionInfo, payload: str) -> None:
        data = bytes.fromhex(payload)
        for length in range(len(data)):
            with pytest.raises(RemoteProtocolError):
                RegionInfo.decode(data[:length])

    def test_bytes_behind_it(self, info: RegionInfo, payload: str) -> None:
        data = bytes.fromhex(payload)
        assert RegionInfo.decode(data + b"\xff" * 64) == RegionInfo.decode(data)


@pytest.mark.parametrize(("areas", "argsz"), [(1, 64), (2, 80)])
def test_without_room_the_fixed_part_says_how_much_is_needed(areas: int, argsz: int) -> None:
    info = RegionInfo(0, MAPPABLE, 0x4000, 0x5000, tuple(MappableArea(n * 0x2000, 0x1000) for n in range(areas)))
    for room in range(32, argsz):
        payload, complete = info.encode(room)
        assert not complete  # so no descriptor goes along
        assert len(payload) == 32
        # No capabilities, and nothing that points at them; but the region itself is all there.
        assert RegionInfo.decode(payload) == RegionInfo(0, MAPPABLE, 0x4000, 0x5000, argsz=argsz)


def test_the_caps_flag_is_not_the_callers_to_set() -> None:
    payload, _ = RegionInfo(0, READ_WRITE | RegionFlags.CAPS, 16).encode(32)
    assert RegionInfo.decode(payload).flags == READ_WRITE


# Replies of a hostile server.


def reply(capabilities: bytes, cap_offset: int = 32, flags: int = RegionFlags.CAPS) -> bytes:
    return struct.pack("<IIIIQQ", 32 + len(capabilities), flags, 5, cap_offset, 4096, 0) + capabilities


def capability(cap_id: int, following: int, body: bytes = b"", version: int = 1) -> bytes:
    return struct.pack("<HHI", cap_id, version, following) + body


SPARSE_ONE = struct.pack("<IIQQ", 1, 0, 0, 4096)

HOSTILE = {
    "a capability that follows itself": reply(capability(9, 32)),
    "a capability before the one it follows": reply(capability(9, 40) + capability(9, 32)),
    "a capability inside the fixed part": reply(capability(9, 16)),
    "the first capability inside the fixed part": reply(b"", cap_offset=8),
    "the first capability at the end": reply(b""),
    "the first capability beyond the end": reply(capability(9, 0), cap_offset=0xFFFFFFFF),
    "the next capability beyond the end": reply(capability(9, 0xFFFFFFFF)),
    "a capability header cut short": reply(capability(9, 40) + b"\1\0\1\0\0\0\0"),
    "a sparse capability cut short": reply(capability(1, 0, b"\0\0\0\0\0\0\0")),
    "an area that is not there": reply(capability(1, 0, struct.pack("<II", 1, 0))),
    "an area cut short": reply(capability(1, 0, SPARSE_ONE[:-1])),
    "more areas than anybody could hold": reply(capability(1, 0, struct.pack("<IIQQ", 0xFFFFFFFF, 0, 0, 4096))),
    "a type cut short": reply(capability(2, 0, b"\3\0\0\0\1\0\0")),
    "two sparse capabilities": reply(capability(1, 64, SPARSE_ONE) + capability(1, 0, SPARSE_ONE)),
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
def test_hostile_info(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^region 5: "):
        RegionInfo.decode(payload)


def test_unknown_capabilities_are_skipped() -> None:
    payload = reply(capability(3, 40) + capability(99, 64, b"something, of 16") + capability(1, 0, SPARSE_ONE))
    assert RegionInfo.decode(payload).areas == (MappableArea(0, 4096),)


def test_without_the_flag_there_are_no_capabilities() -> None:
    assert RegionInfo.decode(reply(capability(9, 32), flags=0)) == RegionInfo(5, RegionFlags(0), 4096, argsz=40)


def test_the_flag_alone_is_no_capability() -> None:
    # The rust server sets the flag on a reply that has no room for them.
    assert RegionInfo.decode(reply(b"", cap_offset=0)).areas == ()


areas = st.lists(st.builds(MappableArea, u64, u64), max_size=5).map(tuple)
infos = st.builds(
    RegionInfo,
    u32,
    st.integers(0, 7).map(RegionFlags),
    u64,
    u64,
    areas,
    st.none() | st.tuples(u32, u32),
)


@given(infos)
def test_info_round_trip(info: RegionInfo) -> None:
    payload, complete = info.encode(0xFFFFFFFF)
    assert complete
    found = RegionInfo.decode(payload)
    assert found.argsz == len(payload)
    assert dataclasses.replace(found, flags=found.flags & ~RegionFlags.CAPS, argsz=32) == info


@given(st.binary(max_size=96), st.integers(0, 100), st.lists(st.integers(0, 120), max_size=4))
def test_any_chain_of_capabilities(rest: bytes, cap_offset: int, pokes: list[int]) -> None:
    data = bytearray(reply(rest, cap_offset))
    for at in pokes:
        # Offsets that are likely to mean something, where one is likely to be.
        if at + 8 <= len(data):
            struct.pack_into("<HHI", data, at, at % 4, 1, at + 8)
    try:
        found = RegionInfo.decode(data)
    except RemoteProtocolError:
        return
    assert len(found.areas) <= len(data) // 16


# Accesses.


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_whole_message_forms_agree_with_the_parts(size: int) -> None:
    header = Header(0x1234, 10, 32 + size, 0x10, 0)
    access = RegionAccess(0x1000, 2, size)
    value = 0x8877665544332211 & (1 << 8 * size) - 1
    message = header.encode() + access.encode() + value.to_bytes(size, "little")
    assert INTEGER_ACCESS_MESSAGE[size].pack(*header, 0x1000, 2, size, value) == message
    assert ACCESS_MESSAGE.pack(*header, 0x1000, 2, size) == message[:32]
    assert ACCESS_MESSAGE.size == HEADER.size + ACCESS.size


def test_every_integer_size_has_a_form() -> None:
    assert {size: form.size for size, form in INTEGER_ACCESS_MESSAGE.items()} == {1: 33, 2: 34, 4: 36, 8: 40}


def test_a_short_access_names_its_command() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^REGION_READ: a payload of 15 bytes"):
        RegionAccess.decode(bytes(15), "REGION_READ")


@given(st.builds(RegionAccess, u64, u32, u32))
def test_access_round_trip(access: RegionAccess) -> None:
    assert RegionAccess.decode(access.encode()) == access


# REGION_WRITE_MULTI.

writes = st.builds(MultiWrite, u64, u32, u32, st.binary(min_size=8, max_size=8))


@given(st.lists(writes, max_size=8).map(tuple))
def test_multi_round_trip(entries: tuple[MultiWrite, ...]) -> None:
    assert RegionWriteMulti.decode(RegionWriteMulti(entries).encode()) == RegionWriteMulti(entries)


def test_200_writes_and_no_more() -> None:
    entry = MultiWrite(0, 0, 4, bytes(8))
    most = RegionWriteMulti((entry,) * MAX_MULTI_WRITES)
    assert MAX_MULTI_WRITES == 200
    payload = most.encode()
    assert len(payload) == 8 + 24 * 200
    assert RegionWriteMulti.decode(payload) == most
    one_more = struct.pack("<Q", 201) + payload[8:] + bytes(24)
    with pytest.raises(RemoteProtocolError, match="201 writes; the limit is 200"):
        RegionWriteMulti.decode(one_more)
    with pytest.raises(LocalProtocolError, match="201 writes; the limit is 200"):
        RegionWriteMulti((entry,) * 201).encode()


def test_a_number_of_writes_nobody_could_hold() -> None:
    with pytest.raises(RemoteProtocolError, match=f"{2**64 - 1} writes; the limit is 200"):
        RegionWriteMulti.decode(b"\xff" * 8)


@pytest.mark.parametrize(("number", "length"), [(0, 24), (1, 0), (1, 23), (1, 25), (2, 24)])
def test_exactly_as_long_as_its_number_of_writes(number: int, length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"{number} writes take {8 + 24 * number} bytes, not {8 + length}"):
        RegionWriteMulti.decode(struct.pack("<Q", number) + bytes(length))


def test_a_bad_entry_is_not_an_error_of_the_message() -> None:
    bad = MultiWrite(2**64 - 1, 0xDEADBEEF, 9, b"12345678")
    assert RegionWriteMulti.decode(RegionWriteMulti((bad,)).encode()).writes == (bad,)


@pytest.mark.parametrize("kind", [RegionInfoRequest, RegionInfo, RegionAccess, RegionWriteMulti, WriteMultiReply])
@given(data=st.binary(max_size=80))
def test_any_bytes(
    kind: type[RegionInfoRequest | RegionInfo | RegionAccess | RegionWriteMulti | WriteMultiReply], data: bytes
) -> None:
    try:
        message = kind.decode(data)
    except RemoteProtocolError:
        return
    assert type(message) is kind

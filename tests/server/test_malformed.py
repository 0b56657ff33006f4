"""Everything a client can get wrong: the errno, what the reply looks like, and whether the connection goes on.

The tables follow the commands. Each row is sent with and without a wish for a reply; descriptors and mappings of the
process are the same before and after.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from tests.support.fds import close_all, memory_file
from tests.support.raw_client import RawClient, access, memory_session, message
from vfio_user.errors import ConnectionClosedError, DeviceError
from vfio_user.protocol.constants import Command, IrqIndex
from vfio_user.protocol.header import Header
from vfio_user.protocol.region import ACCESS
from vfio_user.regions import CallbackRegion, MemoryRegion, Region
from vfio_user.server.device import Device
from vfio_user.server.loop import EventLoop
from vfio_user.server.session import Session
from vfio_user.testing.leaks import leaked_since, open_files

EINVAL = errno.EINVAL
MIB = 1 << 20
U64 = (1 << 64) - 1
U32 = (1 << 32) - 1


class Stingy(Region):
    """Handles fewer bytes than it was asked for."""

    size = 64

    def read_bytes(self, offset: int, count: int) -> bytes:
        return bytes(count - 1)


def refusing(*_: int) -> NoReturn:
    raise DeviceError(errno.ERANGE, "no")


def make_device() -> Device:
    device = Device(irqs={IrqIndex.INTX: 1, IrqIndex.MSIX: 8})
    device.set_region(0, MemoryRegion(256))
    device.set_region(1, Stingy())
    device.set_region(2, CallbackRegion(64, refusing, refusing))
    device.set_region(3, MemoryRegion(2 * MIB))
    device.set_region(4, CallbackRegion(64, write=lambda *_: None))
    device.set_region(6, MemoryRegion(256, readonly=True))
    return device


def mapped_files() -> int:
    """Mappings of memory files this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:test")


@pytest.fixture
def client() -> Iterator[RawClient]:
    """A negotiated client with one mapping, whose connection is in a known good state."""
    fd = memory_file(bytes(0x4000))
    with memory_session(make_device()) as client:
        client.negotiate()
        assert client.map_memory(0x10000, 0x4000, fd) == 0
        os.close(fd)
        yield client


class Row(NamedTuple):
    """A refused command.

    Attributes:
        name: what is wrong.
        command: its number.
        payload: its payload.
        errno: of the reply.
        fds: descriptors that come along: "m" a memory file, "e" an eventfd, "p" a pipe's end.
    """

    name: str
    command: int
    payload: bytes
    errno: int = EINVAL
    fds: str = ""


def dma_map(flags: int, offset: int, iova: int, size: int, argsz: int = 32) -> bytes:
    return struct.pack("<IIQQQ", argsz, flags, offset, iova, size)


def dma_unmap(flags: int, iova: int, size: int, argsz: int = 24) -> bytes:
    return struct.pack("<IIQQ", argsz, flags, iova, size)


def set_irqs(flags: int, index: int, start: int, count: int, data: bytes = b"", argsz: int = 20) -> bytes:
    return struct.pack("<IIIII", argsz, flags, index, start, count) + data


def multi(*entries: tuple[int, int, int], number: int | None = None) -> bytes:
    head = struct.pack("<Q", len(entries) if number is None else number)
    return head + b"".join(struct.pack("<QII8s", *entry, b"\xaa" * 8) for entry in entries)


NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
INTX, MSI, MSIX, ERR, REQ = range(5)
GOOD_MAP = dma_map(3, 0, 0x100000, 0x1000)

FRAMING = [
    Row("no payload", Command.DEVICE_GET_INFO, b""),
    Row("no payload either", Command.REGION_WRITE, b""),
    *(Row(f"command {n}", n, bytes(64)) for n in (0, 11, 12, 14, 19, 255, 0xFFFF)),
    Row("an unknown command with descriptors", 99, bytes(4), EINVAL, "me"),
    Row("version again", Command.VERSION, b"\0\0\0\0{}\0"),
    Row("version again, with a descriptor", Command.VERSION, b"\0\0\0\0", EINVAL, "m"),
]
DMA_MAP = [
    Row("short payload", Command.DMA_MAP, GOOD_MAP[:31], EINVAL, "m"),
    Row("small argsz", Command.DMA_MAP, dma_map(3, 0, 0x100000, 0x1000, argsz=31), EINVAL, "m"),
    Row("mmap without descriptor", Command.DMA_MAP, dma_map(3 | 4, 0, 0x100000, 0x1000)),
    Row("file I/O without descriptor", Command.DMA_MAP, dma_map(3 | 8, 0, 0x100000, 0x1000)),
    Row("mmap and file I/O", Command.DMA_MAP, dma_map(3 | 12, 0, 0x100000, 0x1000), EINVAL, "m"),
    Row("unknown flag", Command.DMA_MAP, dma_map(3 | 0x10, 0, 0x100000, 0x1000), EINVAL, "m"),
    Row("highest flag", Command.DMA_MAP, dma_map(3 | 1 << 31, 0, 0x100000, 0x1000), EINVAL, "m"),
    Row("over 8 TiB", Command.DMA_MAP, dma_map(3, 0, 0x100000, (8 << 40) + 1), errno.ENOSPC),
    Row("no bytes", Command.DMA_MAP, dma_map(3, 0, 0x100000, 0), EINVAL, "m"),
    Row("beyond 64 bits", Command.DMA_MAP, dma_map(3, 0, U64 - 0xFFF, 0x2000)),
    Row("overlap in front", Command.DMA_MAP, dma_map(3, 0, 0xF000, 0x2000), errno.EEXIST, "m"),
    Row("overlap behind", Command.DMA_MAP, dma_map(3, 0, 0x13000, 0x2000), errno.EEXIST, "m"),
    Row("overlap inside", Command.DMA_MAP, dma_map(3, 0, 0x11000, 0x1000), errno.EEXIST, "m"),
    Row("same range, another file", Command.DMA_MAP, dma_map(3, 0, 0x10000, 0x4000), errno.EEXIST, "m"),
    Row("same range, messages", Command.DMA_MAP, dma_map(3, 0, 0x10000, 0x4000), errno.EEXIST),
    Row("longer than its file", Command.DMA_MAP, dma_map(3, 0, 0x100000, 0x100000), EINVAL, "m"),
    Row("offset beyond its file", Command.DMA_MAP, dma_map(3, 0x100000, 0x100000, 0x1000), EINVAL, "m"),
    Row("offset beyond everything", Command.DMA_MAP, dma_map(3, U64, 0x100000, 0x1000), EINVAL, "m"),
    Row("no file", Command.DMA_MAP, GOOD_MAP, errno.ENODEV, "p"),
    Row("no file either", Command.DMA_MAP, GOOD_MAP, errno.ENODEV, "e"),
    Row("two files, both bad", Command.DMA_MAP, GOOD_MAP, errno.ENODEV, "pe"),
]
DMA_UNMAP = [
    Row("short payload", Command.DMA_UNMAP, dma_unmap(0, 0x10000, 0x4000)[:23]),
    Row("small argsz", Command.DMA_UNMAP, dma_unmap(0, 0x10000, 0x4000, argsz=23)),
    Row("large argsz", Command.DMA_UNMAP, dma_unmap(0, 0x10000, 0x4000, argsz=MIB + 1)),
    Row("two flags", Command.DMA_UNMAP, dma_unmap(3, 0, 0)),
    Row("unknown flag", Command.DMA_UNMAP, dma_unmap(4, 0x10000, 0x4000)),
    Row("all, with an address", Command.DMA_UNMAP, dma_unmap(2, 0x10000, 0)),
    Row("all, with a size", Command.DMA_UNMAP, dma_unmap(2, 0, 0x4000)),
    Row("dirty bitmap, no log", Command.DMA_UNMAP, dma_unmap(1, 0x10000, 0x4000, argsz=64) + bytes(16)),
    Row("unknown range", Command.DMA_UNMAP, dma_unmap(0, 0x50000, 0x4000), errno.ENOENT, "m"),
    Row("part of a range", Command.DMA_UNMAP, dma_unmap(0, 0x10000, 0x1000), errno.ENOENT),
    Row("a range and part of it", Command.DMA_UNMAP, dma_unmap(0, 0xF000, 0x4000), errno.ENOENT),
    Row("end of a range", Command.DMA_UNMAP, dma_unmap(0, 0x13000, 0x1000), errno.ENOENT),
    Row("beyond 64 bits", Command.DMA_UNMAP, dma_unmap(0, U64, U64), errno.ENOENT),
]
INFO = [
    Row("device: short payload", Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)[:15]),
    Row("device: small argsz", Command.DEVICE_GET_INFO, struct.pack("<IIII", 15, 0, 0, 0)),
    Row("region: short payload", Command.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0)[:31]),
    Row("region: small argsz", Command.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 31, 0, 0, 0, 0, 0)),
    Row("region: index 9", Command.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 9, 0, 0, 0)),
    Row("region: last index", Command.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, U32, 0, 0, 0)),
    *(
        Row(f"io fds: {name}", Command.DEVICE_GET_REGION_IO_FDS, payload, EINVAL, fds)
        for name, payload, fds in [
            ("short payload", struct.pack("<IIII", 16, 0, 0, 0)[:15], ""),
            ("small argsz", struct.pack("<IIII", 15, 0, 0, 0), ""),
            ("argsz over 1 MiB", struct.pack("<IIII", MIB + 1, 0, 0, 0), ""),
            ("largest argsz", struct.pack("<IIII", U32, 0, 0, 0), ""),
            ("flags", struct.pack("<IIII", 16, 1, 0, 0), ""),
            ("a count", struct.pack("<IIII", 16, 0, 0, 1), ""),
            ("index 9", struct.pack("<IIII", 16, 0, 9, 0), ""),
            ("last index", struct.pack("<IIII", 16, 0, U32, 0), ""),
            ("an absent region", struct.pack("<IIII", 16, 0, 5, 0), ""),
            ("descriptors, refused", struct.pack("<IIII", 16, 1, 0, 0), "em"),
        ]
    ),
    Row("irq: short payload", Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 0, 0)[:15]),
    Row("irq: small argsz", Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 15, 0, 0, 0)),
    Row("irq: index 5", Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 5, 0)),
    Row("irq: last index", Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, U32, 0)),
]
SET_IRQS = [
    Row(name, Command.DEVICE_SET_IRQS, payload, EINVAL, fds)
    for name, payload, fds in [
        ("short payload", set_irqs(TRIGGER | NONE, MSIX, 0, 1)[:19], ""),
        ("small argsz", set_irqs(TRIGGER | NONE, MSIX, 0, 1, argsz=19), ""),
        ("index 5", set_irqs(TRIGGER | NONE, 5, 0, 1), ""),
        ("last index", set_irqs(TRIGGER | NONE, U32, 0, 0), ""),
        ("no action", set_irqs(NONE, MSIX, 0, 1), ""),
        ("two actions", set_irqs(MASK | UNMASK | NONE, MSIX, 0, 1), ""),
        ("no data type", set_irqs(TRIGGER, MSIX, 0, 1), ""),
        ("two data types", set_irqs(TRIGGER | NONE | EVENTFD, MSIX, 0, 1), "e"),
        ("unknown flag", set_irqs(TRIGGER | NONE | 64, MSIX, 0, 1), ""),
        ("too few booleans", set_irqs(TRIGGER | BOOL, MSIX, 0, 2, b"\1"), ""),
        ("too many booleans", set_irqs(TRIGGER | BOOL, MSIX, 0, 2, b"\1\1\1"), ""),
        ("start at the end", set_irqs(TRIGGER | NONE, MSIX, 8, 1), ""),
        ("beyond the end", set_irqs(TRIGGER | EVENTFD, MSIX, 7, 2), "ee"),
        ("beyond 32 bits", set_irqs(TRIGGER | NONE, MSIX, U32, 2), ""),
        ("all vectors there could be", set_irqs(TRIGGER | NONE, MSIX, 1, U32), ""),
        ("an index without vectors", set_irqs(TRIGGER | EVENTFD, MSI, 0, 1), "e"),
        ("an index without vectors, de-assigned", set_irqs(TRIGGER | EVENTFD, MSI, 0, 1), ""),
        ("ERR masked", set_irqs(MASK | NONE, ERR, 0, 1), ""),
        ("REQ unmasked", set_irqs(UNMASK | NONE, REQ, 0, 1), ""),
        ("two of ERR", set_irqs(TRIGGER | EVENTFD, ERR, 0, 2), "ee"),
        ("nothing, from 1", set_irqs(TRIGGER | NONE, MSIX, 1, 0), ""),
        ("nothing by boolean", set_irqs(TRIGGER | BOOL, MSIX, 0, 0), ""),
        ("nothing by eventfd", set_irqs(TRIGGER | EVENTFD, MSIX, 0, 0), ""),
        ("nothing masked", set_irqs(MASK | NONE, MSIX, 0, 0), ""),
        ("descriptors without data", set_irqs(TRIGGER | NONE, MSIX, 0, 1), "e"),
        ("descriptors and booleans", set_irqs(TRIGGER | BOOL, MSIX, 0, 1, b"\1"), "e"),
        ("fewer descriptors", set_irqs(TRIGGER | EVENTFD, MSIX, 0, 3), "ee"),
        ("more descriptors", set_irqs(TRIGGER | EVENTFD, MSIX, 0, 1), "ee"),
        ("no eventfd", set_irqs(TRIGGER | EVENTFD, MSIX, 0, 2), "em"),
        ("a pipe", set_irqs(TRIGGER | EVENTFD, MSIX, 0, 1), "p"),
    ]
]
ACCESS_ROWS = [
    Row("read: short payload", Command.REGION_READ, ACCESS.pack(0, 0, 4)[:15]),
    Row("read: no such region", Command.REGION_READ, ACCESS.pack(0, 9, 4)),
    Row("read: region 0xdeadbeef", Command.REGION_READ, ACCESS.pack(0, 0xDEADBEEF, 4)),
    Row("read: absent region", Command.REGION_READ, ACCESS.pack(0, 5, 4)),
    Row("read: beyond the end", Command.REGION_READ, ACCESS.pack(253, 0, 4)),
    Row("read: beyond the end, many", Command.REGION_READ, ACCESS.pack(200, 0, 57)),
    Row("read: beyond 64 bits", Command.REGION_READ, ACCESS.pack(U64, 0, 4)),
    Row("read: over 1 MiB", Command.REGION_READ, ACCESS.pack(0, 3, MIB + 1)),
    Row("read: all there could be", Command.REGION_READ, ACCESS.pack(0, 3, U32)),
    Row("read: write-only region", Command.REGION_READ, ACCESS.pack(0, 4, 4)),
    Row("read: write-only region, many", Command.REGION_READ, ACCESS.pack(0, 4, 32)),
    Row("read: fewer bytes handled", Command.REGION_READ, ACCESS.pack(0, 1, 32)),
    Row("read: the device refuses", Command.REGION_READ, ACCESS.pack(0, 2, 4), errno.ERANGE),
    Row("read: the device refuses, many", Command.REGION_READ, ACCESS.pack(0, 2, 12), errno.ERANGE),
    Row("read: with descriptors, refused", Command.REGION_READ, ACCESS.pack(0, 9, 4), EINVAL, "me"),
    Row("write: short payload", Command.REGION_WRITE, ACCESS.pack(0, 0, 4)[:15]),
    Row("write: less data", Command.REGION_WRITE, access(0, 0, b"abc", count=4)),
    Row("write: more data", Command.REGION_WRITE, access(0, 0, b"abcde", count=4)),
    Row("write: no data", Command.REGION_WRITE, access(0, 0, b"", count=4)),
    Row("write: no such region", Command.REGION_WRITE, access(0, 9, b"abcd")),
    Row("write: beyond the end", Command.REGION_WRITE, access(254, 0, b"abcd")),
    Row("write: beyond 64 bits", Command.REGION_WRITE, access(U64 - 1, 0, b"abcd")),
    Row("write: nothing beyond the end", Command.REGION_WRITE, access(257, 0, b"")),
    Row("write: read-only region", Command.REGION_WRITE, access(0, 6, b"abcd")),
    Row("write: read-only region, many", Command.REGION_WRITE, access(0, 6, bytes(9))),
    Row("write: the device refuses", Command.REGION_WRITE, access(0, 2, b"abcd"), errno.ERANGE),
    Row("multi: short payload", Command.REGION_WRITE_MULTI, bytes(7)),
    Row("multi: over 200", Command.REGION_WRITE_MULTI, multi(*[(0, 0, 4)] * 201)),
    Row("multi: fewer than said", Command.REGION_WRITE_MULTI, multi((0, 0, 4), number=2)),
    Row("multi: more than said", Command.REGION_WRITE_MULTI, multi((0, 0, 4), (0, 0, 4), number=1)),
    Row("multi: a number that overflows", Command.REGION_WRITE_MULTI, multi((0, 0, 4), number=U64)),
    Row("multi: first over 8 bytes", Command.REGION_WRITE_MULTI, multi((0, 0, 9), (0, 0, 4))),
    Row("multi: first beyond the end", Command.REGION_WRITE_MULTI, multi((256, 0, 4), (0, 0, 4))),
    Row("multi: first to no region", Command.REGION_WRITE_MULTI, multi((0, 9, 4))),
    Row("multi: first refused", Command.REGION_WRITE_MULTI, multi((0, 2, 4)), errno.ERANGE),
]
ROWS = [
    pytest.param(row, id=f"{table}: {row.name}")
    for table, rows in {
        "framing": FRAMING,
        "map": DMA_MAP,
        "unmap": DMA_UNMAP,
        "info": INFO,
        "irqs": SET_IRQS,
        "access": ACCESS_ROWS,
    }.items()
    for row in rows
]


@contextlib.contextmanager
def descriptors(kinds: str) -> Iterator[list[int]]:
    """Descriptors to send along."""
    fds: list[int] = []
    for kind in kinds:
        if kind == "m":
            fds.append(memory_file(bytes(0x4000)))
        elif kind == "e":
            fds.append(os.eventfd(0, os.EFD_NONBLOCK))
        else:
            end, other = os.pipe()
            os.close(end)
            fds.append(other)
    yield fds
    close_all(fds)


@pytest.mark.parametrize("row", ROWS)
def test_is_refused_and_the_connection_goes_on(client: RawClient, row: Row) -> None:
    before, maps = open_files(), mapped_files()
    with descriptors(row.fds) as fds:
        client.send(message(row.command, row.payload, message_id=0xBEEF), fds)
        reply = client.receive()
        assert reply.header == Header(0xBEEF, row.command, 16, 0x21, row.errno)
        # Without a wish for a reply, the same is refused in silence.
        client.send(message(row.command, row.payload, no_reply=True), fds)
        assert client.is_silent()
    assert leaked_since(before) == []
    assert mapped_files() == maps
    assert client.request(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)).payload[:4] == b"\x10\0\0\0"
    assert client.read(0, 0) == 0


def test_a_file_opened_for_reading_cannot_be_mapped_for_writing(client: RawClient, tmp_path: Path) -> None:
    path = Path("/dev/shm")
    fd = os.open(path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.truncate(fd, 0x1000)
    only_read = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    before = open_files()
    assert client.map_memory(0x100000, 0x1000, only_read, flags=3) == errno.EACCES
    assert client.map_memory(0x100000, 0x1000, only_read, flags=1) == 0
    assert client.unmap_memory(0x100000, 0x1000) == 0
    assert leaked_since(before) == []
    close_all([fd, only_read])


def test_the_writes_before_a_bad_one_are_done_and_counted(client: RawClient) -> None:
    for bad in [(0, 0, 9), (256, 0, 4), (0, 9, 4), (0, 2, 4), (0, 6, 4)]:
        reply = client.request(Command.REGION_WRITE_MULTI, multi((0, 0, 2), (8, 0, 4), bad, (16, 0, 4)))
        assert reply.payload == struct.pack("<Q", 2)
        assert [client.read(0, offset) for offset in (0, 8, 16)] == [0xAAAA, 0xAAAA_AAAA, 0]


# What is wrong with a stream, and ends it.

CUTS = {
    "size 0": message(Command.DEVICE_RESET, size=0),
    "size 15": message(Command.DEVICE_RESET, size=15),
    "one byte too many": message(Command.REGION_WRITE, access(0, 3, b""), size=MIB + 33),
    "4 GiB": message(Command.REGION_READ, ACCESS.pack(0, 0, 4), size=U32),
    "type 2": message(Command.REGION_READ, ACCESS.pack(0, 0, 4), flags=2),
    "type 15": message(Command.REGION_READ, ACCESS.pack(0, 0, 4), flags=15),
    "type 2 without a wish for a reply": message(Command.REGION_READ, ACCESS.pack(0, 0, 4), flags=0x12),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("fds", ["", "me"])
def test_a_stream_that_cannot_be_followed_is_answered_and_closed(name: str, fds: str) -> None:
    before = open_files()
    with memory_session(make_device()) as client, descriptors(fds) as sent:
        client.negotiate()
        client.send(CUTS[name], sent)
        reply = client.receive()
        assert reply.header == Header(1, reply.header.command, 16, 0x21, EINVAL)
        assert client.is_cut_off()
    assert leaked_since(before) == []


def test_the_largest_message_there_can_be(client: RawClient) -> None:
    data = bytes(range(256)) * (MIB // 256)
    assert client.request(Command.REGION_WRITE, access(0, 3, data)).error == 0
    assert client.request(Command.REGION_READ, ACCESS.pack(0, 3, MIB)).payload[16:] == data


@pytest.mark.parametrize("flags", [1, 0x11, 0x21])
def test_a_reply_to_nothing_is_dropped(client: RawClient, flags: int) -> None:
    before = open_files()
    with descriptors("me") as fds:
        client.send(message(Command.REGION_READ, bytes(20), flags=flags), fds)
        assert client.is_silent()
    assert leaked_since(before) == []
    assert client.read(0, 0) == 0


# VERSION.


def version(text: bytes = b"", major: int = 0, minor: int = 0) -> bytes:
    return struct.pack("<HH", major, minor) + text


def capabilities(text: str) -> bytes:
    return version(b'{"capabilities":{' + text.encode() + b"}}\0")


BAD_VERSIONS = {
    "no payload": b"",
    "1 byte": b"\0",
    "3 bytes": bytes(3),
    "major 1": version(major=1),
    "major 0xffff": version(major=0xFFFF, minor=2),
    "no NUL": version(b"{}"),
    "empty text": version(b"\0"),
    "unfinished": version(b"{\0"),
    "a quote": version(b'"\0'),
    "not UTF-8": version(b'{"a":"\xff"}\0'),
    "two texts": version(b"{}\0{}\0"),
    "an array": version(b"[]\0"),
    "a number": version(b"1\0"),
    "null": version(b"null\0"),
    "a hundred thousand brackets": version(b"[" * 100_000 + b"\0"),
    "capabilities an array": version(b'{"capabilities":[]}\0'),
    "capabilities null": version(b'{"capabilities":null}\0'),
    "max_msg_fds a string": capabilities('"max_msg_fds":"8"'),
    "max_msg_fds a float": capabilities('"max_msg_fds":8.0'),
    "max_msg_fds true": capabilities('"max_msg_fds":true'),
    "max_msg_fds -1": capabilities('"max_msg_fds":-1'),
    "max_msg_fds 1025": capabilities('"max_msg_fds":1025'),
    "max_data_xfer_size a string": capabilities('"max_data_xfer_size":"1"'),
    "max_data_xfer_size true": capabilities('"max_data_xfer_size":true'),
    "migration a number": capabilities('"migration":1'),
    "migration.pgsize a string": capabilities('"migration":{"pgsize":"4096"}'),
    "twin_socket true": capabilities('"twin_socket":true'),
    "twin_socket.supported 1": capabilities('"twin_socket":{"supported":1}'),
    "write_multiple 1": capabilities('"write_multiple":1'),
}


@pytest.mark.parametrize("name", BAD_VERSIONS)
@pytest.mark.parametrize("no_reply", [False, True])
def test_a_bad_version_is_answered_and_closed(name: str, no_reply: bool) -> None:
    with memory_session(make_device()) as client:
        client.send(message(Command.VERSION, BAD_VERSIONS[name], message_id=7, no_reply=no_reply))
        assert client.receive().header == Header(7, Command.VERSION, 16, 0x21, EINVAL)
        assert client.is_cut_off()


def test_version_with_a_descriptor_is_answered_and_closed() -> None:
    before = open_files()
    with memory_session(make_device()) as client, descriptors("m") as fds:
        client.send(message(Command.VERSION, version(b"{}\0")), fds)
        assert client.receive().header == Header(1, Command.VERSION, 16, 0x21, EINVAL)
        assert client.is_cut_off()
    assert leaked_since(before) == []


@pytest.mark.parametrize("command", [0, 2, 4, 9, 10, 13, 99])
def test_anything_before_version_is_answered_and_closed(command: int) -> None:
    before = open_files()
    with memory_session(make_device()) as client, descriptors("m") as fds:
        client.send(message(command, GOOD_MAP), fds)
        assert client.receive().header == Header(1, command, 16, 0x21, EINVAL)
        assert client.is_cut_off()
    assert leaked_since(before) == []


GOOD_VERSIONS = {
    "SPDK's: no text": version(minor=1),
    "nothing in it": version(b"{}\0"),
    "no capabilities": capabilities(""),
    "unknown keys": version(b'{"capabilities":{"new":[1,{"a":null}]},"also":"new"}\0'),
    "no descriptors": capabilities('"max_msg_fds":0'),
    "1024 descriptors": capabilities('"max_msg_fds":1024'),
    "no data at all": capabilities('"max_data_xfer_size":0'),
    "a negative amount": capabilities('"max_data_xfer_size":-5'),
    "a huge amount": capabilities('"max_data_xfer_size":123456789012345678901234567890'),
    "another page size": capabilities('"migration":{"pgsize":65536}'),
    "a newer minor": version(b"{}\0", minor=0xFFFF),
}


@pytest.mark.parametrize("name", GOOD_VERSIONS)
def test_a_version_that_is_odd_but_right(name: str) -> None:
    with memory_session(make_device()) as client:
        reply = client.request(Command.VERSION, GOOD_VERSIONS[name])
        assert reply.error == 0
        assert reply.payload.endswith(b"\0")
        assert client.read(0, 0) == 0


# Descriptors the kernel could not deliver.


@pytest.mark.parametrize("blocking", [False, True])
def test_lost_descriptors_end_the_session(blocking: bool) -> None:
    device = make_device()
    loop = EventLoop()
    device.attach(loop)
    ours, theirs = socket.socketpair()
    with RawClient(ours) as client, contextlib.closing(Session(device, theirs)) as session:
        client.send(message(Command.VERSION, bytes(4)))
        session.receive()
        client.receive()
        fd = os.eventfd(0)
        # An unnoticed loss would turn this into "de-assign".
        client.send(message(Command.DEVICE_SET_IRQS, set_irqs(TRIGGER | EVENTFD, MSIX, 0, 1), message_id=5), [fd])
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_files()), limits[1]))
        filler = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    filler.append(os.dup(fd))
            receive = (lambda: session.receive_blocking(loop)) if blocking else session.receive
            with pytest.raises(ConnectionClosedError, match="file descriptors were lost"):
                receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            close_all([*filler, fd])
        assert client.receive().header.error == EINVAL
    device.detach()
    loop.close()

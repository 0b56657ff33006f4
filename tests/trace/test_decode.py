from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vfio_user.protocol.constants import (
    Command,
    DeviceFlags,
    DmaMapFlags,
    DmaUnmapFlags,
    HeaderFlags,
    IoEventFdFlags,
    IrqInfoFlags,
    IrqSetFlags,
    RegionFlags,
)
from vfio_user.protocol.device import DeviceInfo, DeviceInfoRequest
from vfio_user.protocol.dirty_pages import BitmapHeader, BitmapRange, DirtyPages, DirtyPagesFlags
from vfio_user.protocol.dma import DmaMap, DmaUnmap
from vfio_user.protocol.feature import (
    DeviceFeature,
    DirtyReport,
    DmaLoggingStart,
    Feature,
    FeatureFlags,
    MigrationFlags,
    MigrationStateData,
    MigrationSupport,
)
from vfio_user.protocol.header import Header, command_header, error_reply, reply_header
from vfio_user.protocol.irq import IrqInfo, IrqInfoRequest, SetIrqs
from vfio_user.protocol.migration import MigDataRead, MigDataReadReply, MigDataWrite, MigrationState
from vfio_user.protocol.region import (
    MappableArea,
    MultiWrite,
    RegionAccess,
    RegionInfo,
    RegionInfoRequest,
    RegionWriteMulti,
    WriteMultiReply,
)
from vfio_user.protocol.region_io_fds import IoEventFd, IoRegionFd, RegionIoFds, RegionIoFdsRequest, Shadow
from vfio_user.protocol.version import VersionMessage
from vfio_user.trace.decode import decode_message
from vfio_user.trace.names import RegionNames

RW = RegionFlags.READ | RegionFlags.WRITE


class Named(RegionNames):
    def registers(self, region: int, offset: int, size: int, *, writing: bool) -> str:
        return f"r{region}.{offset}"

    def values(self, region: int, offset: int, size: int, value: int, *, writing: bool) -> str:
        return f"r{region}.{offset} {'<-' if writing else '->'} {value}"


def command(kind: int, payload: bytes = b"", *, no_reply: bool = False) -> bytes:
    return command_header(7, kind, len(payload), no_reply=no_reply) + payload


def reply(kind: int, payload: bytes = b"") -> bytes:
    return reply_header(7, kind, len(payload)) + payload


def line(message: bytes, fds: int = 0) -> str:
    return decode_message(message, fds).line


def access(region: int, offset: int, count: int, data: bytes = b"") -> bytes:
    return RegionAccess(offset, region, count).encode() + data


def feature(number: int, operation: FeatureFlags, data: bytes = b"") -> bytes:
    return DeviceFeature(number, operation, 8 + len(data)).encode() + data


COMMANDS: list[tuple[int, bytes, str]] = [
    (Command.VERSION, VersionMessage(0, 1, None).encode(), "VERSION 0.1 without capabilities"),
    (Command.VERSION, VersionMessage(0, 1, {"max_msg_fds": 8}).encode(), "VERSION 0.1 max_msg_fds 8"),
    (
        Command.DMA_MAP,
        DmaMap(DmaMapFlags.READ | DmaMapFlags.WRITE, 0x1000, 0x8000, 0x2000).encode(),
        "DMA_MAP IOVA [0x8000, 0xa000) READ|WRITE at fd offset 0x1000",
    ),
    (Command.DMA_UNMAP, DmaUnmap(DmaUnmapFlags(0), 0x8000, 0x2000).encode(), "DMA_UNMAP IOVA [0x8000, 0xa000)"),
    (Command.DMA_UNMAP, DmaUnmap(DmaUnmapFlags.ALL, 0, 0).encode(), "DMA_UNMAP everything"),
    (
        Command.DMA_UNMAP,
        DmaUnmap(DmaUnmapFlags.GET_DIRTY_BITMAP, 0, 0x1000).encode(),
        "DMA_UNMAP IOVA [0x0, 0x1000) GET_DIRTY_BITMAP",
    ),
    (Command.DEVICE_GET_INFO, DeviceInfoRequest().encode(), "DEVICE_GET_INFO"),
    (Command.DEVICE_GET_REGION_INFO, RegionInfoRequest(6).encode(), "DEVICE_GET_REGION_INFO ROM"),
    (Command.DEVICE_GET_IRQ_INFO, IrqInfoRequest(2).encode(), "DEVICE_GET_IRQ_INFO MSIX"),
    (
        Command.DEVICE_SET_IRQS,
        SetIrqs(IrqSetFlags.ACTION_TRIGGER | IrqSetFlags.DATA_EVENTFD, 2, 1, 3).encode(),
        "DEVICE_SET_IRQS MSIX trigger eventfd vectors [1, 4)",
    ),
    (
        Command.DEVICE_SET_IRQS,
        SetIrqs(IrqSetFlags.ACTION_TRIGGER | IrqSetFlags.DATA_NONE, 0, 0, 0).encode(),
        "DEVICE_SET_IRQS INTX disable",
    ),
    (Command.REGION_READ, access(0, 0x10, 4), "REGION_READ BAR0+0x10, 4 bytes"),
    (Command.REGION_WRITE, access(7, 4, 2, b"\x06\x00"), "REGION_WRITE CONFIG+0x4 = 0x6"),
    (Command.REGION_WRITE, access(0, 4, 4, b"\x06"), "REGION_WRITE BAR0+0x4, 4 bytes announced, 1 here: 0x6"),
    (
        Command.REGION_WRITE_MULTI,
        RegionWriteMulti((MultiWrite(8, 0, 4, b"\1" + bytes(7)), MultiWrite(12, 0, 1, bytes(8)))).encode(),
        "REGION_WRITE_MULTI 2 writes: BAR0+0x8 = 0x1, ...",
    ),
    (Command.DMA_READ, (0x1000).to_bytes(8, "little") + (16).to_bytes(8, "little"), "DMA_READ IOVA [0x1000, 0x1010)"),
    (Command.DEVICE_RESET, b"", "DEVICE_RESET"),
    (
        Command.DEVICE_FEATURE,
        (24).to_bytes(4, "little") + (0x10002).to_bytes(4, "little") + bytes(8),
        "DEVICE_FEATURE get MIG_DEVICE_STATE",
    ),
    (Command.DEVICE_GET_REGION_IO_FDS, RegionIoFdsRequest(2).encode(), "DEVICE_GET_REGION_IO_FDS BAR2"),
    (Command.DIRTY_PAGES, DirtyPages(DirtyPagesFlags.START).encode(), "DIRTY_PAGES START"),
    (
        Command.DIRTY_PAGES,
        DirtyPages(DirtyPagesFlags.GET_BITMAP, BitmapRange(0x1000, 0x8000, 4096, 8), 48).encode(),
        "DIRTY_PAGES GET_BITMAP [0x1000, 0x9000) by 4096 bytes",
    ),
    (
        Command.DMA_UNMAP,
        DmaUnmap(DmaUnmapFlags.GET_DIRTY_BITMAP, 0, 0x1000).encode() + BitmapHeader(4096, 8).encode(),
        "DMA_UNMAP IOVA [0x0, 0x1000) GET_DIRTY_BITMAP by 4096 bytes",
    ),
    (Command.DEVICE_FEATURE, feature(Feature.MIGRATION, FeatureFlags.GET), "DEVICE_FEATURE get MIGRATION"),
    (
        Command.DEVICE_FEATURE,
        feature(Feature.MIG_DEVICE_STATE, FeatureFlags.SET, MigrationStateData(MigrationState.STOP_COPY).encode()),
        "DEVICE_FEATURE set MIG_DEVICE_STATE STOP_COPY",
    ),
    (
        Command.DEVICE_FEATURE,
        feature(Feature.MIG_DEVICE_STATE, FeatureFlags.SET | FeatureFlags.PROBE, bytes(4)),
        "DEVICE_FEATURE set|probe MIG_DEVICE_STATE",
    ),
    (
        Command.DEVICE_FEATURE,
        feature(Feature.DMA_LOGGING_START, FeatureFlags.SET, DmaLoggingStart(4096, ((0, 0x1000),)).encode()),
        "DEVICE_FEATURE set DMA_LOGGING_START of [0x0, 0x1000) by 4096 bytes",
    ),
    (
        Command.DEVICE_FEATURE,
        feature(Feature.DMA_LOGGING_START, FeatureFlags.SET, DmaLoggingStart(4096).encode()),
        "DEVICE_FEATURE set DMA_LOGGING_START of everything by 4096 bytes",
    ),
    (
        Command.DEVICE_FEATURE,
        feature(Feature.DMA_LOGGING_STOP, FeatureFlags.SET),
        "DEVICE_FEATURE set DMA_LOGGING_STOP",
    ),
    (
        Command.DEVICE_FEATURE,
        feature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, DirtyReport(0x1000, 0x2000, 4096).encode()),
        "DEVICE_FEATURE get DMA_LOGGING_REPORT [0x1000, 0x3000)",
    ),
    (Command.DEVICE_FEATURE, feature(77, FeatureFlags.GET, b"abc"), "DEVICE_FEATURE get feature 77"),
    (Command.MIG_DATA_READ, MigDataRead(4096).encode(), "MIG_DATA_READ up to 4096 bytes"),
    (Command.MIG_DATA_WRITE, MigDataWrite(b"s").encode(), "MIG_DATA_WRITE 1 byte"),
    (99, b"abc", "command 99 3 bytes"),
]

REPLIES: list[tuple[int, bytes, str]] = [
    (
        Command.DEVICE_GET_INFO,
        DeviceInfo(DeviceFlags.RESET | DeviceFlags.PCI, 9, 5).encode(),
        "DEVICE_GET_INFO RESET|PCI, 9 regions, 5 kinds of interrupt",
    ),
    (
        Command.DEVICE_GET_REGION_INFO,
        RegionInfo(0, RW, 0x1000).encode(32)[0],
        "DEVICE_GET_REGION_INFO BAR0 size 0x1000 READ|WRITE",
    ),
    (Command.DEVICE_GET_REGION_INFO, RegionInfo(8).encode(32)[0], "DEVICE_GET_REGION_INFO VGA absent"),
    (
        Command.DEVICE_GET_IRQ_INFO,
        IrqInfo(2, IrqInfoFlags.EVENTFD, 4).encode(),
        "DEVICE_GET_IRQ_INFO MSIX 4 vectors EVENTFD",
    ),
    (
        Command.DEVICE_GET_IRQ_INFO,
        IrqInfo(0, IrqInfoFlags.EVENTFD, 1).encode(),
        "DEVICE_GET_IRQ_INFO INTX 1 vector EVENTFD",
    ),
    (Command.DEVICE_GET_IRQ_INFO, IrqInfo(4, IrqInfoFlags(0), 0).encode(), "DEVICE_GET_IRQ_INFO REQ absent"),
    (Command.REGION_READ, access(0, 0x10, 4, b"\xed\0\0\1"), "REGION_READ BAR0+0x10 = 0x10000ed"),
    (Command.REGION_READ, access(0, 0, 3, b"\1\2\3"), "REGION_READ BAR0+0x0 = 01 02 03"),
    (Command.REGION_WRITE, access(9, 4, 1), "REGION_WRITE MIGRATION+0x4, 1 byte"),
    (Command.REGION_WRITE_MULTI, WriteMultiReply(2).encode(), "REGION_WRITE_MULTI 2 done"),
    (
        Command.DEVICE_GET_REGION_IO_FDS,
        RegionIoFds.of(0, (IoEventFd(8, 4, 0, IoEventFdFlags.DATAMATCH, 5),)).encode(999)[0],
        "DEVICE_GET_REGION_IO_FDS BAR0 ioeventfd [0x8, 0xc) by fd 0 DATAMATCH 0x5",
    ),
    (
        Command.DEVICE_GET_REGION_IO_FDS,
        RegionIoFds.of(0, (IoEventFd(8, 0, 1), IoRegionFd(0, 8, 0))).encode(999)[0],
        "DEVICE_GET_REGION_IO_FDS BAR0 ioeventfd 0x8 of any size by fd 1, and 1 more",
    ),
    (
        Command.DEVICE_GET_REGION_IO_FDS,
        RegionIoFds.of(0, (IoEventFd(8, 4, 0), IoEventFd(12, 4, 0))).encode(16)[0],
        "DEVICE_GET_REGION_IO_FDS BAR0 2 entries need room for 96 bytes",
    ),
    (Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds(3).encode(16)[0], "DEVICE_GET_REGION_IO_FDS BAR3 none"),
    (
        Command.DIRTY_PAGES,
        DirtyPages(DirtyPagesFlags.GET_BITMAP, BitmapRange(0, 0x8000, 4096, 8), 48).encode() + b"\x28" + bytes(7),
        "DIRTY_PAGES GET_BITMAP [0x0, 0x8000) 2 pages dirty",
    ),
    (Command.DIRTY_PAGES, b"", "DIRTY_PAGES"),
    (
        Command.DMA_UNMAP,
        DmaUnmap(DmaUnmapFlags.GET_DIRTY_BITMAP, 0, 0x1000).encode()
        + BitmapHeader(4096, 8).encode()
        + b"\1"
        + bytes(7),
        "DMA_UNMAP IOVA [0x0, 0x1000) GET_DIRTY_BITMAP 1 page dirty",
    ),
    (
        Command.DEVICE_FEATURE,
        feature(Feature.MIGRATION, FeatureFlags.GET, MigrationSupport(MigrationFlags.STOP_COPY).encode()),
        "DEVICE_FEATURE get MIGRATION STOP_COPY",
    ),
    (
        Command.DEVICE_FEATURE,
        feature(Feature.MIG_DEVICE_STATE, FeatureFlags.GET, MigrationStateData(MigrationState.RUNNING).encode()),
        "DEVICE_FEATURE get MIG_DEVICE_STATE RUNNING",
    ),
    (
        Command.DEVICE_FEATURE,
        feature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, DirtyReport(0, 0x2000, 4096).encode() + b"\2" + bytes(7)),
        "DEVICE_FEATURE get DMA_LOGGING_REPORT [0x0, 0x2000) 1 page dirty",
    ),
    (Command.MIG_DATA_READ, MigDataReadReply(b"state").encode(), "MIG_DATA_READ 5 bytes"),
    (Command.MIG_DATA_WRITE, b"", "MIG_DATA_WRITE"),
    (Command.DMA_READ, struct.pack("<QQ4s", 0x1000, 4, b"abcd"), "DMA_READ IOVA [0x1000, 0x1004)"),
    (Command.DMA_WRITE, b"", "DMA_WRITE"),
    (Command.DMA_WRITE, struct.pack("<QI", 0x1000, 4), "DMA_WRITE IOVA [0x1000, 0x1004)"),
    (Command.DMA_WRITE, struct.pack("<QQ", 0x1000, 4), "DMA_WRITE IOVA [0x1000, 0x1004)"),
    (Command.DMA_MAP, b"", "DMA_MAP"),
    (Command.DEVICE_SET_IRQS, b"", "DEVICE_SET_IRQS"),
]


@pytest.mark.parametrize(("kind", "payload", "expected"), COMMANDS, ids=[case[2] for case in COMMANDS])
def test_commands(kind: int, payload: bytes, expected: str) -> None:
    assert line(command(kind, payload)) == f"#7 {expected}"


@pytest.mark.parametrize(("kind", "payload", "expected"), REPLIES, ids=[case[2] for case in REPLIES])
def test_replies(kind: int, payload: bytes, expected: str) -> None:
    assert line(reply(kind, payload)) == f"#7 {expected}"


def test_every_line_fits_a_terminal() -> None:
    assert max(len(case[2]) for case in COMMANDS + REPLIES) < 80


def test_descriptors_are_counted() -> None:
    assert line(command(Command.DEVICE_RESET), 1) == "#7 DEVICE_RESET (1 fd)"
    assert line(command(Command.DEVICE_RESET), 3) == "#7 DEVICE_RESET (3 fds)"


def test_posted_commands_say_so() -> None:
    assert line(command(Command.REGION_WRITE, access(0, 0, 1, b"\5"), no_reply=True)).endswith("= 0x5, posted")
    assert line(command(Command.DEVICE_RESET, no_reply=True)) == "#7 DEVICE_RESET posted"


def test_errors_are_named() -> None:
    decoded = decode_message(error_reply(7, Command.REGION_READ, errno.EINVAL))
    assert decoded.line == "#7 REGION_READ failed: EINVAL (Invalid argument)"
    assert decoded.is_failure
    unknown = Header(7, 9, 16, HeaderFlags.REPLY | HeaderFlags.ERROR, 0xFFFFFFFF).encode()
    assert line(unknown) == "#7 REGION_READ failed: errno 4294967295"


def test_registers_are_named() -> None:
    def named(message: bytes) -> str:
        return decode_message(message, names=Named()).line

    assert named(command(Command.REGION_READ, access(0, 16, 4))) == "#7 REGION_READ BAR0+0x10 r0.16, 4 bytes"
    assert named(reply(Command.REGION_READ, access(0, 16, 1, b"\5"))) == "#7 REGION_READ BAR0+0x10 r0.16 -> 5"
    assert named(command(Command.REGION_WRITE, access(0, 16, 1, b"\5"))) == "#7 REGION_WRITE BAR0+0x10 r0.16 <- 5"
    assert named(command(Command.REGION_READ, access(7, 0, 256))) == "#7 REGION_READ CONFIG+0x0, 256 bytes"


def test_a_line_shows_only_the_fields_that_hold_something() -> None:
    class Wide(RegionNames):
        def values(self, region: int, offset: int, size: int, value: int, *, writing: bool) -> str:
            return "a = 0x10 (x=0 y=1 z=0x0), b = 0x0 (u=0 v=0)"

    decoded = decode_message(reply(Command.REGION_READ, access(0, 0, 8, bytes(8))), names=Wide())
    assert decoded.line == "#7 REGION_READ BAR0+0x0 a = 0x10 (y=1), b = 0x0"
    assert decoded.fields[-1] == ("registers", "a = 0x10 (x=0 y=1 z=0x0), b = 0x0 (u=0 v=0)")


def test_fields() -> None:
    info = RegionInfo(0, RW, 0x3000, 0x100, (MappableArea(0x1000, 0x1000),)).encode(256)[0]
    assert decode_message(reply(Command.DEVICE_GET_REGION_INFO, info)).fields == [
        ("message_size", "80"),
        ("flags", "reply"),
        ("index", "BAR0"),
        ("flags", "READ|WRITE|CAPS"),
        ("size", "0x3000"),
        ("fd_offset", "0x100"),
        ("mappable", "[0x1000, 0x2000)"),
    ]


def test_fields_of_many_writes_are_cut_off() -> None:
    writes = tuple(MultiWrite(4 * n, 0, 4, bytes(8)) for n in range(40))
    fields = decode_message(command(Command.REGION_WRITE_MULTI, RegionWriteMulti(writes).encode())).fields
    assert fields[-1] == ("...", "8 writes more")
    assert fields[2] == ("write 0", "BAR0+0x0 = 0x0")


def fields_of(message: bytes) -> dict[str, str]:
    return dict(decode_message(message).fields)


def test_fields_of_a_shadow() -> None:
    entry = IoEventFd(0x1000, 4, 1, shadow=Shadow(0, 0x20))
    fields = fields_of(reply(Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds.of(0, (entry,)).encode(999)[0]))
    assert fields["entry 0"] == "ioeventfd [0x1000, 0x1004) by fd 1, shadow at 0x20 of fd 0"


def test_fields_of_a_bitmap_say_where_the_first_dirty_page_is() -> None:
    wanted = BitmapRange(0x10000, 0x8000, 4096, 8)
    payload = DirtyPages(DirtyPagesFlags.GET_BITMAP, wanted, 48).encode() + b"\x28" + bytes(7)
    fields = fields_of(reply(Command.DIRTY_PAGES, payload))
    assert fields["bitmap"] == "8 bytes, 2 pages dirty"
    assert fields["first dirty"] == "page 3, at 0x3000 of the range"


def test_long_lists_are_cut_off() -> None:
    entries = tuple(IoEventFd(4 * n, 4, 0) for n in range(40))
    fields = fields_of(reply(Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds.of(0, entries).encode(9999)[0]))
    assert fields["..."] == "8 entries more"
    ranges = tuple((n << 12, 4096) for n in range(40))
    message = feature(Feature.DMA_LOGGING_START, FeatureFlags.SET, DmaLoggingStart(4096, ranges).encode())
    assert fields_of(command(Command.DEVICE_FEATURE, message))["..."] == "8 ranges more"
    areas = tuple(MappableArea(n << 13, 4096) for n in range(40))
    info = RegionInfo(0, RW, 1 << 20, 0, areas, (0x8086, 1)).encode(9999)[0]
    fields = fields_of(reply(Command.DEVICE_GET_REGION_INFO, info))
    assert fields["..."] == "8 areas more"
    assert fields["type"] == "0x8086, subtype 0x1"


def test_data_of_features_that_cannot_be_read_says_why() -> None:
    nonsense = feature(Feature.MIG_DEVICE_STATE, FeatureFlags.SET, b"\xff" * 8)
    assert "malformed: feature MIG_DEVICE_STATE: 4294967295 is no migration state" in line(
        command(Command.DEVICE_FEATURE, nonsense)
    )


def test_json_of_the_peer_is_escaped_and_elided() -> None:
    nasty = VersionMessage(0, 0, {"a\x1b[31m": "\x1b]0;x\x07", "b": ["y" * 100]})
    decoded = decode_message(command(Command.VERSION, nasty.encode()))
    assert decoded.line.isprintable()
    assert len(decoded.line) < 80
    assert all(name.isprintable() and value.isprintable() for name, value in decoded.fields)
    assert dict(decoded.fields)[r"a\x1b[31m"] == r'"\u001b]0;x\u0007"'


def test_a_payload_that_cannot_be_read_says_why() -> None:
    decoded = decode_message(command(Command.DMA_MAP, b"\1\2\3"))
    assert decoded.line == "#7 DMA_MAP malformed: DMA_MAP: a payload of 3 bytes is shorter than the 32 it needs"
    assert decoded.is_failure
    assert ("payload", "01 02 03") in decoded.fields


def test_less_than_a_header() -> None:
    assert line(b"\1\2").endswith("malformed: 2 bytes are less than the 16 of a header")


def test_header_flags() -> None:
    message = Header(7, 13, 16, 0x40 | HeaderFlags.NO_REPLY, 0).encode()
    assert ("flags", "command|no_reply|0x40") in decode_message(message).fields
    assert ("flags", "type 5") in decode_message(Header(7, 13, 16, 5, 0).encode()).fields


@example(16, 1, DeviceFeature(8, FeatureFlags.GET, 8).encode() + bytes(40), 0)
@given(st.integers(0, 20), st.sampled_from([0, 1, 0x10, 0x21, 0xFF]), st.binary(max_size=120), st.integers(0, 3))
def test_no_bytes_make_it_raise(kind: int, flags: int, payload: bytes, fds: int) -> None:
    message = Header(1, kind, 16 + len(payload), flags, 5).encode() + payload
    decoded = decode_message(message, fds, Named())
    assert decoded.line.isprintable()
    assert all(f"{name}{value}".isprintable() for name, value in decoded.fields)

from __future__ import annotations

import io

import pytest

from vfio_user.protocol.dma import DmaRead, DmaReadReply
from vfio_user.protocol.header import Header, command_header, error_reply, reply_header
from vfio_user.protocol.region import RegionAccess
from vfio_user.server.session import Observer
from vfio_user.trace.observer import Detail, TraceObserver, duration_text

READ = RegionAccess(4, 0, 4).encode()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def converse(detail: Detail = Detail.LINES, label: str = "") -> list[str]:
    """One read and its reply, a quarter of a second later an error, and the end."""
    stream, clock = io.StringIO(), Clock()
    observer: Observer = TraceObserver(stream, detail, label=label, clock=clock)
    observer.command(Header.decode(command_header(1, 9, 16)), READ, 0)
    clock.now += 0.25
    observer.reply(Header.decode(reply_header(1, 9, 20)), READ + b"\1\0\0\0", 0, 23e-6)
    observer.reply(Header.decode(error_reply(2, 9, 22)), b"", 0, 5e-3)
    observer.closed()
    return stream.getvalue().splitlines()


def test_one_line_a_message() -> None:
    assert converse() == [
        " 0.000000 < #1 REGION_READ BAR0+0x4, 4 bytes",
        " 0.250000 > #1 REGION_READ BAR0+0x4 = 0x1  23 us",
        " 0.250000 ! #2 REGION_READ failed: EINVAL (Invalid argument)  5.0 ms",
        " 0.250000 = connection closed",
    ]


def test_the_servers_own_commands_go_the_other_way() -> None:
    stream, clock = io.StringIO(), Clock()
    observer: Observer = TraceObserver(stream, clock=clock)
    observer.own_command(Header.decode(command_header(7, 11, 16)), DmaRead(0x1000, 4).encode())
    reply = DmaReadReply(0x1000, b"abcd").encode()
    observer.own_reply(Header.decode(reply_header(7, 11, 20)), reply, 23e-6)
    observer.own_reply(Header.decode(error_reply(8, 12, 19)), b"", 5e-3)
    observer.own_reply(Header.decode(reply_header(9, 11, 20)), reply, None)
    lines = stream.getvalue().splitlines()
    starts = [" > #7 DMA_READ ", " < #7 DMA_READ ", " ! #8 DMA_WRITE", " < #9 DMA_READ "]
    assert [line[9:24] for line in lines] == starts
    assert lines[1].endswith("  23 us")
    assert lines[2].endswith("ENODEV (No such device)  5.0 ms")
    assert lines[3].endswith("  answers nothing: dropped")


def test_labels_tell_devices_apart() -> None:
    assert converse(label="edu")[0] == " 0.000000 < edu: #1 REGION_READ BAR0+0x4, 4 bytes"


def test_fields_are_aligned_below() -> None:
    assert converse(Detail.FIELDS)[1:6] == [
        "            message_size  32",
        "            flags         command",
        "            region        BAR0",
        "            offset        0x4",
        "            count         4",
    ]


def test_bytes_come_last() -> None:
    lines = converse(Detail.BYTES)
    assert lines[6].startswith("            0000  01 00 09 00 20 00 00 00  00 00 00 00")
    assert lines[7].startswith("            0010  04 00")


def test_each_connection_starts_at_zero() -> None:
    stream, clock = io.StringIO(), Clock()
    observer = TraceObserver(stream, clock=clock)
    for _ in range(2):
        observer.command(Header.decode(command_header(1, 13, 0)), b"", 0)
        clock.now += 1
        observer.closed()
    assert [line[:9] for line in stream.getvalue().splitlines()] == [" 0.000000", " 1.000000"] * 2


def test_a_stream_that_is_gone_ends_the_trace_and_nothing_else() -> None:
    stream = io.StringIO()
    observer = TraceObserver(stream)
    stream.close()
    observer.closed()
    observer.command(Header.decode(command_header(1, 13, 0)), b"", 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 us"),
        (23.4e-6, "23 us"),
        (999e-6, "999 us"),
        (0.0012, "1.2 ms"),
        (0.0999, "99.9 ms"),
        (0.5, "500 ms"),
        (1.234, "1.23 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text

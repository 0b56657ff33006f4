"""The message path does exactly what the ordinary way does, whatever comes, however it is cut, and however fast."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.fds import close_all, memory_file
from tests.support.raw_client import Message, RawClient, access, memory_session, message
from vfio_user.errors import Busy, ConnectionClosedError, InvalidAccess
from vfio_user.memory.mapping import AccessMode
from vfio_user.protocol.constants import HEADER_SIZE, Command, IrqIndex
from vfio_user.protocol.header import Header
from vfio_user.protocol.region import ACCESS
from vfio_user.regions import CallbackRegion, Region
from vfio_user.server.device import Device
from vfio_user.server.session import Session
from vfio_user.testing.leaks import leaked_since, open_files

SIZE = 64
NO_REPLY = 0x10


class Recorder(Region):
    """Notes every access; some offsets fail, each in a way of its own."""

    def __init__(self, index: int, calls: list[tuple[object, ...]], size: int = SIZE) -> None:
        self.index = index
        self.calls = calls
        self.size = size

    def read(self, offset: int, size: int) -> int:
        self.calls.append(("read", self.index, offset, size))
        self.fail(offset)
        if offset == 52:
            return 1 << 70  # no integer of any size an access has
        return (offset + 1) * 0x0101_0101_0101_0101 & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append(("write", self.index, offset, size, value))
        self.fail(offset)

    @staticmethod
    def fail(offset: int) -> None:
        if offset == 40:
            raise Busy
        if offset == 44:
            raise RuntimeError("a bug in the device")
        if offset == 48:
            raise MemoryError


class Silent:
    """An observer that only makes every message go the ordinary way."""

    def command(self, header: Header, payload: bytes, fds: int) -> None: ...

    def reply(self, header: Header, payload: bytes, fds: int, seconds: float) -> None: ...

    def own_command(self, header: Header, payload: bytes) -> None: ...

    def own_reply(self, header: Header, payload: bytes, seconds: float | None) -> None: ...

    def closed(self) -> None: ...


class Interrupting(Device):
    """Has INTx, and notes what becomes of it."""

    def __init__(self, calls: list[tuple[object, ...]]) -> None:
        super().__init__(irqs={IrqIndex.INTX: 1})
        self.calls = calls

    def on_irq_mask(self, index: IrqIndex, vectors: Sequence[int], masked: bool) -> None:
        self.calls.append(("irq", index, list(vectors), masked))
        if len(self.calls) % 3 == 0:
            raise Busy


def recording_device(calls: list[tuple[object, ...]], *, interrupting: bool = False) -> Device:
    device = Interrupting(calls) if interrupting else Device()
    device.set_region(0, Recorder(0, calls))
    device.set_region(1, Recorder(1, calls))
    device.set_region(2, CallbackRegion(SIZE, read=lambda offset, size: offset))
    device.set_region(3, CallbackRegion(SIZE, write=lambda offset, size, value: calls.append((3, offset, size, value))))
    return device


@dataclass
class Outcome:
    """What came of a stream: every reply, byte for byte, every call, and how it ended."""

    replies: list[tuple[Header, bytes]]
    calls: list[tuple[object, ...]]
    cut_off: bool


def outcome(stream: bytes, sizes: list[int], *, ordinarily: bool, interrupting: bool = False) -> Outcome:
    """Sends a stream after VERSION, cut into pieces of those sizes, and collects what comes of it."""
    calls: list[tuple[object, ...]] = []
    device = recording_device(calls, interrupting=interrupting)
    with memory_session(device, strict=False, observer=Silent() if ordinarily else None) as client:
        client.negotiate()
        replies: list[tuple[Header, bytes]] = []
        cut_off = False
        at = turn = 0
        try:
            while at < len(stream):
                size = sizes[turn % len(sizes)]
                turn += 1
                with contextlib.suppress(ConnectionClosedError):
                    client.send(stream[at : at + size])
                at += size
                while not client.is_silent():
                    replies.append(client.receive()[:2])
        except EOFError:
            cut_off = True
    return Outcome(replies, calls, cut_off)


regions = st.sampled_from([0, 0, 0, 0, 1, 2, 3, 8, 9, 0xFFFF_FFFF])
offsets = st.sampled_from([0, 4, 40, 44, 48, 52, 56, 60, 61, 64]) | st.integers(0, SIZE + 2) | st.just((1 << 64) - 4)
flags = st.sampled_from([0, 0, 0, NO_REPLY, NO_REPLY, NO_REPLY, 0x20, 0x40, 0x01, 0x11])


@st.composite
def accesses(draw: st.DrawFn) -> bytes:
    """Reads and writes: plain ones mostly, and every way of not being plain."""
    command = draw(st.sampled_from([Command.REGION_READ, Command.REGION_WRITE]))
    count = draw(st.sampled_from([4, 4, 4, 1, 2, 8]) | st.integers(0, 9))
    offset, region = draw(offsets), draw(regions)
    lie = draw(st.sampled_from([0] * 12 + [-1, 1, 4]))
    has_data = (command == Command.REGION_WRITE) != (draw(st.integers(0, 15)) == 0)
    payload = ACCESS.pack(offset, region, count)
    if has_data:
        payload += draw(st.binary(min_size=max(0, count + lie), max_size=max(0, count + lie)))
    return message(command, payload, message_id=draw(st.integers(0, 0xFFFF)), flags=draw(flags))


#: A run of posted writes: what the message path cuts up in one go.
runs = st.builds(
    lambda items: b"".join(
        message(10, access(offset, region, struct.pack("<I", value)), message_id=value & 0xFFFF, flags=NO_REPLY)
        for offset, region, value in items
    ),
    st.lists(
        st.tuples(
            st.sampled_from([0, 4, 8, 60]) | st.sampled_from([0, 4, 8, 40, 44, 61]),
            st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, 9]),
            st.integers(0, 0xFFFF_FFFF),
        ),
        min_size=2,
        max_size=12,
    ),
)

others = st.sampled_from(
    [
        message(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)),
        message(Command.DEVICE_GET_INFO, struct.pack("<IIII", 15, 0, 0, 0)),
        message(Command.DEVICE_GET_INFO, b"", flags=NO_REPLY),
        message(Command.DEVICE_RESET),
        message(Command.DEVICE_RESET, flags=NO_REPLY),
        message(Command.VERSION, bytes(4)),
        message(Command.DMA_READ, bytes(16)),
        message(99, bytes(20)),
        message(99, bytes(20), flags=NO_REPLY),
        message(0),
        message(Command.REGION_READ),
        message(Command.REGION_WRITE, bytes(15), flags=NO_REPLY),
        message(Command.REGION_READ, ACCESS.pack(0, 0, 32)),
        message(Command.REGION_WRITE, access(3, 0, bytes(range(30)))),
        message(Command.REGION_READ, ACCESS.pack(0, 0, 4), flags=1),
        message(
            Command.REGION_WRITE_MULTI,
            struct.pack("<QQII8sQII8s", 2, 0, 0, 4, b"a" * 8, 8, 1, 2, b"b" * 8),
            flags=NO_REPLY,
        ),
    ]
)

#: What unmasks INTx, and what nearly does.
set_irqs = st.builds(
    lambda words, flags, extra, message_id: message(
        Command.DEVICE_SET_IRQS, struct.pack("<5I", *words) + extra, message_id=message_id, flags=flags
    ),
    st.one_of(
        st.just((20, 0x11, 0, 0, 1)),
        st.tuples(
            st.sampled_from([20, 19, 24]),
            st.sampled_from([0x11, 0x09, 0x21, 0x12]),
            st.integers(0, 5),
            st.integers(0, 1),
            st.integers(0, 2),
        ),
    ),
    st.sampled_from([0, 0, 0, 0x10, 0x20]),
    st.sampled_from([b"", b"", b"", b"\1"]),
    st.integers(0, 0xFFFF),
)

#: What ends the connection.
deadly = st.sampled_from(
    [
        message(Command.REGION_READ, bytes(16), size=15),
        message(Command.REGION_READ, bytes(16), size=0x7FFF_FFFF),
        message(Command.REGION_READ, ACCESS.pack(0, 0, 4), flags=2),
        message(Command.REGION_WRITE, access(0, 0, bytes(4)), flags=0x1F),
        message(Command.REGION_WRITE, access(0, 0, bytes(4)), size=32),
        b"\xff" * 40,
        b"\0" * 36,
    ]
)

streams = st.tuples(
    st.lists(accesses() | accesses() | runs | others | set_irqs, max_size=14),
    st.sampled_from([b""] * 6) | deadly,
    st.booleans(),
).map(lambda parts: (b"".join(parts[0]) + parts[1])[: -3 if parts[2] else None])
chunks = st.lists(st.sampled_from([1, 3, 16, 32, 35, 36, 37, 72, 108, 109, 4096]), min_size=1, max_size=6)


@given(streams, chunks, st.booleans())
def test_the_same_comes_of_every_stream_as_the_ordinary_way(
    stream: bytes, sizes: list[int], interrupting: bool
) -> None:
    ordinary = outcome(stream, [4096], ordinarily=True, interrupting=interrupting)
    assert outcome(stream, sizes, ordinarily=False, interrupting=interrupting) == ordinary


@pytest.mark.parametrize("interrupting", [True, False])
@pytest.mark.parametrize(
    ("words", "flags", "extra"),
    [
        ((20, 0x11, 0, 0, 1), 0, b""),
        ((19, 0x11, 0, 0, 1), 0, b""),
        ((24, 0x11, 0, 0, 1), 0, b"\0\0\0\0"),
        ((20, 0x12, 0, 0, 1), 0, b"\1"),
        ((20, 0x09, 0, 0, 1), 0, b""),
        ((20, 0x21, 0, 0, 1), 0, b""),
        ((20, 0x11, 1, 0, 1), 0, b""),
        ((20, 0x11, 4, 0, 1), 0, b""),
        ((20, 0x11, 0, 1, 1), 0, b""),
        ((20, 0x11, 0, 0, 0), 0, b""),
        ((20, 0x11, 0, 0, 2), 0, b""),
        ((20, 0x11, 0, 0, 1), NO_REPLY, b""),
        ((20, 0x11, 0, 0, 1), 0x20, b""),
        ((20, 0x11, 0, 0, 1), 0, b"\1"),
    ],
)
def test_intx_is_unmasked_as_in_the_ordinary_way(
    words: tuple[int, ...], flags: int, extra: bytes, interrupting: bool
) -> None:
    """That, and nothing that nearly says so; several times, as the device of the test refuses it now and then."""
    unmask = message(Command.DEVICE_SET_IRQS, struct.pack("<5I", *words) + extra, message_id=7, flags=flags)
    stream = (unmask + message(Command.REGION_READ, ACCESS.pack(0, 0, 4))) * 4
    ordinary = outcome(stream, [4096], ordinarily=True, interrupting=interrupting)
    for size in (4096, 36, 20):
        assert outcome(stream, [size], ordinarily=False, interrupting=interrupting) == ordinary


def test_what_is_too_short_to_unmask_is_not_read_on_into_the_next_message() -> None:
    short = message(Command.DEVICE_SET_IRQS, struct.pack("<4I", 20, 0x11, 0, 0))
    stream = short + message(0, message_id=1)
    ordinary = outcome(stream, [4096], ordinarily=True, interrupting=True)
    assert outcome(stream, [4096], ordinarily=False, interrupting=True) == ordinary
    assert ordinary.replies[0][0].error == errno.EINVAL


def write(offset: int, value: int = 0, *, region: int = 0, posted: bool = True) -> bytes:
    return message(
        Command.REGION_WRITE,
        access(offset, region, struct.pack("<I", value)),
        message_id=value,
        flags=NO_REPLY if posted else 0,
    )


READ = message(Command.REGION_READ, ACCESS.pack(0, 0, 4), message_id=99)
GOOD = [write(4 * n, n) for n in range(8)]

#: What stands at position k of a run of posted writes, and how many of the writes reach a region.
ODD = {
    "device error": (write(40), 1),
    "a bug": (write(44), 1),
    "no such region": (write(0, region=9), 0),
    "beyond the end": (write(61), 0),
    "read only": (write(0, region=2), 0),
    "wants a reply": (write(0, posted=False), 1),
    "a read": (READ, 0),
    "two bytes": (message(Command.REGION_WRITE, access(0, 0, b"ab"), flags=NO_REPLY), 1),
    "no data": (message(Command.REGION_WRITE, access(0, 0, b""), flags=NO_REPLY), 0),
    "odd size": (message(Command.REGION_WRITE, access(0, 0, b"abcde", count=4), flags=NO_REPLY), 0),
    "another command": (message(Command.DEVICE_RESET, flags=NO_REPLY), 0),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("k", range(7))
def test_a_run_with_something_else_in_it(name: str, k: int) -> None:
    odd, calls = ODD[name]
    stream = b"".join([*GOOD[:k], odd, *GOOD[k:6], READ])
    found = outcome(stream, [4096], ordinarily=False)
    assert found == outcome(stream, [4096], ordinarily=True)
    assert len(found.calls) == 6 + calls + 1 + (name == "a read")
    assert found.replies[-1][0].message_id == 99


@pytest.mark.parametrize("cut", range(1, 36))
def test_a_run_cut_off_at_the_end_of_a_reception(cut: int) -> None:
    stream = b"".join(GOOD)
    found = outcome(stream + READ, [36 * 4 + cut], ordinarily=False)
    assert [call[2] for call in found.calls] == [0, 4, 8, 12, 16, 20, 24, 28, 0]
    assert len(found.replies) == 1


def test_a_failing_write_that_wants_no_reply_is_counted_and_not_answered() -> None:
    device = recording_device([])
    ours, theirs = socket.socketpair()
    with RawClient(ours) as client, contextlib.closing(Session(device, theirs)) as session:
        client.send(message(Command.VERSION, bytes(4)))
        session.receive()
        client.receive()
        client.send(write(40) + write(40) + write(40) + write(44) + READ)
        session.receive()
        assert client.receive().header.command == Command.REGION_READ
        assert (session.statistics.dropped_errors, session.statistics.errors) == (4, 0)


def test_any_number_of_messages_in_one_reception() -> None:
    # More than Python's stack would hold, if each went one call deeper.
    number = 5000
    calls: list[tuple[object, ...]] = []
    with memory_session(recording_device(calls)) as client:
        client.negotiate()
        client.send(message(Command.DEVICE_RESET, flags=NO_REPLY) * number + READ)
        assert client.receive().header.message_id == 99
        client.send(message(Command.REGION_READ, ACCESS.pack(0, 0, 3), flags=0) * number)
        assert [client.receive().error for _ in range(number)] == [0] * number
        assert client.is_silent()


def test_a_descriptor_in_the_buffer_stays_with_its_message() -> None:
    device = Device()
    device.set_region(0, Recorder(0, []))
    fd = memory_file(bytes(4096))
    mapping = message(Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x1000, 0x1000))
    with memory_session(device) as client:
        client.negotiate()
        # The first bytes of the mapping come with its descriptor, the rest glued to plain messages.
        client.send(write(0) + mapping[:20], [fd])
        assert client.is_silent()
        client.send(mapping[20:] + write(4) + READ)
        assert client.receive()[:2] == (Header(1, Command.DMA_MAP, 16, 1, 0), b"")
        assert client.receive().header.message_id == 99
        assert device.dma.read(0x1000, 4) == bytes(4)
    close_all([fd])


def test_a_descriptor_of_a_plain_message_is_closed() -> None:
    device = recording_device([])
    fd = memory_file(bytes(4096))
    with memory_session(device) as client:
        client.negotiate()
        before = open_files()
        client.send(write(0)[:20], [fd])
        assert client.is_silent()
        client.send(write(0)[20:] + READ)
        assert client.receive().header.message_id == 99
        assert leaked_since(before) == []
        # ... and is not taken for one of the message that now begins where that one did.
        assert client.map_memory(0x1000, 0x1000, None) == 0
        mapping = device.dma.lookup(0x1000)
        assert mapping is not None
        assert mapping.mode is AccessMode.MESSAGE
    close_all([fd])


def test_the_readers_value_must_fit() -> None:
    with memory_session(recording_device([]), strict=False) as client:
        client.negotiate()
        assert client.read_error(0, 52) == errno.EIO
        assert client.read(0, 4) == 0x0505_0505


def test_a_strict_session_raises_what_the_device_raised() -> None:
    with memory_session(recording_device([]), strict=True) as client:
        client.negotiate()
        assert client.read_error(0, 40) == errno.EBUSY
        with pytest.raises(RuntimeError, match="a bug in the device"):
            client.read(0, 44)


# A client that does not read.


@pytest.fixture
def slow() -> Iterator[tuple[RawClient, Session, list[tuple[object, ...]]]]:
    """A client on a socket that holds next to nothing, and the session on its other end, negotiated."""
    calls: list[tuple[object, ...]] = []
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    session = Session(recording_device(calls), theirs)
    with RawClient(ours) as client:
        client.send(message(Command.VERSION, bytes(4)))
        session.receive()
        client.receive()
        yield client, session, calls
        session.close()


def holds_back(session: Session) -> bool:
    """``wants_to_write``, but no fact that a type checker would carry on from one line to the next."""
    return session.wants_to_write


def replies(client: RawClient, session: Session, number: int) -> list[Message]:
    found = []
    for _ in range(number):
        found.append(client.receive())
        session.flush()
    return found


@pytest.mark.parametrize("count", [4, 3], ids=["plain", "ordinary"])
def test_nothing_is_lost_on_a_client_that_does_not_read(
    slow: tuple[RawClient, Session, list[tuple[object, ...]]], count: int
) -> None:
    client, session, calls = slow
    number = 200
    client.send(
        b"".join(
            message(Command.REGION_READ, ACCESS.pack(n % 32, 0, count), message_id=n) + write(4, n)
            for n in range(number)
        )
    )
    session.receive()
    assert holds_back(session)
    held_back_at = len(calls)
    assert held_back_at < number
    # Nothing more is taken from it, nor done for it.
    client.send(READ)
    assert not session.receive()
    assert len(calls) == held_back_at
    found = replies(client, session, number)
    assert [reply.header.message_id for reply in found] == list(range(number))
    assert [reply.payload[:12] for reply in found] == [struct.pack("<QI", n % 32, 0) for n in range(number)]
    assert not holds_back(session)
    assert session.receive()
    assert client.receive().header.message_id == 99
    assert [call[0] for call in calls if call[0] == "write"] == ["write"] * number


def test_part_of_a_reply_is_sent_first_and_the_rest_later(
    slow: tuple[RawClient, Session, list[tuple[object, ...]]],
) -> None:
    client, session, _ = slow
    device = session.device
    device.set_region(4, CallbackRegion(1 << 20, read=lambda offset, size: offset))
    client.send(message(Command.REGION_READ, ACCESS.pack(0, 4, 1 << 20)))
    session.receive()
    assert holds_back(session)
    data = bytearray()
    while len(data) < HEADER_SIZE + ACCESS.size + (1 << 20):
        data += client.channel.recv(65536)  # type: ignore[attr-defined]
        session.flush()
    assert data[32:] == b"".join(struct.pack("<I", offset) for offset in range(0, 1 << 20, 4))
    assert not holds_back(session)


def test_a_client_that_leaves_while_something_waits_for_it(
    slow: tuple[RawClient, Session, list[tuple[object, ...]]],
) -> None:
    client, session, _ = slow
    client.send(READ * 200)
    session.receive()
    assert holds_back(session)
    client.close()
    with pytest.raises(ConnectionClosedError):
        session.flush()


def test_a_client_that_leaves_before_its_reply(slow: tuple[RawClient, Session, list[tuple[object, ...]]]) -> None:
    client, session, _ = slow
    client.send(READ)
    client.close()
    with pytest.raises(ConnectionClosedError, match="the client is gone: Broken pipe"):
        session.receive()


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
@example([1])
@example([0, 7])
@example([0, 5, 100])
def test_a_channel_that_takes_any_part_of_a_reply(takes: list[int]) -> None:
    class Miser:
        """Takes a little at a time, or nothing at all."""

        def __init__(self, channel: socket.socket) -> None:
            self.channel = channel
            self.turn = 0
            self.recvmsg_into = channel.recvmsg_into
            self.fileno = channel.fileno
            self.close = channel.close

        def send(self, data: bytes, _flags: int = 0) -> int:
            self.turn += 1
            taken = takes[self.turn % len(takes)]
            if not taken:
                raise BlockingIOError
            return self.channel.send(bytes(data)[:taken])

        def sendmsg(self, parts: list[bytes], _ancdata: object = (), _flags: int = 0) -> int:
            return self.send(parts[0])

    ours, theirs = socket.socketpair()
    session = Session(recording_device([]), Miser(theirs))  # type: ignore[arg-type]
    with RawClient(ours) as client, contextlib.closing(session):
        client.send(message(Command.VERSION, bytes(4)))
        session.receive()
        while holds_back(session):
            session.flush()
        client.receive()
        client.send(READ + write(0, 1, posted=False) + message(Command.REGION_READ, ACCESS.pack(0, 0, 3)) + READ)
        session.receive()
        while holds_back(session):
            session.flush()
        found = [client.receive() for _ in range(4)]
        assert [reply.header.message_id for reply in found] == [99, 1, 1, 99]
        assert [reply.payload[16:] for reply in found] == [b"\1\1\1\1", b"", b"\1\1\3", b"\1\1\1\1"]


def test_a_bad_access_is_refused_as_the_ordinary_way_does() -> None:
    with memory_session(recording_device([])) as client:
        client.negotiate()
        assert client.write_error(2, 0, 0) == errno.EINVAL == InvalidAccess().errno
        assert client.read_error(3, 0) == errno.EINVAL
        assert client.read_error(5, 0) == errno.EINVAL
        assert client.read_error(0, SIZE - 3) == errno.EINVAL
        assert client.read(0, SIZE - 4) == 0x3D3D_3D3D

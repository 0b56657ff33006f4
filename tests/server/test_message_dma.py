"""DMA by messages, over real sockets: what is asked of a client, what it may do meanwhile, and what it cannot break."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.raw_client import Message, RawClient, access, connect, memory_session, message
from vfio_user.devices.edu import Edu
from vfio_user.errors import DeviceError, DmaAccess, StateError
from vfio_user.protocol.constants import HEADER_SIZE, Command, DmaMapFlags
from vfio_user.protocol.dma import DmaMap, DmaRead, DmaReadReply, DmaWrite, DmaWriteReply
from vfio_user.protocol.header import Header, reply_header
from vfio_user.protocol.region import ACCESS, MultiWrite, RegionWriteMulti
from vfio_user.regions import Region
from vfio_user.server.device import Device
from vfio_user.server.loop import EventLoop
from vfio_user.server.message_dma import MAX_DEPTH, MAX_TRANSFER, ClientMemory
from vfio_user.server.server import Server
from vfio_user.server.session import Session
from vfio_user.testing.in_process import DeviceUnderTest
from vfio_user.testing.leaks import leaked_since, open_files
from vfio_user.transport.memory import memory_pair

RAM = 0x10_0000
RAM_SIZE = 0x100_0000

#: Offsets of the engine's registers.
READ, WRITE, SOON_READ, SOON_WRITE, PLAIN, COUNT = 0x00, 0x08, 0x10, 0x18, 0x20, 0x28


class Engine(Device):
    """Moves ``count`` bytes between ``data`` and the client's memory, when an address is written.

    Attributes:
        done: what happened, in order: registers written, and how transfers ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 16
        self.data = b""
        self.done: list[object] = []
        self.finished = threading.Semaphore(0)
        self.set_region(0, EngineRegisters(self))

    def transfer(self, iova: int, write: bool) -> None:
        try:
            if write:
                self.dma.write(iova, self.data)
                self.done.append(("wrote", iova))
            else:
                self.data = self.dma.read(iova, self.count)
                self.done.append(("read", iova, len(self.data)))
        except DeviceError as exc:
            self.done.append(exc)
            raise
        finally:
            self.finished.release()

    def put_off(self, iova: int, write: bool) -> None:
        with contextlib.suppress(DeviceError):
            self.transfer(iova, write)

    def error(self) -> DeviceError:
        """How the last transfer failed."""
        last = self.done[-1]
        assert isinstance(last, DeviceError), last
        return last


class EngineRegisters(Region):
    size = 4096

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def read(self, offset: int, size: int) -> int:
        if offset == READ:
            self.engine.transfer(RAM, False)
        self.engine.done.append(("get", offset))
        return len(self.engine.done)

    def write(self, offset: int, size: int, value: int) -> None:
        engine = self.engine
        if offset in (READ, WRITE):
            engine.transfer(value, offset == WRITE)
        elif offset in (SOON_READ, SOON_WRITE):
            engine.call_soon(engine.put_off, value, offset == SOON_WRITE)
        elif offset == COUNT:
            engine.count = value
        else:
            engine.done.append(("put", offset, value))


@pytest.fixture
def engine() -> Engine:
    return Engine()


class Silent:
    """An observer that only makes every message go the ordinary way."""

    def command(self, header: Header, payload: bytes, fds: int) -> None: ...

    def reply(self, header: Header, payload: bytes, fds: int, seconds: float) -> None: ...

    def own_command(self, header: Header, payload: bytes) -> None: ...

    def own_reply(self, header: Header, payload: bytes, seconds: float | None) -> None: ...

    def closed(self) -> None: ...


@pytest.fixture(params=[None, Silent()], ids=["message path", "ordinary way"])
def client(engine: Engine, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RawClient]:
    """A client that has mapped ``RAM`` without a descriptor."""
    server = Server(engine, tmp_path / "socket", strict=True, observer=request.param)
    with server.start(), connected(tmp_path / "socket") as client:
        yield client


@contextlib.contextmanager
def connected(path: Path, capabilities: dict[str, Any] | None = None) -> Iterator[RawClient]:
    with connect(path) as client:
        client.negotiate(capabilities)
        assert client.map_memory(RAM, RAM_SIZE, None) == 0
        yield client


def start(client: RawClient, register: int, iova: int = RAM) -> None:
    client.write(0, register, iova, posted=True)


def asked(client: RawClient, command: int, iova: int, count: int) -> Message:
    """The next message, which is that command of the server."""
    got = client.receive()
    assert (got.header.command, got.header.flags, got.fds) == (command, 0, [])
    if command == Command.DMA_READ:
        assert DmaRead.decode(got.payload) == DmaRead(iova, count)
    else:
        write = DmaWrite.decode(got.payload)
        assert (write.iova, len(write.data)) == (iova, count)
    return got


def reply(to: Message, payload: bytes) -> bytes:
    return reply_header(to.header.message_id, to.header.command, len(payload)) + payload


def give(client: RawClient, to: Message, data: bytes) -> None:
    client.send(reply(to, DmaReadReply(DmaRead.decode(to.payload).iova, data).encode()))


def take(client: RawClient, to: Message) -> bytes:
    write = DmaWrite.decode(to.payload)
    client.send(reply(to, DmaWriteReply(write.iova, len(write.data)).encode()))
    return write.data


def settle(client: RawClient, engine: Engine) -> list[object]:
    """What happened, once everything sent has been carried out."""
    assert engine.finished.acquire(timeout=10)
    client.read(0, PLAIN)
    done, engine.done = [entry for entry in engine.done if entry != ("get", PLAIN)], []
    return done


# The messages.


@pytest.mark.parametrize("register", [READ, SOON_READ])
def test_reading(client: RawClient, engine: Engine, register: int) -> None:
    start(client, register)
    give(client, asked(client, Command.DMA_READ, RAM, 16), b"0123456789abcdef")
    assert settle(client, engine) == [("read", RAM, 16)]
    assert engine.data == b"0123456789abcdef"


class Watching(Silent):
    """An observer that remembers what goes the other way."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def own_command(self, header: Header, payload: bytes) -> None:
        assert header.is_command
        self.seen.append((header.message_id, header.command, header.message_size, payload))

    def own_reply(self, header: Header, payload: bytes, seconds: float | None) -> None:
        self.seen.append((header.message_id, header.command, payload, seconds is not None))


@pytest.mark.parametrize("twin", [False, True])
def test_an_observer_is_shown_both_ways(engine: Engine, tmp_path: Path, twin: bool) -> None:
    watching = Watching()
    capabilities = {"max_msg_fds": 8, "twin_socket": {"supported": True}} if twin else None
    with (
        Server(engine, tmp_path / "socket", strict=True, observer=watching).start(),
        connect(tmp_path / "socket") as client,
    ):
        fds = client.negotiate(capabilities).fds
        other = RawClient(socket.socket(fileno=fds[0])) if fds else client
        assert client.map_memory(RAM, RAM_SIZE, None) == 0
        start(client, SOON_READ)
        command = asked(other, Command.DMA_READ, RAM, 16)
        late = reply_header(command.header.message_id + 1, Command.DMA_READ, 4) + b"late"
        other.send(late)
        give(other, command, b"0123456789abcdef")
        assert settle(client, engine) == [("read", RAM, 16)]
        other.close()
    number = command.header.message_id
    assert watching.seen == [
        (number, Command.DMA_READ, 32, DmaRead(RAM, 16).encode()),
        (number + 1, Command.DMA_READ, b"late", False),
        (number, Command.DMA_READ, DmaReadReply(RAM, b"0123456789abcdef").encode(), True),
    ]


@pytest.mark.parametrize("register", [WRITE, SOON_WRITE])
@pytest.mark.parametrize("said", ["nothing", "12 bytes", "16 bytes"])
def test_writing(client: RawClient, engine: Engine, register: int, said: str) -> None:
    engine.data = b"what the device has"
    start(client, register)
    command = asked(client, Command.DMA_WRITE, RAM, 19)
    assert DmaWrite.decode(command.payload).data == b"what the device has"
    client.send(
        reply(command, {"nothing": b"", "12 bytes": struct.pack("<QI", RAM, 19)}.get(said, struct.pack("<QQ", RAM, 19)))
    )
    assert settle(client, engine) == [("wrote", RAM)]


@pytest.mark.parametrize("limit", [None, 1024, 1 << 20])
def test_long_transfers_are_cut(engine: Engine, tmp_path: Path, limit: int | None) -> None:
    size = 150_000
    piece = min(limit or MAX_TRANSFER, MAX_TRANSFER)
    engine.count, contents = size, os.urandom(size)
    capabilities: dict[str, Any] = {} if limit is None else {"max_data_xfer_size": limit}
    with (
        Server(engine, tmp_path / "socket", strict=True).start(),
        connected(tmp_path / "socket", capabilities) as client,
    ):
        start(client, SOON_READ)
        for at in range(0, size, piece):
            part = contents[at : at + piece]
            give(client, asked(client, Command.DMA_READ, RAM + at, len(part)), part)
        settle(client, engine)
        assert engine.data == contents
        start(client, WRITE)
        written = b""
        for at in range(0, size, piece):
            written += take(client, asked(client, Command.DMA_WRITE, RAM + at, min(piece, size - at)))
        settle(client, engine)
        assert written == contents


def test_a_short_transfer_goes_on_where_it_ended(client: RawClient, engine: Engine) -> None:
    start(client, READ)
    give(client, asked(client, Command.DMA_READ, RAM, 16), b"0123")
    give(client, asked(client, Command.DMA_READ, RAM + 4, 12), b"456789abcde")
    give(client, asked(client, Command.DMA_READ, RAM + 15, 1), b"f")
    assert settle(client, engine) == [("read", RAM, 16)]
    assert engine.data == b"0123456789abcdef"
    start(client, WRITE)
    client.send(reply(asked(client, Command.DMA_WRITE, RAM, 16), struct.pack("<QQ", RAM, 10)))
    assert take(client, asked(client, Command.DMA_WRITE, RAM + 10, 6)) == b"abcdef"
    assert settle(client, engine) == [("wrote", RAM)]


# Refusals and nonsense.


@pytest.mark.parametrize(
    ("answer", "error"), [(errno.ENODEV, errno.ENODEV), (0, errno.EIO), (4096, errno.EIO), (1 << 31, errno.EIO)]
)
def test_the_clients_errno_is_the_devices(client: RawClient, engine: Engine, answer: int, error: int) -> None:
    start(client, SOON_READ)
    command = asked(client, Command.DMA_READ, RAM, 16)
    client.send(struct.pack("<HHIII", command.header.message_id, Command.DMA_READ, HEADER_SIZE, 0x21, answer))
    settle_failed(client, engine, error, r"DMA_READ of 16 bytes at 0x100000: the client refuses")


def settle_failed(client: RawClient, engine: Engine, error: int, text: str) -> None:
    """The transfer failed, and everything goes on."""
    (failure,) = settle(client, engine)
    assert isinstance(failure, DeviceError)
    assert failure.errno == error
    assert text in str(failure)
    engine.data = b""
    start(client, READ)
    give(client, asked(client, Command.DMA_READ, RAM, engine.count), bytes(engine.count))
    assert settle(client, engine) == [("read", RAM, engine.count)]


@pytest.mark.parametrize(
    "payload",
    {
        "no payload": b"",
        "shorter than its fields": bytes(15),
        "fewer bytes than it counts": struct.pack("<QQ", RAM, 16) + bytes(15),
        "more bytes than it counts": struct.pack("<QQ", RAM, 16) + bytes(17),
        "more than was asked for": struct.pack("<QQ", RAM, 17) + bytes(17),
        "nothing at all": struct.pack("<QQ", RAM, 0),
        "from elsewhere": struct.pack("<QQ", RAM + 1, 16) + bytes(16),
        "as large as it gets": struct.pack("<QQ", RAM, 1 << 20) + bytes(1 << 20),
    }.items(),
    ids=lambda item: item[0],
)
def test_replies_to_a_read_that_make_no_sense(client: RawClient, engine: Engine, payload: tuple[str, bytes]) -> None:
    start(client, SOON_READ)
    client.send(reply(asked(client, Command.DMA_READ, RAM, 16), payload[1]))
    settle_failed(client, engine, errno.EIO, "DMA_READ of 16 bytes at 0x100000: the client")


@pytest.mark.parametrize(
    "payload",
    [
        bytes(1),
        bytes(17),
        struct.pack("<QQ", RAM, 0),
        struct.pack("<QQ", RAM, 17),
        struct.pack("<QQ", RAM + 1, 16),
        struct.pack("<QI", RAM, 0),
        struct.pack("<QQ", RAM, 1 << 63),
    ],
)
def test_replies_to_a_write_that_make_no_sense(client: RawClient, engine: Engine, payload: bytes) -> None:
    engine.data = bytes(16)
    start(client, SOON_WRITE)
    client.send(reply(asked(client, Command.DMA_WRITE, RAM, 16), payload))
    settle_failed(client, engine, errno.EIO, "DMA_WRITE of 16 bytes at 0x100000: the client")


def test_a_reply_to_another_command(client: RawClient, engine: Engine) -> None:
    start(client, SOON_READ)
    command = asked(client, Command.DMA_READ, RAM, 16)
    client.send(reply_header(command.header.message_id, Command.DMA_WRITE, 16) + struct.pack("<QQ", RAM, 16))
    settle_failed(client, engine, errno.EIO, "the client answers DMA_WRITE instead")


def test_replies_nobody_waits_for_are_dropped(client: RawClient, engine: Engine) -> None:
    stray = DmaReadReply(RAM, bytes(5000)).encode()
    start(client, READ)
    command = asked(client, Command.DMA_READ, RAM, 16)
    for number in (command.header.message_id + 1, command.header.message_id - 1 & 0xFFFF):
        client.send(reply_header(number, Command.DMA_READ, len(stray)) + stray)
    give(client, command, b"0123456789abcdef")
    give(client, command, b"twice as much as")
    assert settle(client, engine) == [("read", RAM, 16)]
    assert engine.data == b"0123456789abcdef"


# Never for ever.


def test_what_would_never_end_is_refused(client: RawClient, engine: Engine) -> None:
    assert client.read_error(0, READ) == errno.EDEADLK
    assert client.write_error(0, WRITE, RAM) == 0  # no byte to write yet: nothing to ask for
    engine.data = b"x"
    assert client.write_error(0, WRITE, RAM) == errno.EDEADLK
    multi = RegionWriteMulti((MultiWrite(READ, 0, 4, struct.pack("<Q", RAM)),)).encode()
    assert client.request(Command.REGION_WRITE_MULTI, multi).error == errno.EDEADLK
    text = str(engine.error())
    for part in ("DMA_READ of 16 bytes at 0x100000", "the client waits for", "self.call_soon(", "share=on"):
        assert part in text


def test_a_command_without_reply_that_is_no_write_counts_as_waited_for(client: RawClient, engine: Engine) -> None:
    client.command(Command.REGION_READ, ACCESS.pack(READ, 0, 4), no_reply=True)
    (failure,) = settle(client, engine)
    assert isinstance(failure, DeviceError)
    assert failure.errno == errno.EDEADLK


def test_whether_it_is_immediate_can_be_asked(client: RawClient, engine: Engine) -> None:
    told: list[bool] = []
    engine.transfer = lambda iova, write: told.append(engine.dma.is_immediate(iova, 16, write=write))  # type: ignore[method-assign]
    client.write(0, READ, RAM)
    client.write(0, READ, RAM, posted=True)
    client.write(0, READ, RAM, posted=True)
    client.write(0, READ, RAM + RAM_SIZE, posted=True)
    client.write(0, SOON_READ, RAM)
    client.read(0, PLAIN)
    client.read(0, PLAIN)
    assert told == [False, True, True, False, True]


class Impatient(Engine):
    """Its client has no time."""

    def on_connect(self) -> None:
        self.timeout = 0.02

    def transfer(self, iova: int, write: bool) -> None:
        messenger = self.dma.messenger
        assert isinstance(messenger, ClientMemory)
        messenger.timeout = self.timeout
        super().transfer(iova, write)


@pytest.mark.parametrize("register", [READ, SOON_READ])
def test_a_client_that_does_not_answer(tmp_path: Path, register: int) -> None:
    engine = Impatient()
    with Server(engine, tmp_path / "socket", strict=True).start(), connected(tmp_path / "socket") as client:
        start(client, register)
        late = asked(client, Command.DMA_READ, RAM, 16)
        assert engine.finished.acquire(timeout=10)
        assert engine.error().errno == errno.ETIMEDOUT
        assert "has not answered within 0.02 seconds" in str(engine.error())
        # Its reply comes after all, and is not taken for that of the next.
        engine.timeout = 10
        assert isinstance(engine.dma.messenger, ClientMemory)
        assert list(engine.dma.messenger._abandoned) == [late.header.message_id]
        engine.done.clear()
        start(client, register)
        command = asked(client, Command.DMA_READ, RAM, 16)
        assert command.header.message_id != late.header.message_id
        give(client, late, b"late late late..")
        give(client, command, b"0123456789abcdef")
        assert settle(client, engine) == [("read", RAM, 16)]
        assert engine.data == b"0123456789abcdef"


def test_ids_go_round_and_leave_out_what_never_was_answered() -> None:
    engine = Engine()
    with memory_session(engine) as client:
        client.negotiate()
        memory = engine.dma.messenger
        assert isinstance(memory, ClientMemory)
        memory._abandoned.extend([1, 0xFFFF])
        seen = [memory._new_id() for _ in range(0x10000)]
        assert sorted(set(seen)) == [0, *range(2, 0xFFFF)]


@pytest.mark.parametrize("register", [READ, SOON_READ])
@pytest.mark.parametrize("held", [0, 3])
def test_a_client_that_leaves_in_the_middle(tmp_path: Path, register: int, held: int) -> None:
    engine = Engine()
    left: list[int] = []
    engine.on_disconnect = lambda: left.append(len(engine.done))  # type: ignore[method-assign]
    before = open_files()
    with Server(engine, tmp_path / "socket", strict=True).start():
        for _ in range(3):
            with connected(tmp_path / "socket") as client:
                start(client, register)
                asked(client, Command.DMA_READ, RAM, 16)
                for value in range(held):
                    client.write(0, PLAIN, value, posted=True)
                client.send(b"\0\0")  # and part of a message
            assert engine.finished.acquire(timeout=10)
            assert engine.error().errno == errno.ENOTCONN
        with connected(tmp_path / "socket") as client:
            # Each time the device's code had returned before it was told.
            assert left == [1, 2, 3]
            start(client, register)
            give(client, asked(client, Command.DMA_READ, RAM, 16), bytes(16))
            settle(client, engine)
    assert not leaked_since(before)


@pytest.mark.parametrize("register", [READ, SOON_READ])
def test_a_client_that_sends_garbage_in_the_middle(tmp_path: Path, register: int) -> None:
    engine = Engine()
    with Server(engine, tmp_path / "socket", strict=True).start(), connected(tmp_path / "socket") as client:
        start(client, register)
        asked(client, Command.DMA_READ, RAM, 16)
        client.send(message(Command.REGION_READ, bytes(16), size=7))
        assert client.receive().error == errno.EINVAL
        assert client.is_cut_off()
        assert engine.finished.acquire(timeout=10)
        assert engine.error().errno == errno.ENOTCONN
        assert "a message of 7 bytes" in str(engine.error())


@pytest.mark.parametrize("register", [READ, SOON_READ])
def test_stopping_the_server_ends_the_wait(tmp_path: Path, register: int) -> None:
    engine = Engine()
    with Server(engine, tmp_path / "socket", strict=True).start() as server, connected(tmp_path / "socket") as client:
        start(client, register)
        asked(client, Command.DMA_READ, RAM, 16)
        server.close()
        assert engine.error().errno == errno.ECANCELED
        assert client.is_cut_off()


def test_another_thread_is_told_to_use_the_devices(client: RawClient, engine: Engine) -> None:
    client.read(0, PLAIN)
    with pytest.raises(StateError, match="on a thread that is not the device's: use call_soon"):
        engine.dma.read(RAM, 1)


def test_without_a_client_nothing_is_in_reach(tmp_path: Path) -> None:
    engine = Engine()
    seen: list[Exception] = []

    def save(_mapping: object) -> None:
        try:
            engine.dma.write(RAM, b"last words")
        except DeviceError as exc:
            seen.append(exc)

    engine.dma.on_unmap.append(save)
    with Server(engine, tmp_path / "socket", strict=True).start() as server:
        with connected(tmp_path / "socket") as client:
            assert client.unmap_memory(RAM, RAM_SIZE) == 0
            assert client.map_memory(RAM, RAM_SIZE, None) == 0
        server.close()
    assert [type(exc) for exc in seen] == [DeviceError, DmaAccess]
    assert seen[0].errno == errno.EDEADLK  # type: ignore[attr-defined]
    assert engine.dma.messenger is None


# What comes meanwhile.


@pytest.mark.parametrize("register", [READ, SOON_READ])
@pytest.mark.parametrize("glued", [False, True])
def test_posted_writes_wait_until_the_device_has_gone_on(
    client: RawClient, engine: Engine, register: int, glued: bool
) -> None:
    posted = [
        message(Command.REGION_WRITE, access(PLAIN, 0, bytes([n, 0, 0, 0])[: 4 if n % 3 else 2]), no_reply=True)
        for n in range(30)
    ]
    first = message(Command.REGION_WRITE, access(register, 0, RAM.to_bytes(4, "little")), no_reply=True)
    client.send(first + b"".join(posted) if glued and register == READ else first)
    command = asked(client, Command.DMA_READ, RAM, 16)
    if not (glued and register == READ):
        client.send(b"".join(posted))
    give(client, command, bytes(16))
    assert settle(client, engine) == [("read", RAM, 16), *(("put", PLAIN, n) for n in range(30))]


@pytest.mark.parametrize("register", [READ, SOON_READ])
def test_what_the_client_waits_for_is_carried_out_at_once_and_in_order(
    client: RawClient, engine: Engine, register: int
) -> None:
    start(client, register)
    command = asked(client, Command.DMA_READ, RAM, 16)
    client.write(0, PLAIN, 1, posted=True)
    client.write(0, PLAIN, 2, 2, posted=True)
    # QEMU holds its lock now: no DMA message is answered before this.
    assert client.read(0, PLAIN) == 3
    client.write(0, PLAIN, 3, posted=True)
    client.write(0, PLAIN, 4)
    client.write(0, PLAIN, 5, posted=True)
    assert client.request(Command.DEVICE_RESET).error == 0
    client.write(0, PLAIN, 6, posted=True)
    give(client, command, bytes(16))
    assert settle(client, engine) == [
        *(("put", PLAIN, n) for n in range(1, 6)),
        ("read", RAM, 16),
        ("put", PLAIN, 6),
    ]


def test_the_rest_of_a_run_is_neither_lost_nor_done_twice(client: RawClient, engine: Engine) -> None:
    run = [*range(1, 10), READ, *range(10, 20), READ, *range(20, 25)]

    def posted(n: int) -> bytes:
        data = access(READ, 0, RAM.to_bytes(4, "little")) if n == READ else access(PLAIN, 0, n.to_bytes(4, "little"))
        return message(Command.REGION_WRITE, data, no_reply=True)

    client.send(b"".join(map(posted, run)) + message(Command.REGION_READ, ACCESS.pack(PLAIN, 0, 4), message_id=77))
    one = client.receive()
    two = client.receive()
    assert [m.header.command for m in (one, two)] == [Command.DMA_READ] * 2
    assert client.receive().header.message_id == 77
    give(client, one, b"1" * 16)
    give(client, two, b"2" * 16)
    assert engine.finished.acquire(timeout=10)
    done = settle(client, engine)
    assert [entry for entry in done if entry != ("read", RAM, 16)] == [("put", PLAIN, n) for n in run if n]
    assert done.count(("read", RAM, 16)) == 2
    assert engine.data == b"1" * 16, "the first began first, and ends last"


def test_a_multiple_write_goes_on_behind_the_wait(client: RawClient, engine: Engine) -> None:
    writes = [
        MultiWrite(READ if n == 2 else PLAIN, 0, 4, (RAM if n == 2 else n).to_bytes(8, "little")) for n in range(6)
    ]
    client.command(Command.REGION_WRITE_MULTI, RegionWriteMulti(tuple(writes)).encode(), no_reply=True)
    command = asked(client, Command.DMA_READ, RAM, 16)
    client.write(0, PLAIN, 6, posted=True)
    give(client, command, bytes(16))
    assert settle(client, engine) == [
        ("put", PLAIN, 0),
        ("put", PLAIN, 1),
        ("read", RAM, 16),
        *(("put", PLAIN, n) for n in range(3, 7)),
    ]


def test_a_multiple_write_that_was_held_keeps_its_place(client: RawClient, engine: Engine) -> None:
    start(client, READ)
    command = asked(client, Command.DMA_READ, RAM, 16)
    writes = MultiWrite(READ, 0, 4, (RAM + 1).to_bytes(8, "little")), MultiWrite(PLAIN, 0, 4, bytes(8))
    client.command(Command.REGION_WRITE_MULTI, RegionWriteMulti(writes).encode(), no_reply=True)
    client.write(0, PLAIN, 1, posted=True)
    client.command(Command.REGION_READ, ACCESS.pack(PLAIN, 0, 4))
    inner = asked(client, Command.DMA_READ, RAM + 1, 16)
    assert client.receive().header.is_reply
    give(client, inner, bytes(16))
    give(client, command, bytes(16))
    assert engine.finished.acquire(timeout=10)
    assert settle(client, engine) == [
        ("put", PLAIN, 0),
        ("put", PLAIN, 1),
        ("read", RAM + 1, 16),
        ("read", RAM, 16),
    ]


@pytest.mark.parametrize("position", [0, 5, 11])
def test_a_transfer_that_fails_within_a_run(client: RawClient, engine: Engine, position: int) -> None:
    run = [message(Command.REGION_WRITE, access(PLAIN, 0, bytes([n, 0, 0, 0])), no_reply=True) for n in range(12)]
    run[position] = message(Command.REGION_WRITE, access(READ, 0, RAM.to_bytes(4, "little")), no_reply=True)
    client.send(b"".join(run))
    command = asked(client, Command.DMA_READ, RAM, 16)
    client.write(0, PLAIN, 12, posted=True)
    client.send(struct.pack("<HHIII", command.header.message_id, Command.DMA_READ, HEADER_SIZE, 0x21, errno.ENODEV))
    done = settle(client, engine)
    assert isinstance(done.pop(position), DeviceError)
    assert done == [("put", PLAIN, n) for n in range(13) if n != position]


@pytest.mark.parametrize("register", [READ, SOON_READ])
def test_a_register_is_read_between_the_messages_of_one_transfer(
    client: RawClient, engine: Engine, register: int
) -> None:
    engine.count = 3 * MAX_TRANSFER
    start(client, register)
    for at in range(3):
        command = asked(client, Command.DMA_READ, RAM + at * MAX_TRANSFER, MAX_TRANSFER)
        client.write(0, PLAIN, at, posted=True)
        assert client.read(0, PLAIN)
        give(client, command, bytes([at]) * MAX_TRANSFER)
    assert settle(client, engine)[-1] == ("read", RAM, 3 * MAX_TRANSFER)
    assert engine.data == b"".join(bytes([at]) * MAX_TRANSFER for at in range(3))


def test_descriptors_of_what_is_held_are_closed(engine: Engine, tmp_path: Path) -> None:
    before = open_files()
    with Server(engine, tmp_path / "socket", strict=True).start(), connected(tmp_path / "socket") as client:
        start(client, SOON_READ)
        asked(client, Command.DMA_READ, RAM, 16)
        with memory() as fd:
            request = DmaMap(DmaMapFlags.READ, 0, 2 * RAM_SIZE, 0x1000)
            client.command(Command.DMA_MAP, request.encode(), fds=[fd, fd], no_reply=True)
        client.close()
        assert engine.finished.acquire(timeout=10)
        assert engine.error().errno == errno.ENOTCONN
    assert not leaked_since(before)


def test_transfers_within_transfers_have_an_end(client: RawClient, engine: Engine) -> None:
    # Each posted write asks for a transfer, and the read behind them all can only be answered when all have begun.
    for n in range(MAX_DEPTH + 1):
        start(client, READ, RAM + n)
    number = client.command(Command.REGION_READ, ACCESS.pack(PLAIN, 0, 4))
    commands = [asked(client, Command.DMA_READ, RAM + n, 16) for n in range(MAX_DEPTH)]
    assert client.receive().header.message_id == number
    assert engine.done[0].errno == errno.EBUSY  # type: ignore[attr-defined]
    assert f"{MAX_DEPTH} transfers wait already" in str(engine.done[0])
    for command in commands:
        give(client, command, bytes(16))
    for _ in commands:
        assert engine.finished.acquire(timeout=10)
    assert settle(client, engine)[1:] == [("read", RAM + n, 16) for n in reversed(range(MAX_DEPTH))]


def test_a_burst_of_transfers_is_one_after_the_other(client: RawClient, engine: Engine) -> None:
    count = 5 * MAX_DEPTH
    client.send(
        b"".join(
            message(Command.REGION_WRITE, access(READ, 0, (RAM + n).to_bytes(4, "little")), no_reply=True)
            for n in range(count)
        )
    )
    for n in range(count):
        give(client, asked(client, Command.DMA_READ, RAM + n, 16), bytes(16))
    for _ in range(count - 1):
        assert engine.finished.acquire(timeout=10)
    assert settle(client, engine) == [("read", RAM + n, 16) for n in range(count)]


def test_a_device_may_reach_its_own_registers_through_the_client(client: RawClient, engine: Engine) -> None:
    # QEMU, for an address in the device's own BAR: it accesses the BAR, and then answers.
    start(client, READ)
    command = asked(client, Command.DMA_READ, RAM, 16)
    value = client.read(0, PLAIN)
    give(client, command, value.to_bytes(16, "little"))
    settle(client, engine)
    assert engine.data == (1).to_bytes(16, "little")


def test_more_posted_writes_than_are_kept(client: RawClient, engine: Engine) -> None:
    start(client, SOON_READ)
    command = asked(client, Command.DMA_READ, RAM, 16)
    count = 6000
    for at in range(0, count, 500):
        client.send(
            b"".join(
                message(Command.REGION_WRITE, access(PLAIN, 0, n.to_bytes(4, "little")), no_reply=True)
                for n in range(at, at + 500)
            )
        )
    give(client, command, bytes(16))
    done = settle(client, engine)
    assert [entry for entry in done if entry != ("read", RAM, 16)] == [("put", PLAIN, n) for n in range(count)]
    # The oldest were carried out in the midst of it, the others were kept.
    assert done.index(("read", RAM, 16)) == count - 4096


def test_mappings_may_go_while_a_transfer_waits(client: RawClient, engine: Engine) -> None:
    with memory() as fd:
        assert client.map_memory(RAM + RAM_SIZE, 0x1000, fd) == 0
        engine.count = 32
        start(client, SOON_READ, RAM + RAM_SIZE - 16)
        command = asked(client, Command.DMA_READ, RAM + RAM_SIZE - 16, 16)
        assert client.unmap_memory(RAM + RAM_SIZE, 0x1000) == 0
        assert client.unmap_memory(RAM, RAM_SIZE) == 0
        give(client, command, b"0123456789abcdef")
        assert settle(client, engine) == [("read", RAM + RAM_SIZE - 16, 32)]
        assert engine.data == b"0123456789abcdef" + b"shared memory..."


@contextlib.contextmanager
def memory() -> Iterator[int]:
    fd = os.memfd_create("test")
    try:
        os.write(fd, b"shared memory..." + bytes(0x1000 - 16))
        yield fd
    finally:
        os.close(fd)


def test_two_devices_on_one_thread(tmp_path: Path) -> None:
    """A processor of the guest waits for the second device, so nothing answers the first; both are on one thread."""
    one, two = Engine(), Engine()
    loop = EventLoop()
    with (
        Server(one, tmp_path / "one", strict=True, loop=loop),
        Server(two, tmp_path / "two", strict=True, loop=loop),
    ):
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            with connected(tmp_path / "one") as first, connected(tmp_path / "two") as second:
                start(first, SOON_READ)
                command = asked(first, Command.DMA_READ, RAM, 16)
                assert second.read(0, PLAIN) == 1
                # And the second device begins a transfer of its own, during which the first client goes.
                start(second, READ)
                nested = asked(second, Command.DMA_READ, RAM, 16)
                first.close()
                give(second, nested, bytes(16))
                assert settle(second, two)[-1] == ("read", RAM, 16)
                assert one.finished.acquire(timeout=10)
                assert one.error().errno == errno.ENOTCONN
                assert command.header.command == Command.DMA_READ
                # A new client of the first device is served while the second waits.
                start(second, SOON_READ)
                nested = asked(second, Command.DMA_READ, RAM, 16)
                with connected(tmp_path / "one") as again:
                    assert again.read(0, PLAIN)
                give(second, nested, bytes(16))
                settle(second, two)
        finally:
            loop.stop()
            thread.join()
    loop.close()


def test_a_client_that_reads_nothing(tmp_path: Path) -> None:
    """Replies it does not take hold back what is taken from it; nothing is lost when it reads again."""
    engine = Engine()
    with Server(engine, tmp_path / "socket", strict=True).start(), connected(tmp_path / "socket") as client:
        reads = 20000
        start(client, SOON_READ)
        command = asked(client, Command.DMA_READ, RAM, 16)
        sender = threading.Thread(
            target=client.send,
            args=(
                message(Command.REGION_READ, ACCESS.pack(PLAIN, 0, 8)) * reads
                + reply(command, DmaReadReply(RAM, bytes(16)).encode()),
            ),
        )
        sender.start()
        for _ in range(reads):
            assert client.receive().payload[:16] == ACCESS.pack(PLAIN, 0, 8)
        sender.join()
        assert settle(client, engine) == [("read", RAM, 16)]


# Order, whatever is sent.

step = st.sampled_from(["put", "put wide", "transfer", "transfer soon", "get", "multi"])


@settings(max_examples=60, deadline=None)
@given(st.lists(step, max_size=12), st.lists(st.integers(1, 200), max_size=10), st.integers(0, 1000))
def test_nothing_is_lost_or_reordered(steps: list[str], cuts: list[int], seed: int) -> None:
    engine, order = Engine(), random.Random(seed)
    ours, theirs = socket.socketpair()
    with ours, contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(engine, f"fd:{theirs.detach()}", strict=True).start())
        client = RawClient(ours)
        client.negotiate()
        assert client.map_memory(RAM, RAM_SIZE, None) == 0
        stream, transfers, gets = b"", 0, 0
        expected: list[object] = []
        for n, what in enumerate(steps):
            if what == "put":
                stream += message(Command.REGION_WRITE, access(PLAIN, 0, n.to_bytes(4, "little")), no_reply=True)
            elif what == "put wide":
                stream += message(Command.REGION_WRITE, access(PLAIN, 0, n.to_bytes(8, "little")), no_reply=True)
            elif what == "get":
                stream += message(Command.REGION_READ, ACCESS.pack(PLAIN, 0, 4))
                gets += 1
            elif what == "multi":
                two = tuple(MultiWrite(PLAIN, 0, 4, n.to_bytes(8, "little")) for _ in range(2))
                stream += message(Command.REGION_WRITE_MULTI, RegionWriteMulti(two).encode(), no_reply=True)
            else:
                register = READ if what == "transfer" else SOON_READ
                address = (RAM + n).to_bytes(4, "little")
                stream += message(Command.REGION_WRITE, access(register, 0, address), no_reply=True)
                transfers += 1
            if what == "multi":
                expected += [("put", PLAIN, n)] * 2
            elif what.startswith("put"):
                expected.append(("put", PLAIN, n))
            elif what == "get":
                expected.append(("get", PLAIN))
        for cut in cuts:
            client.send(stream[:cut])
            stream = stream[cut:]
        client.send(stream)
        waiting: list[Message] = []
        answered = 0
        while answered < transfers or gets:
            got = None
            if len(waiting) + answered < transfers or gets:
                # A transfer may only begin when the one before has ended.
                client.channel.settimeout(0.01 if waiting else 10)  # type: ignore[attr-defined]
                with contextlib.suppress(TimeoutError, BlockingIOError):
                    got = client.receive()
                client.channel.settimeout(10)  # type: ignore[attr-defined]
            if got is None:
                chosen = waiting.pop(order.randrange(len(waiting)))
                give(client, chosen, bytes(16))
                answered += 1
            elif got.header.is_reply:
                gets -= 1
            else:
                waiting.append(got)
        for _ in range(transfers):
            assert engine.finished.acquire(timeout=10)
        client.read(0, PLAIN)
        assert [entry for entry in engine.done if entry[0] in ("put", "get")] == [*expected, ("get", PLAIN)]  # type: ignore[index]
        assert sum(entry[0] == "read" for entry in engine.done) == transfers  # type: ignore[index]
        server.close()


# In one process.


def test_a_client_on_the_same_thread_that_does_nothing() -> None:
    engine = Engine()
    with memory_session(engine) as client:
        client.negotiate()
        client.map_memory(RAM, RAM_SIZE, None)
        start(client, READ)
        assert client.receive().header.command == Command.DMA_READ
        assert engine.error().errno == errno.ETIMEDOUT


@pytest.mark.parametrize("size", [4096, 100])
def test_a_device_under_test_without_shared_memory(size: int) -> None:
    with DeviceUnderTest(Edu(), share_memory=False) as under_test:
        function = under_test.function
        function.set_master()
        buffer = function.dma_alloc(2 * size)
        contents = os.urandom(size)
        buffer.view[:size] = contents
        to_device, to_memory = (buffer.iova, 0x40000, 1), (0x40000, buffer.iova + size, 3)
        for source, destination, command in (to_device, to_memory):
            for offset, value in ((0x80, source), (0x88, destination), (0x90, size)):
                under_test.client.region_write(0, offset, value.to_bytes(8, "little"))
            under_test.client.region_write(0, 0x98, command.to_bytes(4, "little"))
            under_test.settle()
        assert bytes(buffer.view[size:]) == contents


# The twin socket.

TWIN = {"max_msg_fds": 1, "twin_socket": {"supported": True}}


@contextlib.contextmanager
def twins(path: Path) -> Iterator[tuple[RawClient, RawClient]]:
    """A client with its two connections; it has mapped ``RAM``."""
    with connect(path) as client:
        (fd,) = client.negotiate(TWIN).fds
        with RawClient(socket.socket(fileno=fd)) as twin:
            assert client.map_memory(RAM, RAM_SIZE, None) == 0
            yield client, twin


@pytest.mark.parametrize("register", [READ, SOON_READ])
def test_commands_go_over_the_twin(engine: Engine, tmp_path: Path, register: int) -> None:
    before = open_files()
    with Server(engine, tmp_path / "socket", strict=True).start():
        with twins(tmp_path / "socket") as (client, twin):
            for _ in range(2):
                start(client, register)
                command = asked(twin, Command.DMA_READ, RAM, 16)
                assert client.read(0, PLAIN)
                give(twin, command, b"0123456789abcdef")
                assert settle(client, engine)[-1] == ("read", RAM, 16)
            engine.data = bytes(MAX_TRANSFER * 3)
            start(client, WRITE)
            for at in range(3):
                take(twin, asked(twin, Command.DMA_WRITE, RAM + at * MAX_TRANSFER, MAX_TRANSFER))
            assert settle(client, engine) == [("wrote", RAM)]
        with connected(tmp_path / "socket") as client:
            client.read(0, PLAIN)
    assert not leaked_since(before)


def test_a_reply_on_the_wrong_socket_is_still_a_reply(engine: Engine, tmp_path: Path) -> None:
    with Server(engine, tmp_path / "socket", strict=True).start(), twins(tmp_path / "socket") as (client, twin):
        start(client, READ)
        give(client, asked(twin, Command.DMA_READ, RAM, 16), bytes(16))
        assert settle(client, engine) == [("read", RAM, 16)]


@pytest.mark.parametrize(
    "sent",
    [b"", message(Command.REGION_READ, ACCESS.pack(0, 0, 4)), message(Command.DMA_READ, size=3)],
    ids=["closed", "a command", "garbage"],
)
def test_a_twin_of_no_use_ends_the_session(engine: Engine, tmp_path: Path, sent: bytes) -> None:
    before = open_files()
    with Server(engine, tmp_path / "socket", strict=True).start():
        with twins(tmp_path / "socket") as (client, twin):
            start(client, READ)
            asked(twin, Command.DMA_READ, RAM, 16)
            if sent:
                twin.send(sent)
            else:
                twin.close()
            assert client.is_cut_off()
            assert engine.error().errno == errno.ENOTCONN
            assert "twin socket" in str(engine.error())
        with connected(tmp_path / "socket") as client:
            client.read(0, PLAIN)
    assert not leaked_since(before)


def test_no_twin_without_room_for_its_descriptors(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socket, "socketpair", functools.partial(refuse, errno.EMFILE))
    with Server(engine, tmp_path / "socket", strict=True).start(), connect(tmp_path / "socket") as client:
        assert client.negotiate(TWIN).fds == []
        assert client.map_memory(RAM, RAM_SIZE, None) == 0
        start(client, READ)
        give(client, asked(client, Command.DMA_READ, RAM, 16), bytes(16))
        assert settle(client, engine) == [("read", RAM, 16)]
    assert "no twin socket" in caplog.text


def refuse(number: int, *_: object) -> None:
    raise OSError(number, os.strerror(number))


def test_a_session_that_ends_before_the_twin_is_used(engine: Engine, tmp_path: Path) -> None:
    before = open_files()
    with Server(engine, tmp_path / "socket", strict=True).start(), connect(tmp_path / "socket") as client:
        for fd in client.negotiate(TWIN).fds:
            os.close(fd)
    assert not leaked_since(before)


def test_what_was_received_while_held_writes_wait_for_dma_is_not_overwritten(engine: Engine) -> None:
    # A posted write is held when the device's code has returned, and another command is received before it is carried
    # out; carrying it out makes the device wait, and receive again.
    ours, theirs = memory_pair()
    engine.attach(EventLoop())
    session = Session(engine, theirs)
    engine.connected()
    client = RawClient(ours, session.receive)
    answers: list[Callable[[], None]] = []

    def answer() -> bool:
        if answers:
            answers.pop(0)()
            return True
        return False

    def hold_a_write() -> None:
        asked_for = asked(client, Command.DMA_READ, RAM, 16)
        start(client, READ, RAM + 32)
        give(client, asked_for, bytes(16))

    session.on_wait = answer
    with contextlib.closing(client), contextlib.closing(session):
        client.negotiate()
        assert client.map_memory(RAM, RAM_SIZE, None) == 0
        answers.append(hold_a_write)
        answers.append(lambda: give(client, asked(client, Command.DMA_READ, RAM + 32, 16), b"0123456789abcdef"))
        engine.put_off(RAM, False)
        number = client.command(Command.REGION_READ, ACCESS.pack(PLAIN, 0, 4))
        assert session.receive()
        reply = client.receive()
        assert (reply.header.message_id, reply.header.command) == (number, Command.REGION_READ)
    engine.detach()
    # The client waits for its register, so that one is read while the write waits.
    assert engine.done == [("read", RAM, 16), ("get", PLAIN), ("read", RAM + 32, 16)]
    assert engine.data == b"0123456789abcdef"

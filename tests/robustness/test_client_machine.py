"""Our client, and a server that answers as it likes: rightly, wrongly, late, twice, not at all.

A rule is one command, and the way it is answered. Whatever that is, the client gives what a right answer says, or
raises one of the errors it documents; and when the connection has not ended, the next command is as good as the first.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.support.fds import close_all, memory_file
from vfio_user.client.connection import Connection
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import GuestMemory
from vfio_user.errors import (
    CommandError,
    CommandTimeoutError,
    ConnectionClosedError,
    RemoteProtocolError,
    StateError,
)
from vfio_user.protocol.constants import HEADER_SIZE, Command, DeviceFlags, IrqInfoFlags, RegionFlags
from vfio_user.protocol.device import DeviceInfo
from vfio_user.protocol.framing import FrameBuffer, close_fds
from vfio_user.protocol.header import HEADER, Header
from vfio_user.protocol.irq import IrqInfo, IrqInfoRequest
from vfio_user.protocol.region import ACCESS, RegionInfo, RegionInfoRequest, RegionWriteMulti, WriteMultiReply
from vfio_user.testing.leaks import leaked_since, open_files
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, Channel, ancillary_fds
from vfio_user.transport.memory import memory_pair

#: Steps each of the two tests takes, at least; with those of the server's machine there are 10,000.
STEPS = 2_000
PER_EXAMPLE = 50

#: Seconds a server has that will not answer, and one that will, on a busy machine.
SHORT, LONG = 0.01, 20.0

IOVA, SIZE = 0x4000_0000, 0x4000

#: All a command may raise.
DOCUMENTED = (CommandError, CommandTimeoutError, ConnectionClosedError, RemoteProtocolError)

VERSION_REPLY = b'\0\0\0\0{"capabilities":{"max_msg_fds":8,"write_multiple":true}}\0'


class Way(NamedTuple):
    """How a command is answered.

    Attributes:
        name: of a method of ``Server``.
        harmless: the client is to take no notice.
        data: what else it takes.
    """

    name: str
    harmless: bool = False
    data: bytes = b""
    number: int = 0


RIGHT = Way("right", harmless=True)

ways = st.one_of(
    st.just(RIGHT),
    st.sampled_from([Way("twice", True), Way("after_a_stranger", True), Way("after_nonsense_commands", True)]),
    st.builds(
        lambda number, data: Way("after_dma", True, data, number), st.integers(0, SIZE * 2), st.binary(max_size=64)
    ),
    st.builds(lambda number: Way("refusing", False, b"", number), st.sampled_from([0, 1, 22, 4095, 4096, 0xFFFFFFFF])),
    st.builds(lambda data: Way("garbage", False, data), st.binary(max_size=80)),
    st.builds(lambda number: Way("cut", False, b"", number), st.integers(1, 40)),
    st.builds(lambda data: Way("longer", False, data), st.binary(min_size=1, max_size=80)),
    st.builds(lambda number: Way("with_fds", False, b"", number), st.integers(1, 20)),
    st.builds(lambda number: Way("as_another", False, b"", number), st.integers(0, 30)),
    st.sampled_from([Way("silent"), Way("hanging_up"), Way("hanging_up_in_the_middle")]),
    st.builds(lambda data: Way("broken", False, data), st.binary(min_size=16, max_size=16)),
)


def message(header: Header, payload: bytes, **changes: int) -> bytes:
    """A reply to a command, truthful but for the changes."""
    reply = Header(header.message_id, header.command, HEADER_SIZE + len(payload), 1, 0)._replace(**changes)
    return HEADER.pack(*reply) + payload


class Misbehaving:
    """The server.

    Attributes:
        way: how the next command is answered, those after it rightly.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.frames = FrameBuffer(1 << 16)
        self.way = RIGHT
        self.over = False

    def work(self) -> bool:
        """Answers what has come; False when there was nothing."""
        if self.has_hung_up():
            return False
        view = memoryview(self.frames.buffer)
        try:
            count, ancillary, flags, _ = self.channel.recvmsg_into(
                [view[self.frames.end :]], ANCILLARY_SIZE, RECEIVE_FLAGS
            )
        except BlockingIOError:
            return False
        except ConnectionResetError:
            count, ancillary, flags = 0, [], 0
        if not count:
            self.close()
            return False
        self.frames.received(count, ancillary_fds(ancillary, flags))
        while header := self.frames.next_message():
            start = self.frames.start
            payload = bytes(view[start + HEADER_SIZE : start + header.message_size])
            close_fds(self.frames.take_fds())
            self.frames.consume(header.message_size)
            if not (header.is_reply or header.no_reply):
                way, self.way = self.way, RIGHT
                getattr(self, way.name)(header, self.answer(header, payload), way)
                if self.has_hung_up():
                    return False
        self.frames.compact()
        return True

    def has_hung_up(self) -> bool:
        return self.over

    def close(self) -> None:
        if not self.over:
            self.over = True
            self.frames.close()
            self.channel.close()

    def answer(self, header: Header, payload: bytes) -> bytes:
        """A right answer."""
        match header.command:
            case Command.VERSION:
                return VERSION_REPLY
            case Command.DEVICE_GET_INFO:
                return DeviceInfo(DeviceFlags.RESET, 3, 2).encode()
            case Command.DEVICE_GET_REGION_INFO:
                index = RegionInfoRequest.decode(payload).index
                return RegionInfo(index, RegionFlags.READ | RegionFlags.WRITE, 0x1000 * (index + 1)).encode(999)[0]
            case Command.DEVICE_GET_IRQ_INFO:
                return IrqInfo(IrqInfoRequest.decode(payload).index, IrqInfoFlags.EVENTFD, 4).encode()
            case Command.REGION_READ:
                offset, _, count = ACCESS.unpack(payload)
                return payload + contents(offset, count)
            case Command.REGION_WRITE:
                return payload[: ACCESS.size]
            case Command.REGION_WRITE_MULTI:
                return WriteMultiReply(len(RegionWriteMulti.decode(payload).writes)).encode()
            case Command.DMA_UNMAP:
                return payload[:24]
        return b""

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            assert self.channel.sendmsg([data], ancillary) == len(data)

    # The ways.

    def right(self, header: Header, payload: bytes, way: Way) -> None:
        self.send(message(header, payload))

    def twice(self, header: Header, payload: bytes, way: Way) -> None:
        self.send(message(header, payload) * 2)

    def after_a_stranger(self, header: Header, payload: bytes, way: Way) -> None:
        self.send(message(header, payload, message_id=header.message_id ^ 0x8000))
        self.send(message(header, payload))

    def after_nonsense_commands(self, header: Header, payload: bytes, way: Way) -> None:
        for command in (0, Command.DEVICE_RESET, 99):
            self.send(message(header, b"nonsense", command=command, flags=0))
        self.send(message(header, b"", command=Command.DMA_READ, flags=0x10))
        self.send(message(header, payload))

    def after_dma(self, header: Header, payload: bytes, way: Way) -> None:
        place = struct.pack("<QQ", IOVA + way.number, len(way.data))
        self.send(message(header, place + way.data, command=Command.DMA_WRITE, flags=0))
        self.send(message(header, place, command=Command.DMA_READ, flags=0))
        self.send(message(header, place[:8] + b"\xff" * 8, command=Command.DMA_READ, flags=0))
        self.send(message(header, payload))

    def refusing(self, header: Header, payload: bytes, way: Way) -> None:
        self.send(message(header, b"", flags=0x21, error=way.number))

    def garbage(self, header: Header, payload: bytes, way: Way) -> None:
        self.send(message(header, way.data))

    def cut(self, header: Header, payload: bytes, way: Way) -> None:
        self.send(message(header, payload[: -way.number]))

    def longer(self, header: Header, payload: bytes, way: Way) -> None:
        self.send(message(header, payload + way.data))

    def with_fds(self, header: Header, payload: bytes, way: Way) -> None:
        fds = [memory_file() for _ in range(way.number)]
        self.send(message(header, payload), fds)
        close_all(fds)

    def as_another(self, header: Header, payload: bytes, way: Way) -> None:
        self.send(message(header, payload, command=way.number))

    def silent(self, header: Header, payload: bytes, way: Way) -> None:
        """It says nothing."""

    def hanging_up(self, header: Header, payload: bytes, way: Way) -> None:
        self.close()

    def hanging_up_in_the_middle(self, header: Header, payload: bytes, way: Way) -> None:
        self.send(message(header, payload)[:-1])
        self.close()

    def broken(self, header: Header, payload: bytes, way: Way) -> None:
        self.send(way.data)


def contents(offset: int, count: int) -> bytes:
    """What the server's regions hold."""
    return bytes((offset + each) & 0xFF for each in range(count))


class ClientMachine(RuleBasedStateMachine):
    """See the module."""

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.before = open_files()
        self.threads = set(threading.enumerate())
        self.guest = GuestMemory(SIZE)
        self.client: VfioUserClient | None = None
        self.server: Misbehaving
        self.connect()

    def reach(self) -> Connection:
        raise NotImplementedError

    def connect(self) -> None:
        if self.client is not None:
            self.client.close()
            self.gone()
        self.client = VfioUserClient(self.reach())
        self.client.dma_map(self.guest, IOVA)

    def gone(self) -> None:
        """The server notices that its client has gone."""
        while self.server.work():
            pass
        self.server.close()

    def ask(self, way: Way, what: Callable[[VfioUserClient], Any], expected: Any) -> None:
        """One command, answered that way."""
        type(self).steps += 1
        assert self.client is not None
        self.server.way = way
        # After bytes that may be half a message, or none at all, nobody needs to wait long.
        self.client.connection.timeout = SHORT if way.name in ("silent", "broken") else LONG
        try:
            found = what(self.client)
        except DOCUMENTED:
            assert not way.harmless
        else:
            # An answer that is wrong only in what this command does not look at is taken.
            assert found == expected or not way.harmless
        self.server.way = RIGHT
        self.client.connection.timeout = LONG
        try:
            self.client.connection.process()
            # A server whose bytes make up half a message would swallow the beginning of its next.
            if way.name == "broken":
                raise ConnectionClosedError("not to be gone on with")
            assert self.client.get_info().num_regions == 3
        except (ConnectionClosedError, RemoteProtocolError):
            assert not way.harmless
            self.connect()

    @rule(way=ways)
    def get_info(self, way: Way) -> None:
        self.ask(way, lambda client: client.get_info(), DeviceInfo(DeviceFlags.RESET, 3, 2))

    @rule(way=ways, index=st.integers(0, 9))
    def region_info(self, way: Way, index: int) -> None:
        def describe(client: VfioUserClient) -> tuple[int, int]:
            info, fd = client.region_info(index)
            close_fds([] if fd is None else [fd])
            return info.index, info.size

        self.ask(way, describe, (index, 0x1000 * (index + 1)))

    @rule(way=ways, index=st.integers(0, 5))
    def irq_info(self, way: Way, index: int) -> None:
        self.ask(way, lambda client: client.irq_info(index), IrqInfo(index, IrqInfoFlags.EVENTFD, 4))

    @rule(way=ways, offset=st.integers(0, 5000), size=st.sampled_from([1, 2, 4, 8]))
    def read(self, way: Way, offset: int, size: int) -> None:
        expected = int.from_bytes(contents(offset, size), "little")
        self.ask(way, lambda client: client.connection.read(0, offset, size), expected)

    @rule(way=ways, offset=st.integers(0, 5000), count=st.integers(0, 3000))
    def read_many(self, way: Way, offset: int, count: int) -> None:
        self.ask(way if count else RIGHT, lambda client: client.region_read(0, offset, count), contents(offset, count))

    @rule(way=ways, offset=st.integers(0, 5000), size=st.sampled_from([1, 2, 4, 8]))
    def write(self, way: Way, offset: int, size: int) -> None:
        self.ask(way, lambda client: client.connection.write(0, offset, size, 1), None)

    @rule(offset=st.integers(0, 5000), size=st.sampled_from([1, 2, 4, 8]))
    def post(self, offset: int, size: int) -> None:
        self.ask(RIGHT, lambda client: client.connection.post(0, offset, size, 1), None)

    @rule(way=ways, count=st.integers(1, 5))
    def write_many(self, way: Way, count: int) -> None:
        self.ask(way, lambda client: client.write_multi([(0, 0, b"ab")] * count), None)

    @rule(way=ways)
    def reset(self, way: Way) -> None:
        self.ask(way, lambda client: client.reset(), None)

    @rule(way=ways, count=st.integers(0, 4))
    def connect_vectors(self, way: Way, count: int) -> None:
        def connect(client: VfioUserClient) -> None:
            fds = [os.eventfd(0) for _ in range(count)]
            try:
                client.connect_irqs(2, fds)
            finally:
                close_all(fds)

        self.ask(way if count else RIGHT, connect, None)

    @rule(way=ways, page=st.integers(0, 3))
    def map_and_unmap(self, way: Way, page: int) -> None:
        def map_and_unmap(client: VfioUserClient) -> None:
            mapping = client.dma_map(self.guest, 0x1000 * page, offset=0x1000 * page, size=0x1000)
            client.dma_unmap(mapping)

        with contextlib.suppress(StateError):  # one that could not be unmapped is still there
            self.ask(way, map_and_unmap, None)

    @rule(way=ways)
    @precondition(lambda self: self.client is not None)
    def several_at_once(self, way: Way) -> None:
        """Replies go where they belong, though one of them is anything."""

        def several(client: VfioUserClient) -> list[bytes]:
            request = ACCESS.pack(16, 0, 4)
            pending = [client.connection.submit(Command.REGION_READ, request, max_payload=20) for _ in range(3)]
            client.connection.drain()
            # Newest first: none waits for those before it.
            others = [each.result().payload[16:] for each in pending[:0:-1]]
            return [*others, pending[0].result().payload[16:]]

        self.ask(way, several, [contents(16, 4)] * 3)

    def teardown(self) -> None:
        assert self.client is not None
        self.client.close()
        self.gone()
        self.guest.close()
        for thread in set(threading.enumerate()) - self.threads:
            thread.join(10)  # one that is about to end, as the watchdog is when nobody is left to watch
            assert not thread.is_alive(), thread
        assert leaked_since(self.before) == []


class InProcess(ClientMachine):
    """Both ends on this thread, and in a time of its own: a server that is silent costs nothing."""

    def reach(self) -> Connection:
        ours, theirs = memory_pair()
        self.server = Misbehaving(theirs)
        return Connection(ours, pump=self.pump)

    def pump(self, seconds: float) -> float:
        return 0.0 if self.server.work() else seconds


class OverASocket(ClientMachine):
    """The server on a thread of its own, behind a UNIX socket."""

    def reach(self) -> Connection:
        ours, theirs = socket.socketpair()
        server = self.server = Misbehaving(theirs)
        self.thread = threading.Thread(target=lambda: all(iter(server.work, False)))
        self.thread.start()
        return Connection(ours)

    def gone(self) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.mark.parametrize("machine", [InProcess, OverASocket])
def test_any_answers(machine: type[ClientMachine]) -> None:
    machine.steps = 0
    how = settings(
        max_examples=STEPS // PER_EXAMPLE * 3 // 2,
        stateful_step_count=PER_EXAMPLE,
        deadline=None,
        derandomize=True,
        database=None,
        # Without Phase.shrink a failure is told at once; with it, in a minute or two, and in few steps.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=how)
    assert machine.steps >= STEPS

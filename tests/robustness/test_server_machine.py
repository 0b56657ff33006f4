"""Legal and illegal commands in any order, at our server by our client, against a model of what must come of them.

A rule is one step: a command, or what ends a connection. The illegal ones are those of ``tests/server/test_malformed``,
which knows the errno of each. Whatever happened before, a legal command does what the model says, an illegal one is
refused with its errno, a broken stream ends the connection, and the next connection finds the device as it was left,
without the mappings and eventfds of the one before.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.server.test_malformed import (
    ACCESS_ROWS,
    DMA_MAP,
    DMA_UNMAP,
    FRAMING,
    INFO,
    SET_IRQS,
    descriptors,
    make_device,
)
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import GuestMapping, GuestMemory
from vfio_user.errors import CommandError, ConnectionClosedError, DeviceError, RemoteProtocolError, StateError
from vfio_user.protocol.constants import Command, IrqIndex
from vfio_user.protocol.header import command_header, reply_header
from vfio_user.regions import CallbackRegion
from vfio_user.server.device import Device
from vfio_user.server.server import Server
from vfio_user.testing.in_process import DeviceUnderTest
from vfio_user.testing.leaks import leaked_since, open_files

#: Steps each of the two tests takes, at least; with those of the client's machine there are 10,000.
STEPS = 3_000
PER_EXAMPLE = 50

#: By table and name, which a failure shows.
ILLEGAL = {
    f"{rows[0].command}: {row.name}": row
    for rows in (FRAMING, DMA_MAP, DMA_UNMAP, INFO, SET_IRQS, ACCESS_ROWS)
    for row in rows
}

#: What no server can go on after: a size no message has, a type there is not.
BROKEN = [
    command_header(1, 9, 0)[:4] + b"\x0f\0\0\0" + bytes(8),
    command_header(1, 9, 0)[:4] + b"\xff\xff\xff\xff" + bytes(8),
    command_header(1, 9, 0)[:8] + b"\x02\0\0\0" + bytes(4),
    command_header(1, 9, 0)[:8] + b"\x0f\0\0\0" + bytes(4),
]

MEMORY = 256
PAGE = 4096

#: Where mappings come and go. What the illegal commands are about lies elsewhere.
GRID = 0x1000_0000
CELLS = 8

#: The mapping some of the illegal commands overlap.
FIXED, FIXED_SIZE = 0x10000, 0x4000

#: The region whose writes make the device work - the one the illegal commands leave alone - and what they make it do.
ENGINE, READ, WRITE, TRIGGER = 8, 0, 8, 16

offsets = st.integers(0, MEMORY)
sizes = st.sampled_from([1, 2, 4, 8])
cells = st.integers(0, CELLS - 1)


def stream_of(name: str) -> bytes:
    """An illegal command as it goes over the wire."""
    row = ILLEGAL[name]
    return command_header(7, row.command, len(row.payload)) + row.payload


class Board(Device):
    """``make_device`` with an engine: it reads or writes a word at an IOVA, or triggers a vector.

    Attributes:
        done: what came of it.
    """

    def __init__(self) -> None:
        super().__init__(irqs={IrqIndex.INTX: 1, IrqIndex.MSIX: 8})
        plain = make_device()
        for index in range(7):
            if plain.region(index).size:
                self.set_region(index, plain.region(index))
        self.set_region(ENGINE, CallbackRegion(64, write=self.work))
        self.done: list[object] = []

    def work(self, offset: int, size: int, value: int) -> None:
        if offset == TRIGGER:
            self.done.append(self.interrupts.trigger(IrqIndex.MSIX, value))
        else:
            # Behind the reply: memory the client does not share is reached by messages to it.
            self.call_soon(self.transfer, offset, value)

    def transfer(self, offset: int, iova: int) -> None:
        try:
            if offset == READ:
                self.done.append(self.dma.read(iova, 8))
            else:
                self.dma.write(iova, b"written!")
                self.done.append(None)
        except DeviceError as exc:
            self.done.append(exc.errno)


class ServerMachine(RuleBasedStateMachine):
    """See the module."""

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.before = open_files()
        self.threads = set(threading.enumerate())
        self.board = Board()
        self.memory = bytearray(MEMORY)
        self.guest = GuestMemory(CELLS * PAGE)
        self.contents = bytearray(CELLS * PAGE)
        self.fixed = GuestMemory(FIXED_SIZE)
        self.stack = contextlib.ExitStack()
        self.connected = False
        self.client: VfioUserClient
        self.mappings: dict[int, GuestMapping] = {}
        self.vectors: list[Any] = []

    # How the two ends meet: the subclasses say.

    def reach(self) -> VfioUserClient:
        raise NotImplementedError

    def until(self, condition: Callable[[], bool]) -> None:
        """Lets the device work until it is so."""
        raise NotImplementedError

    @initialize()
    def first_connection(self) -> None:
        self.connect()

    @rule()
    @precondition(lambda self: not self.connected)
    def connect(self) -> None:
        self.step()
        self.client = self.reach()
        self.connected = True
        assert len(self.board.dma) == 0
        assert not any(self.board.interrupts.trigger(IrqIndex.MSIX, vector) for vector in range(8))
        self.client.dma_map(self.fixed, FIXED)

    def step(self) -> None:
        type(self).steps += 1

    def ended(self) -> None:
        """The connection is over, and with it all the client gave."""
        self.connected = False
        self.client.close()
        self.stack.close()
        self.mappings.clear()
        self.vectors.clear()

    # Accesses.

    @rule(offset=offsets, size=sizes)
    @precondition(lambda self: self.connected)
    def read(self, offset: int, size: int) -> None:
        self.step()
        if offset + size > MEMORY:
            with pytest.raises(CommandError, match="Invalid argument"):
                self.client.region(0).read(offset, size)
        else:
            expected = int.from_bytes(self.memory[offset : offset + size], "little")
            assert self.client.region(0).read(offset, size) == expected

    @rule(offset=offsets, size=sizes, value=st.integers(0, 255), posted=st.booleans())
    @precondition(lambda self: self.connected)
    def write(self, offset: int, size: int, value: int, posted: bool) -> None:
        self.step()
        data = bytes([value]) * size
        fits = offset + size <= MEMORY
        with contextlib.nullcontext() if fits or posted else pytest.raises(CommandError, match="Invalid argument"):
            self.client.region(0).write(offset, size, int.from_bytes(data, "little"), posted=posted)
        if fits:
            self.memory[offset : offset + size] = data

    @rule(offset=offsets, data=st.binary(max_size=MEMORY))
    @precondition(lambda self: self.connected)
    def bulk(self, offset: int, data: bytes) -> None:
        self.step()
        data = data[: MEMORY - offset]
        self.client.region_write(0, offset, data)
        self.memory[offset : offset + len(data)] = data
        assert self.client.region_read(0, 0, MEMORY) == self.memory

    @rule(writes=st.lists(st.tuples(st.integers(0, MEMORY - 8), st.binary(min_size=1, max_size=8)), max_size=9))
    @precondition(lambda self: self.connected)
    def many(self, writes: list[tuple[int, bytes]]) -> None:
        self.step()
        self.client.write_multi([(0, offset, data) for offset, data in writes])
        for offset, data in writes:
            self.memory[offset : offset + len(data)] = data

    @rule()
    @precondition(lambda self: self.connected)
    def reset(self) -> None:
        self.step()
        self.client.reset()
        assert len(self.board.dma) == 1 + len(self.mappings)
        self.memory[:] = self.client.region_read(0, 0, MEMORY)

    @rule(index=st.integers(0, 8))
    @precondition(lambda self: self.connected)
    def describe(self, index: int) -> None:
        self.step()
        info, fd = self.client.region_info(index)
        assert (info.size, fd) == (self.board.region(index).size, None)

    # Memory.

    @rule(cell=cells, pages=st.integers(1, 3), shared=st.booleans(), readable=st.booleans(), writable=st.booleans())
    @precondition(lambda self: self.connected)
    def map(self, cell: int, pages: int, shared: bool, readable: bool, writable: bool) -> None:
        self.step()
        pages = min(pages, CELLS - cell)
        taken = {at for start, each in self.mappings.items() for at in range(start, start + each.size // PAGE)}
        iova, size = GRID + cell * PAGE, pages * PAGE
        with (
            pytest.raises((StateError, CommandError))
            if taken & set(range(cell, cell + pages))
            else contextlib.nullcontext()
        ):
            self.mappings[cell] = self.client.dma_map(
                self.guest,
                iova,
                offset=cell * PAGE,
                size=size,
                shared=shared,
                readable=readable,
                writable=writable,
            )
        assert len(self.board.dma) == 1 + len(self.mappings)

    @rule(choice=st.randoms(use_true_random=False))
    @precondition(lambda self: self.connected and self.mappings)
    def unmap(self, choice: random.Random) -> None:
        self.step()
        mapping = self.mappings.pop(choice.choice(sorted(self.mappings)))
        self.client.dma_unmap(mapping)
        assert len(self.board.dma) == 1 + len(self.mappings)

    @rule(cell=cells, offset=st.integers(0, PAGE - 8), write=st.booleans())
    @precondition(lambda self: self.connected)
    def transfer(self, cell: int, offset: int, write: bool) -> None:
        self.step()
        at = cell * PAGE + offset
        self.board.done.clear()
        self.client.region_write(ENGINE, WRITE if write else READ, (GRID + at).to_bytes(8, "little"))
        self.until(lambda: bool(self.board.done))
        [outcome] = self.board.done
        found = next((each for start, each in self.mappings.items() if start <= cell < start + each.size // PAGE), None)
        if found is None:
            assert outcome == 2  # ENOENT
        elif not (found.writable if write else found.readable):
            assert outcome == 13  # EACCES
        elif write:
            assert outcome is None
            self.contents[at : at + 8] = b"written!"
            assert bytes(self.guest.view[at : at + 8]) == b"written!"
        else:
            assert outcome == self.contents[at : at + 8]

    @rule(cell=cells, offset=st.integers(0, PAGE - 8), data=st.binary(min_size=8, max_size=8))
    def prepare(self, cell: int, offset: int, data: bytes) -> None:
        self.step()
        at = cell * PAGE + offset
        self.contents[at : at + 8] = self.guest.view[at : at + 8] = data

    # Interrupts.

    @rule(count=st.integers(0, 8))
    @precondition(lambda self: self.connected)
    def enable(self, count: int) -> None:
        self.step()
        irq = self.client.irq(IrqIndex.MSIX)
        if count:
            self.vectors = irq.enable(count)
        else:
            irq.disable()
            self.vectors = []

    @rule(vector=st.integers(0, 7))
    @precondition(lambda self: self.connected)
    def trigger(self, vector: int) -> None:
        self.step()
        self.board.done.clear()
        self.client.region_write(ENGINE, TRIGGER, vector.to_bytes(8, "little"))
        assert self.board.done == [vector < len(self.vectors)]
        if vector < len(self.vectors):
            assert self.vectors[vector].wait(0.5) == 1

    # What must be refused.

    @rule(name=st.sampled_from(sorted(ILLEGAL)), posted=st.booleans())
    @precondition(lambda self: self.connected)
    def illegal(self, name: str, posted: bool) -> None:
        self.step()
        connection = self.client.connection
        row = ILLEGAL[name]
        with descriptors(row.fds) as fds:
            if posted and not fds:
                connection.send_posted(row.command, row.payload)
                return
            # No reply may have a payload here: RemoteProtocolError would say that it had.
            with pytest.raises(CommandError) as caught:
                connection.request(row.command, row.payload, fds=fds)
        assert caught.value.errno == row.errno

    @rule(name=st.sampled_from(sorted(ILLEGAL)), length=st.integers(0, 15))
    @precondition(lambda self: self.connected)
    def cut_short(self, name: str, length: int) -> None:
        self.step()
        with pytest.raises(CommandError):
            self.client.connection.request(
                ILLEGAL[name].command, ILLEGAL[name].payload[:length], max_payload=1 << 20, max_fds=16
            )

    @rule(command=st.sampled_from([14, 16, 17, 18]), payload=st.binary(max_size=64))
    @precondition(lambda self: self.connected)
    def nothing_to_migrate(self, command: int, payload: bytes) -> None:
        self.step()
        with pytest.raises(CommandError):
            self.client.connection.request(command, payload)

    @rule(message_id=st.integers(0, 0xFFFF), command=st.sampled_from([*Command, 77]))
    @precondition(lambda self: self.connected)
    def unasked_reply(self, message_id: int, command: int) -> None:
        """The server answers it with an error nobody waits for."""
        self.step()
        dropped = self.client.connection.statistics.dropped_replies
        self.send(reply_header(message_id, command, 0))
        self.client.get_info()
        assert self.client.connection.statistics.dropped_replies in (dropped, dropped + 1)

    # What ends a connection.

    def send(self, data: bytes) -> None:
        assert self.client.connection._channel.send(data) == len(data)

    def ask_repeatedly(self) -> None:
        """The first may be answered by the error reply a server sends before it closes a connection."""
        for _ in range(3):
            self.client.get_info()

    def break_the_stream(self, data: bytes) -> None:
        self.send(data)
        with pytest.raises((ConnectionClosedError, RemoteProtocolError)):
            self.ask_repeatedly()

    # One rule for all of them: a connection that ends at every fifth step never sees much.
    @rule(
        how=st.one_of(
            st.sampled_from(BROKEN),
            st.none(),
            st.builds(
                lambda name, part: stream_of(name)[: int(part * len(stream_of(name)))],
                st.sampled_from(sorted(ILLEGAL)),
                st.floats(0, 1, exclude_max=True),
            ),
        )
    )
    @precondition(lambda self: self.connected)
    def end(self, how: bytes | None) -> None:
        """By bytes no server goes on after, in the middle of a message, or between two."""
        self.step()
        if how in BROKEN:
            self.break_the_stream(how)
        elif how:
            self.send(how)
        self.ended()

    def teardown(self) -> None:
        if self.connected:
            self.ended()
        self.guest.close()
        self.fixed.close()
        self.stop()
        for thread in set(threading.enumerate()) - self.threads:
            thread.join(10)  # one that is about to end, as the watchdog is when nobody is left to watch
            assert not thread.is_alive(), thread
        assert leaked_since(self.before) == []

    def stop(self) -> None:
        """Ends what outlives a connection."""


class InProcess(ServerMachine):
    """Both ends on this thread; a device's own failure would be raised here."""

    pair: DeviceUnderTest

    def reach(self) -> VfioUserClient:
        self.pair = self.stack.enter_context(DeviceUnderTest(self.board, timeout=1.0))
        return self.pair.client

    def until(self, condition: Callable[[], bool]) -> None:
        self.pair.wait_until(condition, 1.0)


class OverASocket(ServerMachine):
    """The server on a thread of its own, behind a UNIX socket."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "s"
        self.server = Server(self.board, self.path, strict=True).start()

    def reach(self) -> VfioUserClient:
        return VfioUserClient.connect(self.path, timeout=10.0)

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            self.client.connection.process(0.01)
        raise AssertionError("the device did nothing")

    def stop(self) -> None:
        self.server.close()
        self.folder.cleanup()


def mapped_files() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:")


@pytest.mark.parametrize("machine", [InProcess, OverASocket])
def test_any_order_of_commands(machine: type[ServerMachine]) -> None:
    machine.steps = 0
    mapped = mapped_files()
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
    assert mapped_files() == mapped

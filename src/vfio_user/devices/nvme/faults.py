"""Faults on purpose: commands that fail, come late or never, data that is not what was written, a controller that dies.

    controller.faults.add(Fault(FaultKind.STATUS, command=NvmOpcode.READ, lbas=range(100, 108)))

Each command that is fetched is shown to the faults in the order they were added; the first that hits it decides what
becomes of it. Those that none hits go on to the engine there was before, many together where they can.

While there is no fault nothing of this is in the way of a command: ``Faults`` takes the place of the engines with the
first one, and gives it back with the last. Faults are no part of the saved state: a device that has moved has none.

Halves of fused operations are never hit.
"""

from __future__ import annotations

import enum
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vfio_user.devices.nvme.command import Command, CommandFailed, status_of
from vfio_user.devices.nvme.jobs import Job
from vfio_user.hardware.nvme.entries import SUBMISSION_ENTRY_SIZE, SubmissionEntry
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode
from vfio_user.hardware.nvme.status import Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Engine, Nvme
    from vfio_user.devices.nvme.namespaces import Namespace
    from vfio_user.devices.nvme.queues import CompletionQueue, SubmissionQueue

__all__ = ["Fault", "FaultKind", "Faults"]

log = logging.getLogger(__name__)

#: Commands that name one range of blocks.
_WITH_BLOCKS = frozenset(
    {
        NvmOpcode.READ,
        NvmOpcode.WRITE,
        NvmOpcode.COMPARE,
        NvmOpcode.VERIFY,
        NvmOpcode.WRITE_ZEROES,
        NvmOpcode.WRITE_UNCORRECTABLE,
    }
)


class FaultKind(enum.Enum):
    """What becomes of a command."""

    STATUS = "status"
    """It is not carried out, and ends with ``status``."""
    DELAY = "delay"
    """It begins ``seconds`` later."""
    DROP = "drop"
    """It is not carried out, and never ends, unless the host aborts it."""
    LOSE_INTERRUPT = "lose-interrupt"
    """It is carried out, and the next interrupt of its completion queue does not come."""
    TORN = "torn"
    """A write: only the first ``blocks`` of it are written; success is reported."""
    MISDIRECT = "misdirect"
    """A write: it goes to the blocks from ``to`` on; success is reported."""
    CORRUPT = "corrupt"
    """A read: one bit of its data, anywhere, is wrong; success is reported."""
    FATAL = "fatal"
    """The controller fails: CSTS.CFS, until it is reset."""
    HANG = "hang"
    """No command ends any more, on any queue, until the controller is reset."""


#: The only command some kinds are for.
_ONLY = {
    FaultKind.TORN: NvmOpcode.WRITE,
    FaultKind.MISDIRECT: NvmOpcode.WRITE,
    FaultKind.CORRUPT: NvmOpcode.READ,
}


@dataclass(slots=True, eq=False)
class Fault:
    """One fault: what happens, to which commands, and how often.

    Attributes:
        kind: what happens.
        command: to commands of this opcode; None for all I/O commands, or, with ``queue=0``, all admin commands.
        nsid: to commands of this namespace; None for any.
        queue: to commands of this submission queue; None for any.
        lbas: to commands with at least one block of these, in steps of 1; None for any.
        nth: of those, only the so-manieth, counted from 1.
        every: of those, each so-manieth.
        probability: of those, each with this probability, over 0 and up to 1.
        seed: of what is left to chance: the same seed, the same commands.
        times: after so many hits it is over; None for never.
        status: with STATUS.
        retry: with STATUS: the host may try again.
        seconds: with DELAY.
        blocks: with TORN.
        to: with MISDIRECT: a block of the same namespace.
        seen: commands it was for, hit or not.
        hits: commands it hit.

    Raises:
        ValueError: a value is out of its range, or the command is none its kind is for.
    """

    kind: FaultKind
    command: NvmOpcode | AdminOpcode | None = None
    nsid: int | None = None
    queue: int | None = None
    lbas: range | None = None
    nth: int | None = None
    every: int | None = None
    probability: float = 1.0
    seed: int = 0
    times: int | None = None
    status: Status = Status.INTERNAL_ERROR
    retry: bool = False
    seconds: float = 1.0
    blocks: int = 0
    to: int = 0
    seen: int = field(default=0, init=False)
    hits: int = field(default=0, init=False)
    random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("nth", "every", "times"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: commands are counted from 1")
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability={self.probability}: it is over 0 and up to 1; for no fault, add none")
        if self.seconds < 0:
            raise ValueError(f"seconds={self.seconds}: a command cannot begin before it came")
        for name in ("blocks", "to"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: blocks are counted from 0")
        if self.kind is FaultKind.STATUS and self.status == Status.SUCCESS:
            raise ValueError("status=SUCCESS: that is no fault; take the status of an error")
        if self.lbas is not None and (self.lbas.step != 1 or not self.lbas or self.lbas[0] < 0):
            raise ValueError(f"lbas={self.lbas}: give a range of at least one block, in steps of 1")
        only = _ONLY.get(self.kind)
        if only is not None:
            if self.command not in (None, only):
                raise ValueError(
                    f"command={self.command.name if self.command else None}: {self.kind.value} is a fault of "
                    f"{only.name} alone; leave the command out"
                )
            self.command = only
        if isinstance(self.command, AdminOpcode):
            if self.queue:
                raise ValueError(
                    f"queue={self.queue}: {self.command.name} is a command of queue 0; leave the queue out"
                )
            self.queue = 0
        elif self.command is not None and self.queue == 0:
            raise ValueError(f"queue=0: {self.command.name} is an I/O command, and queue 0 has none")
        self.random = random.Random(self.seed)

    def strikes(self, qid: int, entry: SubmissionEntry) -> bool:
        """Whether it hits a command, which it counts."""
        if self.times is not None and self.hits >= self.times:
            return False
        if (qid == 0 if self.queue is None else qid != self.queue) or (self.command not in (None, entry.opcode)):
            return False
        if self.nsid not in (None, entry.nsid):
            return False
        lbas = self.lbas
        if lbas is not None and (
            qid == 0
            or entry.opcode not in _WITH_BLOCKS
            or not (entry.slba < lbas.stop and lbas.start < entry.slba + entry.block_count)
        ):
            return False
        self.seen += 1
        if self.nth is not None and self.seen != self.nth:
            return False
        if self.every is not None and self.seen % self.every:
            return False
        if self.probability < 1 and self.random.random() >= self.probability:
            return False
        self.hits += 1
        return True

    def __str__(self) -> str:
        what = "any" if self.command is None else self.command.name
        where = "" if self.lbas is None else f" of blocks [{self.lbas.start}, {self.lbas.stop})"
        return f"{self.kind.value} of {what}{where}: {self.hits} hits of {self.seen} commands"


class Faults:
    """The faults of a controller; an engine while there are any.

    Args:
        controller: whose.

    Threading: session thread, or before the device is served; ``call_soon`` from others.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._faults: list[Fault] = []
        self._engines: tuple[Engine, Engine] | None = None
        self._silent: set[CompletionQueue] = set()
        #: The admin queue of the controller that hangs: a reset makes another.
        self._hung: SubmissionQueue | None = None
        self._kinds: dict[FaultKind, Callable[[SubmissionQueue, SubmissionEntry, Fault], None]] = {
            FaultKind.STATUS: self._status,
            FaultKind.DELAY: self._delay,
            FaultKind.DROP: self._drop,
            FaultKind.LOSE_INTERRUPT: self._lose_interrupt,
            FaultKind.TORN: self._bad_write,
            FaultKind.MISDIRECT: self._bad_write,
            FaultKind.CORRUPT: self._corrupt,
            FaultKind.FATAL: self._fatal,
            FaultKind.HANG: self._hang,
        }

    def __iter__(self) -> Iterator[Fault]:
        return iter(tuple(self._faults))

    def add(self, fault: Fault) -> Fault:
        """Adds a fault, after those there are.

        Returns:
            It, for its counters and for ``remove``.
        """
        controller = self._controller
        self._faults.append(fault)
        if self._engines is None:
            self._engines = controller.engine, controller.admin_engine
            controller.engine = controller.admin_engine = self
            controller.posted = self._posted
        return fault

    def remove(self, fault: Fault) -> None:
        """Removes a fault; what it has delayed or dropped remains so.

        Raises:
            ValueError: it is none of these.
        """
        self._faults.remove(fault)
        if not self._faults:
            self.clear()

    def clear(self) -> None:
        """Removes all. A controller that hangs goes on with the next command."""
        controller = self._controller
        self._faults.clear()
        self._silent.clear()
        self._hung = None
        if self._engines is not None:
            controller.engine, controller.admin_engine = self._engines
            controller.posted = controller.vectors.posted
            self._engines = None

    def report(self) -> str:
        """One line a fault: what it is, what it hit."""
        return "\n".join(str(fault) for fault in self._faults)

    # An engine.

    def take(self, queue: SubmissionQueue, entries: bytes) -> None:
        """See ``Engine``."""
        passed = 0
        for offset in range(0, len(entries), SUBMISSION_ENTRY_SIZE):
            entry = SubmissionEntry.unpack(entries, offset)
            strike = self._strike(queue, entry)
            if strike is None:
                continue
            if passed < offset:
                self._engine(queue).take(queue, entries[passed:offset])
            passed = offset + SUBMISSION_ENTRY_SIZE
            strike()
            if not queue.alive:
                return
        if passed < len(entries):
            self._engine(queue).take(queue, entries[passed:] if passed else entries)

    def execute(self, queue: SubmissionQueue, entry: SubmissionEntry) -> None:
        """See ``Engine``."""
        strike = self._strike(queue, entry)
        if strike is None:
            self._engine(queue).execute(queue, entry)
        else:
            strike()

    def _engine(self, queue: SubmissionQueue) -> Engine:
        """Who carries commands out; a strike may have removed all faults."""
        controller = self._controller
        engines = self._engines or (controller.engine, controller.admin_engine)
        return engines[0 if queue.qid else 1]

    def _strike(self, queue: SubmissionQueue, entry: SubmissionEntry) -> Callable[[], None] | None:
        if self._hung is not None:
            if self._controller.submission_queues.get(0) is self._hung:
                return lambda: None
            self._hung = None
        if entry.flags & 3:
            return None
        for fault in self._faults:
            if fault.strikes(queue.qid, entry):
                log.info("nvme %s: %r of queue %d is hit by %s", self._controller.serial, entry, queue.qid, fault)
                return lambda: self._kinds[fault.kind](queue, entry, fault)
        return None

    # Kinds.

    def _status(self, queue: SubmissionQueue, entry: SubmissionEntry, fault: Fault) -> None:
        lba = entry.slba if entry.opcode in _WITH_BLOCKS and queue.qid else 0
        if fault.status == Status.UNRECOVERED_READ_ERROR:
            self._controller.health.media_errors += 1
        self._controller.fail(queue, entry, CommandFailed(fault.status, retry=fault.retry, lba=lba))

    def _delay(self, queue: SubmissionQueue, entry: SubmissionEntry, fault: Fault) -> None:
        command = self._keep(queue, entry)
        if command is not None:
            self._controller.call_later(fault.seconds, self._begin, command)

    def _begin(self, command: Command) -> None:
        if command.cancelled:
            return
        if self._controller.turns.are_paused:
            self._controller.turns.put_off(lambda: self._begin(command))
            return
        queue = command.queue
        del queue.in_flight[command.entry.cid]
        self._engine(queue).execute(queue, command.entry)
        self._controller.flush_soon(queue.completions)

    def _drop(self, queue: SubmissionQueue, entry: SubmissionEntry, fault: Fault) -> None:
        self._keep(queue, entry)

    def _keep(self, queue: SubmissionQueue, entry: SubmissionEntry) -> Command | None:
        """Keeps a command in flight that can be aborted, as one that has not begun."""
        if entry.cid in queue.in_flight:
            self._engine(queue).execute(queue, entry)  # which refuses it
            return None
        command = Command(queue, entry)
        command.job = Job(
            command, lambda: None, lambda _: 0,
            gate=None, blocks=False, write=False, to_guest=False, size=0, ended=None,
        )  # fmt: skip
        queue.in_flight[entry.cid] = command
        return command

    def _lose_interrupt(self, queue: SubmissionQueue, entry: SubmissionEntry, fault: Fault) -> None:
        self._silent.add(queue.completions)
        self._engine(queue).execute(queue, entry)

    def _posted(self, queue: CompletionQueue, count: int) -> None:
        if queue in self._silent:
            self._silent.discard(queue)
        else:
            self._controller.vectors.posted(queue, count)

    def _fatal(self, queue: SubmissionQueue, entry: SubmissionEntry, fault: Fault) -> None:
        self._controller.life.fail("a fault on purpose")

    def _hang(self, queue: SubmissionQueue, entry: SubmissionEntry, fault: Fault) -> None:
        self._hung = self._controller.submission_queues[0]

    # Data that is not what it should be.

    def _target(self, queue: SubmissionQueue, entry: SubmissionEntry) -> Namespace | None:
        """The namespace of a read or write that would succeed, as far as that can be known; None otherwise."""
        try:
            namespace = self._controller.namespaces.active(entry.nsid)
        except CommandFailed:
            return None
        if (
            entry.cid in queue.in_flight
            or namespace.formatting
            or entry.slba + entry.block_count > namespace.blocks
            or entry.block_count << namespace.shift > self._controller.max_transfer
            or (entry.opcode == NvmOpcode.WRITE and namespace.write_protected)
            or (entry.opcode == NvmOpcode.READ and namespace.uncorrectable)
        ):
            return None
        return namespace

    def _bad_write(self, queue: SubmissionQueue, entry: SubmissionEntry, fault: Fault) -> None:
        controller = self._controller
        namespace = self._target(queue, entry)
        if namespace is None:
            self._engine(queue).execute(queue, entry)  # which refuses it
            return
        length = entry.block_count << namespace.shift
        try:
            data = memoryview(controller.data.read(controller.data.pieces(entry, length)))
        except (CommandFailed, OSError) as exc:
            controller.fail(queue, entry, status_of(exc, write=False))
            return
        if fault.kind is FaultKind.TORN:
            data, offset = data[: fault.blocks << namespace.shift], entry.slba << namespace.shift
        else:
            offset = fault.to << namespace.shift
            data = data[: max(0, (namespace.blocks << namespace.shift) - offset)]
        backend = namespace.backend

        def work() -> None:
            if data:
                backend.write(offset, [data])

        controller.jobs.start(
            Command(queue, entry), work, lambda _: 0,
            gate=namespace.gate, blocks=backend.blocking, write=True, size=length,
        )  # fmt: skip

    def _corrupt(self, queue: SubmissionQueue, entry: SubmissionEntry, fault: Fault) -> None:
        controller = self._controller
        namespace = self._target(queue, entry)
        if namespace is None:
            self._engine(queue).execute(queue, entry)
            return
        offset, length = entry.slba << namespace.shift, entry.block_count << namespace.shift
        try:
            pieces = controller.data.pieces(entry, length)
        except CommandFailed as exc:
            controller.fail(queue, entry, exc)
            return
        backend = namespace.backend

        def work() -> bytearray:
            buffer = bytearray(length)
            backend.read(offset, [memoryview(buffer)])
            return buffer

        def finish(buffer: bytearray) -> int:
            bit = fault.random.randrange(8 * length)
            buffer[bit >> 3] ^= 1 << (bit & 7)
            controller.data.write(pieces, buffer)
            return 0

        controller.jobs.start(
            Command(queue, entry), work, finish,
            gate=namespace.gate, blocks=backend.blocking, to_guest=True, size=length,
        )  # fmt: skip

"""Moves a running device from one server to another: what a VMM does with its devices while its guest moves.

    source, destination = VfioUserClient.connect("/tmp/old.sock"), VfioUserClient.connect("/tmp/new.sock")
    ...                                   # the guest's memory is mapped in both, or in the source alone
    report = migrate(source, destination, pause=stop_processors)
    print(f"the device stood still for {report.downtime * 1000:.1f} ms")

Theory of operation
-------------------

The two devices are of one class, each in its own server; this process is the client of both.

==============  ========================================================  ==================  ==========================
step            what happens                                              source              destination
==============  ========================================================  ==================  ==========================
``PREPARE``     memory and interrupts are set up at the destination       RUNNING             RUNNING, then RESUMING
``PRE_COPY``    memory is copied, and again what the device (or the       PRE_COPY            RESUMING
                guest) wrote meanwhile, until little is left; of the
                device's state, what it gives
``STOP``        the guest is paused, the device stopped                   STOP_COPY           RESUMING
``STOP_COPY``   the last written pages and the rest of the state          STOP_COPY           RESUMING
``RESUME``      the state is put into effect                              STOP_COPY           RUNNING
``DONE``        the source keeps still                                    STOP                RUNNING
==============  ========================================================  ==================  ==========================

Nothing is lost. *Register accesses*: those made before ``pause`` were carried out by the source, as it takes commands
in their order; those after the end go to the destination. *Interrupts*: both devices have the same eventfds, in which
what the source fired stays until somebody looks; one that could not be delivered yet is a part of the state. *DMA*:
what the source wrote is copied after it has stopped.

Up to the end of ``RESUME`` everything can be called off, and is, whatever goes wrong: the destination is hung up on,
and the source runs on. It is the destination that runs from then on, whatever goes wrong.

**Memory.** A mapping of the source that the destination does not have is made there, of the same memory: then there is
nothing to copy. Where the destination has a mapping of the same addresses of its own, of other memory, that one is
filled. What processors write is not a device's to log: a VMM says it by ``dirtied``.

Spec: "VFIO_USER_DEVICE_FEATURE"; ``enum vfio_device_mig_state`` of ``linux/vfio.h``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from vfio_user.client.guest_memory import GuestMapping
from vfio_user.errors import (
    CommandError,
    CommandTimeoutError,
    ConnectionClosedError,
    MigrationError,
    StateError,
    VfioUserError,
)
from vfio_user.protocol.migration import MigrationState

if TYPE_CHECKING:
    from vfio_user.client.device import VfioUserClient
    from vfio_user.client.irq import Irq

__all__ = ["LiveMigration", "MigrationLimits", "MigrationProgress", "MigrationReport", "MigrationStep", "migrate"]

#: Bytes of memory copied between two looks at what else there is to do.
_PIECE = 4 << 20


#: Bytes of state moved in one round of pre-copy, at most.
_ROUND_STATE = 256 << 20


class MigrationStep(Enum):
    """See the module. The values are for people."""

    PREPARE = "prepare"
    PRE_COPY = "pre-copy"
    STOP = "stop"
    STOP_COPY = "stop-and-copy"
    RESUME = "resume"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class MigrationLimits:
    """When to stop copying what changes meanwhile, and when to give up.

    Attributes:
        downtime: seconds the device may stand still, as far as copying memory goes: pre-copy goes on until the rest
            can be copied in half of that.
        rounds: of pre-copy, at most; then the rest is copied while the device stands still, however long it takes. With
            0 there is no pre-copy.
        state_size: bytes of state, at most: a server could give bytes for ever.
    """

    downtime: float = 0.05
    rounds: int = 30
    state_size: int = 16 << 30


@dataclass(frozen=True, slots=True)
class MigrationProgress:
    """How far it is.

    Attributes:
        step: what is being done.
        round: of pre-copy, from 1.
        memory_bytes: of memory, copied so far.
        memory_left: bytes of memory to copy, of what is known now.
        state_bytes: of the device's state, moved so far.
    """

    step: MigrationStep
    round: int = 0
    memory_bytes: int = 0
    memory_left: int = 0
    state_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a migration was.

    Attributes:
        generation: of the protocol, at the source.
        downtime: seconds the device stood still: from before it was told to stop until the other one ran.
        seconds: all of it took.
        rounds: of pre-copy.
        memory_bytes: of memory, copied; in ``final_memory_bytes`` those while the device stood still.
        final_memory_bytes: see there.
        state_bytes: of the device's state; in ``final_state_bytes`` those while it stood still.
        final_state_bytes: see there.
    """

    generation: int
    downtime: float
    seconds: float
    rounds: int
    memory_bytes: int
    final_memory_bytes: int
    state_bytes: int
    final_state_bytes: int


def migrate(
    source: VfioUserClient,
    destination: VfioUserClient,
    *,
    limits: MigrationLimits | None = None,
    progress: Callable[[MigrationProgress], None] | None = None,
    pause: Callable[[], None] | None = None,
    dirtied: Callable[[], Iterable[tuple[int, int]]] | None = None,
) -> MigrationReport:
    """Moves a device; see ``LiveMigration``, whose arguments and exceptions these are."""
    return LiveMigration(source, destination, limits=limits, progress=progress, pause=pause, dirtied=dirtied).run()


class _Pair:
    """Memory that is copied: a mapping of the source, and the one of the destination that is to be like it."""

    def __init__(self, source: GuestMapping, destination: GuestMapping) -> None:
        self.source = source
        self.destination = destination

    def copy(self, iova: int, size: int) -> None:
        at = iova - self.source.iova
        begin, into = self.source.offset + at, self.destination.offset + at
        self.destination.memory.view[into : into + size] = self.source.memory.view[begin : begin + size]

    def part(self, iova: int, size: int) -> tuple[int, int] | None:
        """What of a range lies in this mapping."""
        start, end = max(iova, self.source.iova), min(iova + size, self.source.end)
        return (start, end - start) if start < end else None


#: Bytes to copy: between which mappings, from which IOVA on, how many.
_Run = tuple[_Pair, int, int]


class LiveMigration:
    """One migration; see the module.

    Args:
        source: the device that runs. It keeps its mappings and eventfds.
        destination: a device of the same class, just made: fresh, running, with no state of its own that matters.
        limits: see there.
        progress: called at the beginning of each step, and after each chunk copied. What it raises calls the migration
            off, up to ``DONE``. A VMM with one thread lets its guest run in it, up to ``STOP``.
        pause: called before the device is stopped: from its return on, and until ``run`` has returned, nobody accesses
            the device. (When the migration was called off, whoever paused lets the guest go on.)
        dirtied: gives (IOVA, bytes) of what others than the device wrote since it was last called; called in every
            round, and once more after ``pause``.

    Attributes:
        is_rolling_back: it is being called off: a second Ctrl-C would only make matters worse.
        source_runs: the device works at the source; False from the moment it is stopped there, unless it was made to
            run again.
        is_committed: the device works at the destination.

    Ownership: the clients stay the caller's; when the migration is called off, the destination is closed.

    Threading: the clients'.
    """

    def __init__(
        self,
        source: VfioUserClient,
        destination: VfioUserClient,
        *,
        limits: MigrationLimits | None = None,
        progress: Callable[[MigrationProgress], None] | None = None,
        pause: Callable[[], None] | None = None,
        dirtied: Callable[[], Iterable[tuple[int, int]]] | None = None,
    ) -> None:
        if source is destination:
            raise ValueError("the source is the destination: a device moves from one server to another")
        self.is_rolling_back = False
        self.source_runs = True
        self.is_committed = False
        self._source = source
        self._destination = destination
        self._limits = limits or MigrationLimits()
        self._on_progress = progress
        self._pause = pause
        self._dirtied = dirtied
        self._step = MigrationStep.PREPARE
        self._touched = False
        self._is_logged = False
        #: What is left for when the device stands still, beside what it has written by then.
        self._rest: list[_Run] = []
        self._pairs: list[_Pair] = []
        self._taken_over: list[tuple[Irq, Irq]] = []
        self._round = self._memory_bytes = self._memory_left = self._state_bytes = 0

    def run(self) -> MigrationReport:
        """Moves the device; can be called once.

        Raises:
            MigrationError: a server refused, failed, or went away; the text says what, and whether the source runs on.
            BaseException: what ``progress``, ``pause`` or ``dirtied`` raised, and KeyboardInterrupt: the source runs
                on, or a note says that it does not.
        """
        began = time.perf_counter()
        try:
            self._prepare()
            self._pre_copy()
            stopped, memory_before, state_before = self._stop()
            self._stop_copy()
            self._resume()
        except BaseException as exc:
            self._roll_back(exc)
            raise
        downtime = time.perf_counter() - stopped
        self._finish()
        return MigrationReport(
            generation=self._source.migration.generation,
            downtime=downtime,
            seconds=time.perf_counter() - began,
            rounds=self._round,
            memory_bytes=self._memory_bytes,
            final_memory_bytes=self._memory_bytes - memory_before,
            state_bytes=self._state_bytes,
            final_state_bytes=self._state_bytes - state_before,
        )

    # The steps.

    def _prepare(self) -> None:
        self._begin(MigrationStep.PREPARE)
        for name, client in (("source", self._source), ("destination", self._destination)):
            state = client.migration.state
            if state != MigrationState.RUNNING:
                raise StateError(f"the {name} is in {state.name}: a migration begins with both devices RUNNING")
        self._touched = True
        self._pair_memory()
        for irq in self._source.enabled_irqs():
            other = self._destination.irq(irq.index)
            other.take_over(irq)
            self._taken_over.append((irq, other))
        if self._pairs and self._limits.rounds:
            # A device that does not log what it writes moves all the same, it only stands still for longer.
            with contextlib.suppress(CommandError):
                self._source.migration.start_log()
                self._is_logged = True
        self._destination.migration.go_to(MigrationState.RESUMING)

    def _pair_memory(self) -> None:
        for mapping in self._source.space:
            there = self._destination.space.overlap(mapping.iova, mapping.end)
            if there is None:
                self._destination.map_like(mapping)
            elif (there.iova, there.size) != (mapping.iova, mapping.size):
                raise StateError(
                    f"the source maps [{mapping.iova:#x}, {mapping.end:#x}), the destination "
                    f"[{there.iova:#x}, {there.end:#x}): both have to map the same ranges"
                )
            elif there.memory is not mapping.memory or there.offset != mapping.offset:
                self._pairs.append(_Pair(mapping, there))

    def _pre_copy(self) -> None:
        self._begin(MigrationStep.PRE_COPY)
        source, limits = self._source.migration, self._limits
        to_copy = [(pair, pair.source.iova, pair.source.size) for pair in self._pairs]
        if not self._is_logged:
            to_copy, self._rest = [], to_copy
        if not limits.rounds:
            return
        if source.has_pre_copy:
            source.go_to(MigrationState.PRE_COPY)
        while True:
            self._round += 1
            started = time.perf_counter()
            self._copy(to_copy)
            if source.has_pre_copy:
                self._move_state(_ROUND_STATE)
            seconds = time.perf_counter() - started
            copied = sum(size for _, _, size in to_copy)
            to_copy = self._written()
            left = sum(size for _, _, size in to_copy)
            # What a round of so many bytes takes tells how long the rest would.
            if self._round >= limits.rounds or left * seconds <= copied * limits.downtime / 2:
                # It is written to all the same: better copied twice than while nothing runs.
                self._copy(to_copy)
                return

    def _stop(self) -> tuple[float, int, int]:
        """Returns the time, and the bytes of memory and of state moved by then."""
        self._begin(MigrationStep.STOP)
        before = time.perf_counter(), self._memory_bytes, self._state_bytes
        if self._pause is not None:
            self._pause()
        self.source_runs = False
        self._source.migration.go_to(MigrationState.STOP_COPY)
        return before

    def _stop_copy(self) -> None:
        self._begin(MigrationStep.STOP_COPY)
        self._copy(self._rest + self._written())
        self._move_state()

    def _resume(self) -> None:
        self._begin(MigrationStep.RESUME)
        self._destination.migration.go_to(MigrationState.RUNNING)
        self.is_committed = True

    def _finish(self) -> None:
        """The destination runs: whatever the source says now, it is not wanted any more."""
        for irq, other in self._taken_over:
            for vector, new in zip(irq, other, strict=False):
                vector.hand_over(new)
        self._destination.take_memory_of(self._source)
        with contextlib.suppress(VfioUserError):
            self._source.migration.stop_log()
            self._source.migration.go_to(MigrationState.STOP)
        self._begin(MigrationStep.DONE)

    # What they are made of.

    def _begin(self, step: MigrationStep) -> None:
        self._step = step
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(
                MigrationProgress(self._step, self._round, self._memory_bytes, self._memory_left, self._state_bytes)
            )

    def _written(self) -> list[_Run]:
        """The runs of pages that were written since this was last asked."""
        runs = []
        if self._is_logged:
            for pair in self._pairs:
                runs += [(pair, iova, size) for iova, size in self._source.migration.dirty_pages(pair.source)]
            for iova, size in () if self._dirtied is None else self._dirtied():
                for pair in self._pairs:
                    if (part := pair.part(iova, size)) is not None:
                        runs.append((pair, *part))
        return runs

    def _copy(self, runs: list[_Run]) -> None:
        self._memory_left = sum(size for _, _, size in runs)
        for pair, iova, size in runs:
            for start in range(iova, iova + size, _PIECE):
                piece = min(_PIECE, iova + size - start)
                pair.copy(start, piece)
                self._memory_bytes += piece
                self._memory_left -= piece
                self._tell()

    def _move_state(self, at_most: int | None = None) -> None:
        """Moves what of the state there is to read; in PRE_COPY that may never end, unless after so many bytes."""
        limit = self._limits.state_size
        end = limit if at_most is None else self._state_bytes + at_most
        for chunk in self._source.migration.read():
            if self._state_bytes + len(chunk) > limit:
                raise StateError(
                    f"the source has given {self._state_bytes + len(chunk)} bytes of state; at most {limit} are taken "
                    "(MigrationLimits.state_size)"
                )
            self._destination.migration.write(chunk)
            self._state_bytes += len(chunk)
            self._tell()
            if self._state_bytes >= end:
                return

    # Calling it off.

    def _roll_back(self, exc: BaseException) -> None:
        """Makes the source run again, and the destination forget; then raises what there is to raise.

        Raises:
            MigrationError: for a failure of this package's family; the others' own exception goes on.
        """
        self.is_rolling_back = True
        try:
            if self._touched:
                self._forget_destination(exc)
            failure = self._run_source()
        finally:
            self.is_rolling_back = False
        self.source_runs = failure is None
        outcome = (
            "the source runs on as before"
            if failure is None
            else f"the source does not run either, and has to be looked after: {failure}"
        )
        if isinstance(exc, VfioUserError):
            raise MigrationError(
                f"the device did not move: {self._step.value} failed: {exc}; {outcome}",
                step=self._step.value,
                source_runs=self.source_runs,
            ) from exc
        exc.add_note(f"the migration was called off: {outcome}")

    def _run_source(self) -> VfioUserError | None:
        """Returns why it does not run."""
        if not self._touched:
            return None
        migration = self._source.migration
        try:
            # Even if it refused to stop: which state a refusal leaves, it alone knows.
            if migration.state != MigrationState.RUNNING:
                migration.go_to(MigrationState.RUNNING)
            migration.stop_log()
        except VfioUserError as exc:
            return exc
        return None

    def _forget_destination(self, exc: BaseException) -> None:
        """Hangs up on it. A server forgets what it has received so far; without a client nothing reaches the guest.

        It comes first: there must never be two of one device, and it takes no time.
        """
        if self._step == MigrationStep.RESUME and not isinstance(exc, CommandTimeoutError | ConnectionClosedError):
            # It may have the whole state, and even run with it. What it does beyond the guest, to a disk image perhaps,
            # ends with a reset. (One that does not answer is not asked again: the source waits.)
            with contextlib.suppress(VfioUserError):
                self._destination.reset()
        self._destination.close()

"""Commands that do not end at once: those whose backend may block, and those that wait for their turn.

A job's ``work`` runs on a thread of the pool and touches the backend and memory of our own, never the guest's: what it
has read is copied to the guest by ``finish``, on the device's thread. So an unmap, a reset or a client that goes need
not wait for a disk: the job's result is dropped. What cannot be taken back is a write that has begun, so a reset is not
over (CSTS.RDY stays) until ``Jobs.is_idle``.

While jobs are held, before the device is stopped, none begins: those no thread has taken yet are taken back, and begin
after ``Jobs.release``. Those that have begun end; when none is left the jobs are *still*. What they have read for the
guest waits, too: it is read again where the device goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any

from vfio_user.backends.workers import Workers
from vfio_user.devices.nvme.command import Command, CommandFailed, status_of
from vfio_user.devices.nvme.gate import Gate

__all__ = ["Job", "Jobs"]

log = logging.getLogger(__name__)

#: Bytes of data all jobs may hold; queues are not fetched from while they hold more.
_BUDGET = 64 << 20

#: Seconds for which a thread that looks at doorbells lets the others work: some ten short transfers.
_MOMENT = 50e-6


class Job:
    """What is to be done; see ``Jobs.start``."""

    __slots__ = (
        "blocks",
        "claim",
        "command",
        "ended",
        "finish",
        "gate",
        "is_last",
        "size",
        "to_guest",
        "withheld",
        "work",
        "write",
    )

    def __init__(
        self,
        command: Command | None,
        work: Callable[[], Any],
        finish: Callable[[Any], int | None],
        *,
        gate: Gate | None,
        blocks: bool,
        write: bool,
        to_guest: bool,
        size: int,
        ended: Callable[[], None] | None,
        is_last: bool = False,
    ) -> None:
        self.command = command
        self.work = work
        self.finish = finish
        self.gate = gate
        self.blocks = blocks
        self.write = write
        self.to_guest = to_guest
        self.size = size
        self.ended = ended
        self.is_last = is_last
        # Whoever takes it decides: a worker, that the work is done; an abort, that it never is; a hold, that it is
        # later.
        self.claim = Lock()
        self.withheld = False


class Jobs:
    """The jobs of a controller.

    Args:
        watch: ``Device.watch``.
        complete: ends a command: called with it, what it failed with or None, and its result.
        idle: called when the last job has ended.
        still: called when the last job has ended that had begun before ``hold``.
        room: called when there is room again, whether or not what made it was a command that still waited.
        threads: of the pool.

    Attributes:
        held: between ``hold`` and ``release``: see the module.
        bytes: of data held.

    Threading: session thread.
    """

    def __init__(
        self,
        watch: Callable[[int, Callable[[], None]], Any],
        complete: Callable[[Command, CommandFailed | None, int], None],
        idle: Callable[[], None],
        still: Callable[[], None],
        room: Callable[[], None],
        threads: int,
    ) -> None:
        self._watch = watch
        self._complete = complete
        self._idle = idle
        self._still = still
        self._room = room
        self._threads = threads
        self._workers: Workers | None = None
        self._watched: Any = None
        self._jobs: set[Job] = set()
        #: Those a thread has, or is to have.
        self._submitted: set[Job] = set()
        self._withheld: list[Job] = []
        self._waiting: list[tuple[Job, Any]] = []
        self.held = False
        self.bytes = 0

    @property
    def is_idle(self) -> bool:
        """No job is under way."""
        return not self._jobs

    @property
    def has_room(self) -> bool:
        """Another job may be started."""
        return self.bytes < _BUDGET

    def start(
        self,
        command: Command | None,
        work: Callable[[], Any],
        finish: Callable[[Any], int | None],
        *,
        gate: Gate | None = None,
        alone: bool = False,
        blocks: bool = True,
        write: bool = False,
        to_guest: bool = False,
        size: int = 0,
        ended: Callable[[], None] | None = None,
        is_last: bool = False,
    ) -> None:
        """Has something done.

        Args:
            command: ends when the job does; None where it is for no command.
            work: does it, on any thread.
            finish: is given what ``work`` returned, on the device's thread; its result is the command's, or None where
                it has started another job for that.
            gate: of the namespace it is for; None where it need not wait for its turn.
            alone: nothing else may work in that namespace at the same time.
            blocks: ``work`` may block.
            write: ``work`` writes; what an error of the backend means depends on it.
            to_guest: ``finish`` writes to the guest's memory.
            size: bytes of data it holds.
            ended: called when it is over, whether or not it was carried out.
            is_last: it only makes last what the command has done: it is neither aborted nor held.
        """
        job = Job(
            command, work, finish,
            gate=gate, blocks=blocks, write=write, to_guest=to_guest, size=size, ended=ended, is_last=is_last,
        )  # fmt: skip
        self._jobs.add(job)
        self.bytes += size
        if command is not None:
            command.job = job
            command.queue.in_flight[command.entry.cid] = command
        if gate is None:
            self._begin(job)
        else:
            gate.enter(lambda: self._begin(job), alone=alone)

    def abort(self, command: Command) -> bool:
        """Sees to it that a command is not carried out; False if it may have been."""
        if command.job is None or command.job.is_last or not command.job.claim.acquire(blocking=False):
            return False
        command.cancelled = True
        return True

    def cancel_all(self) -> None:
        """What has not begun never will, and what ends is dropped: the queues are gone."""
        for job in self._jobs:
            if job.command is not None:
                if not job.is_last:
                    job.claim.acquire(blocking=False)
                job.command.cancelled = True
        self._let_go()

    @property
    def is_still(self) -> bool:
        """No thread works on a backend, nor will before ``release``, if they are held."""
        return all(job.withheld for job in self._submitted)

    def describe(self) -> str:
        """What ``is_still`` waits for."""
        number = sum(not job.withheld for job in self._submitted)
        return f"{number} command{'s' if number != 1 else ''} the image has begun"

    def hold(self) -> None:
        """The device is to be stopped: nothing begins any more until ``release``. Idempotent."""
        self.held = True
        for job in self._submitted:
            if not job.is_last and job.claim.acquire(blocking=False):
                job.withheld = True

    def settle(self) -> None:
        """Waits for the backends: afterwards no thread works on one."""
        if self._workers is not None:
            self._workers.drain()

    def give_way(self) -> bool:
        """Lets the threads work for a moment, if they have work."""
        if self._workers is None or not self._workers.pending:
            return False
        self._workers.give_way(_MOMENT)
        return True

    def release(self) -> None:
        """The device runs again: begins, or ends, what has waited for that. Idempotent."""
        self.held = False
        self._let_go()

    def _let_go(self) -> None:
        """Does what has waited, if it may or is done already by being cancelled."""
        withheld, self._withheld = self._withheld, []
        for job in withheld:
            self._begin(job)
        waiting, self._waiting = self._waiting, []
        for job, result in waiting:
            self._end(job, result)

    def close(self) -> None:
        """Waits for the threads and ends them."""
        if self._workers is not None:
            self._watched.close()
            self._workers.close()
            self._workers = None
            self._submitted.clear()

    def _begin(self, job: Job) -> None:
        if job.command is not None and job.command.cancelled and not job.is_last:
            self._end(job, None)
            return
        if self.held and not job.is_last:
            self._withheld.append(job)
            return
        if job.blocks:
            if self._workers is None:
                self._workers = Workers(self._threads)
                self._watched = self._watch(self._workers.fileno(), self._workers.collect)
            self._submitted.add(job)
            self._workers.submit(lambda: _work(job), lambda result: self._returned(job, result))
            return
        try:
            result = _work(job)
        except Exception as exc:
            result = exc
        self._end(job, result)

    def _returned(self, job: Job, result: Any) -> None:
        """A thread has done with a job."""
        self._submitted.discard(job)
        if job.withheld:
            job.withheld = False
            job.claim = Lock()
            self._begin(job)
            return
        self._end(job, result)
        if self.held and self.is_still:
            self._still()

    def _end(self, job: Job, result: Any) -> None:
        command = job.command
        if self.held and job.to_guest and command is not None and not command.cancelled:
            self._waiting.append((job, result))
            return
        had_room = self.has_room
        self.bytes -= job.size
        if not had_room and self.has_room:
            self._room()
        if command is None or not command.cancelled:
            failure: CommandFailed | None = None
            dw0: int | None = 0
            try:
                if isinstance(result, BaseException):
                    raise result
                dw0 = job.finish(result)
            except Exception as exc:
                if not isinstance(exc, CommandFailed | OSError):
                    log.exception("nvme: %r failed", command)
                failure = status_of(exc, write=job.write)
            if command is not None and dw0 is not None:
                self._complete(command, failure, dw0)
        self._jobs.discard(job)  # not before: ``finish`` may wait for the client, who may reset the controller
        if job.ended is not None:
            job.ended()
        if job.gate is not None:
            job.gate.leave()
        if not self._jobs:
            self._idle()


def _work(job: Job) -> Any:
    if not job.claim.acquire(blocking=False):
        return None
    return job.work()

"""Threads for what may wait, so that the thread of a device never does.

::

    workers = Workers()
    device.watch(workers.fileno(), workers.collect)
    workers.submit(lambda: backend.read(offset, views), done)  # done(None) or done(OSError) on the device's thread

Reading a disk takes the interpreter's lock only to begin and to end, so a few threads keep a disk busy. Each transfer
costs two changes of thread, some 20 us: what is only a copy is better done at once (``Backend.blocking``).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["Workers"]

T = TypeVar("T")

_Job = tuple[Callable[[], Any], Callable[[Any], None]]


class Workers:
    """See the module.

    Args:
        threads: how many there are at most; they are started as there is work for them.
        name: what the threads are called.

    Attributes:
        pending: jobs whose ``done`` has not been called yet.

    Ownership: ``close`` it, or use it in a ``with`` statement.

    Threading: one thread submits, collects and closes: the device's.
    """

    def __init__(self, threads: int = 4, *, name: str = "vfio-user worker") -> None:
        if threads < 1:
            raise ValueError(f"{threads} worker threads: at least one is needed")
        self.pending = 0
        self._limit = threads
        self._name = name
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._finished: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        #: The descriptor has been made readable since the last ``collect``; it need not be again.
        self._is_told = False
        #: Free when the threads have come to the end of their work, whoever takes it first; otherwise taken.
        self._rest = threading.Lock()
        self._rest.acquire()
        self._closed = False

    def submit(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """Has ``work`` done by a thread; ``collect`` then calls ``done`` with its result, or with what it raised.

        Raises:
            ValueError: the workers are closed.
        """
        if self._closed:
            raise ValueError("these workers are closed: nobody would do the work")
        self.pending += 1
        self._jobs.put((work, done))
        if len(self._threads) < min(self._limit, self.pending):
            thread = threading.Thread(target=self._run, name=f"{self._name} {len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def fileno(self) -> int:
        """Readable when ``collect`` has something to do."""
        return self._event

    def collect(self) -> None:
        """Calls the ``done`` of all work that is finished, in the order it finished.

        Raises:
            Exception: what a ``done`` raised; those after it are called the next time.
        """
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        # After what was told has been taken back, and before it looks what there is: what comes later tells anew.
        self._is_told = False
        # Not more than there is now: work that is finished as soon as it is submitted must not keep the thread here.
        for _ in range(len(self._finished)):
            done, result = self._finished.popleft()
            self.pending -= 1
            try:
                done(result)
            except BaseException:
                if self._finished:
                    os.eventfd_write(self._event, 1)
                raise

    def give_way(self, timeout: float) -> bool:
        """Lets the threads work, until they have nothing to do or for that many seconds.

        For a device that looks at something again and again instead of waiting: the interpreter, and often the
        processor too, is only given to another thread when this one waits.

        Returns:
            Whether they have come to the end of what they had; there may be more since.
        """
        return not self.pending or self._rest.acquire(timeout=timeout)

    def drain(self) -> None:
        """Waits until nothing is pending, collecting; what a device does before it is saved, or reset."""
        import select

        poll = select.poll()
        poll.register(self._event, select.POLLIN)
        while self.pending:
            poll.poll()
            self.collect()

    def close(self) -> None:
        """Waits until all work is done, and ends the threads. What was not collected never is. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._finished.clear()
        self.pending = 0
        os.close(self._event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, done = job
            result: Any
            try:
                result = work()
            except BaseException as exc:  # whoever waits for the work must hear of it
                result = exc
            self._finished.append((done, result))
            if not self._is_told:
                self._is_told = True
                os.eventfd_write(self._event, 1)
            if self._jobs.empty():
                with contextlib.suppress(RuntimeError):  # it is free
                    self._rest.release()
            del job, work, done, result  # views of guest memory are not to live until the next job

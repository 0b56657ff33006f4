"""One thread's work: descriptors to watch, timers, and calls put off.

Every callback of a device runs on the thread of its loop, one at a time, so device code needs no locks. A loop may
serve one device or many. It can be run (``run``), driven step by step (``run_once``), or waited on by another loop
through ``fileno`` - an epoll descriptor, readable when something is to be done - and ``next_timeout`` for its timers.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["EventLoop", "Timer", "Watch"]

log = logging.getLogger("vfio_user.server")


class Watch:
    """A watched descriptor; ``close`` ends the watch and leaves the descriptor open.

    Attributes:
        fd: what is watched.
        events: what is waited for, as poll and epoll have it.
        for_clients: see ``EventLoop.watch``.
    """

    def __init__(self, loop: EventLoop, fd: int, callback: Callable[[], None], *, for_clients: bool = False) -> None:
        self.fd = fd
        self.for_clients = for_clients
        self.events = int(select.EPOLLIN)
        self._loop = loop
        self._callback = callback
        self._closed = False

    def set_events(self, *, readable: bool = True, writable: bool = False) -> None:
        """Says what to wait for. Session thread."""
        if not self._closed:
            self.events = (select.EPOLLIN if readable else 0) | (select.EPOLLOUT if writable else 0)
            self._loop._epoll.modify(self.fd, self.events)

    def close(self) -> None:
        """Ends the watch. Call it before the descriptor is closed. Idempotent; session thread."""
        if not self._closed:
            self._closed = True
            self._loop._unwatch(self)


class Timer:
    """A call put off; ``cancel`` calls it off."""

    def __init__(self, deadline: float, callback: Callable[[], None]) -> None:
        self.deadline = deadline
        self._callback: Callable[[], None] | None = callback

    @property
    def is_pending(self) -> bool:
        """It has neither run nor been cancelled."""
        return self._callback is not None

    def cancel(self) -> None:
        """Calls it off; nothing happens if it has run. Any thread."""
        self._callback = None


class EventLoop:
    """See the module.

    Args:
        clock: the time in seconds, for timers; a test may bring its own.

    Attributes:
        is_simple: nothing but (at most) one descriptor is waited for, and no other thread has ever called in. The
            server then receives from its connection directly, which saves a system call a message.
        on_failure: called with what a callback raised, once that has been logged.
        thread_id: the thread that runs the loop; None before it first did.
        turns: how often ``run_once`` or ``settle`` was called.

    Ownership: ``close`` it; watched descriptors stay their owners'.

    Threading: ``call_soon``, ``call_later``, ``watch`` and ``stop`` may be called by any thread; everything else only
    by the one that runs the loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_simple = True
        self.clock = clock
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._lock = threading.RLock()
        self._watches: dict[int, Watch] = {}
        self._ready: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self.on_failure: Callable[[Exception], None] | None = None
        self.thread_id: int | None = None
        self.turns = 0
        self._called_from_outside = False
        #: For ``wait_for``: the descriptor it was last asked about.
        self._poll_of: tuple[int, select.poll] | None = None
        self._stopping = False
        self._closed = False

    # What devices use.

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Calls ``callback(*args)`` on the loop's thread, after the message being answered has been. Any thread."""
        self._ready.append((lambda: callback(*args)) if args else callback)
        self.is_simple = False
        if self.thread_id is not None and self.thread_id != threading.get_ident():
            # From now on the loop waits where another thread can wake it.
            self._called_from_outside = True
            self._wake()

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Timer:
        """Calls ``callback(*args)`` on the loop's thread in ``delay`` seconds, or later. Any thread."""
        timer = Timer(self.clock() + delay, (lambda: callback(*args)) if args else callback)
        if self.thread_id is None or self.thread_id == threading.get_ident():
            self._add_timer(timer)
        else:
            self.call_soon(self._add_timer, timer)
        return timer

    def watch(self, fd: int, callback: Callable[[], None], *, for_clients: bool = False) -> Watch:
        """Calls ``callback()`` on the loop's thread whenever ``fd`` is readable, until the watch is closed.

        The callback must read what is there, or it is called again at once. Any thread.

        Args:
            fd: what is watched; it stays the caller's.
            callback: what is called.
            for_clients: a server's descriptor, to be served even while another callback waits: see ``serve_once``.

        Raises:
            ValueError: ``fd`` is watched already.
            OSError: ``fd`` cannot be waited for (a regular file: EPERM).
        """
        if fd in self._watches:
            raise ValueError(f"descriptor {fd} is watched already: close that watch first")
        watch = Watch(self, fd, callback, for_clients=for_clients)
        self._epoll.register(fd, select.EPOLLIN)
        self._watches[fd] = watch
        self._update_simple()
        return watch

    # What runs it.

    def run(self) -> None:
        """Runs until ``stop``."""
        while not self._stopping:
            self.run_once(None)

    def stop(self) -> None:
        """Ends ``run``, now or when it is next called. Any thread, and signal handlers."""
        self._stopping = True
        self.is_simple = False
        self._wake()

    @property
    def has_work(self) -> bool:
        """Something is put off or watched."""
        return bool(self._ready or self._timers or self._watches)

    @property
    def is_stopping(self) -> bool:
        """``stop`` was called."""
        return self._stopping

    def fileno(self) -> int:
        """Readable when ``run_once`` has something to do; timers are not in it, see ``next_timeout``."""
        return self._epoll.fileno()

    def next_timeout(self) -> float | None:
        """Seconds until ``run_once`` has something to do that ``fileno`` does not tell; None for never."""
        if self._ready:
            return 0.0
        self._drop_cancelled()
        if self._timers:
            return max(0.0, self._timers[0][0] - self.clock())
        return None

    def run_once(self, timeout: float | None = 0.0) -> None:
        """Waits up to ``timeout`` seconds (None: as long as it takes) for something to do, and does what there is.

        A callback that raises is logged with its traceback, and the loop goes on.
        """
        self.thread_id = threading.get_ident()
        self.turns += 1
        limit = self.next_timeout()
        if limit is not None and (timeout is None or limit < timeout):
            timeout = limit
        for fd, _events in self._epoll.poll(timeout):
            if fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            else:
                watch = self._watches.get(fd)
                if watch is not None:
                    self._call(watch._callback)
        if self._timers:
            self._run_timers()
        # Calls made by these calls wait for the next turn, so that descriptors get theirs.
        for _ in range(len(self._ready)):
            self._call(self._ready.popleft())
        self._drop_cancelled()
        self._update_simple()

    def settle(self) -> bool:
        """For who waits for the loop's one descriptor itself: does what is due, once, if nothing else is waited for.

        Returns:
            Whether that was all, and the caller may wait for its descriptor, no longer than ``next_timeout``. If not,
            ``run_once`` is to be called: there is more to wait for, or something has failed.
        """
        if self._waits_elsewhere():
            return False
        self.thread_id = threading.get_ident()
        self.turns += 1
        succeeded = not self._timers or self._run_timers()
        ready = self._ready
        for _ in range(len(ready)):
            succeeded = self._call(ready.popleft()) and succeeded
        self._drop_cancelled()
        self._update_simple()
        # What was called may have begun to watch something.
        return succeeded and not self._waits_elsewhere()

    def wait_for(self, fd: int, timeout: float) -> bool:
        """For who settles: waits for its descriptor, or until another thread, or a signal, wants something.

        Args:
            fd: to be read from.
            timeout: seconds, as ``next_timeout`` says.

        Returns:
            Whether one of both is there.
        """
        if self._poll_of is None or self._poll_of[0] != fd:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.register(self.fileno(), select.POLLIN)  # which is awake by what others begin to watch, too
            self._poll_of = fd, poll
        return bool(self._poll_of[1].poll(timeout * 1000))

    def serve_once(self, timeout: float, own: Mapping[int, int]) -> set[int]:
        """For a callback that has to wait for its client: waits, and does what servers have to do; once.

        What devices have put off, or watch, has to wait until the callback returns.

        Args:
            timeout: seconds to wait at most.
            own: descriptors the caller looks after itself: what to wait for, as ``select.poll`` has it, by number.

        Returns:
            The caller's descriptors that are ready.
        """
        poll = select.poll()
        for watch in self._watches.values():
            if watch.for_clients and watch.events:
                poll.register(watch.fd, watch.events)
        for fd, events in own.items():
            poll.register(fd, events)
        poll.register(self._wake_fd, select.POLLIN)
        ready = set()
        for fd, _events in poll.poll(timeout * 1000):
            if fd in own:
                ready.add(fd)
            elif fd == self._wake_fd:
                # Whatever it announced is found by who runs the loop, once the callback has returned.
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            else:
                found = self._watches.get(fd)
                if found is not None:
                    self._call(found._callback)
        return ready

    def adopt(self, other: EventLoop) -> None:
        """Takes over everything another loop, which does not run, was to do; that one is closed."""
        for watch in list(other._watches.values()):
            watch._loop = self
            self._epoll.register(watch.fd, watch.events)
            self._watches[watch.fd] = watch
        self._ready.extend(other._ready)
        for _, _, timer in other._timers:
            self._add_timer(timer)
        other.close()
        self._update_simple()

    def close(self) -> None:
        """Closes the loop's own descriptors and forgets all calls. Idempotent."""
        if not self._closed:
            with self._lock:
                self._closed = True
                os.close(self._wake_fd)
            self._watches.clear()
            self._ready.clear()
            self._timers.clear()
            self._epoll.close()

    def __del__(self) -> None:
        # A device made and dropped without ever being served has nobody to close its loop.
        if hasattr(self, "_wake_fd"):
            self.close()

    def _drop_cancelled(self) -> None:
        while self._timers and not self._timers[0][2].is_pending:
            heapq.heappop(self._timers)

    def _run_timers(self) -> bool:
        """Calls what is due; returns whether none of it raised anything."""
        now = self.clock()
        succeeded = True
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback = timer._callback
            timer._callback = None
            if callback is not None and not self._call(callback):
                succeeded = False
        return succeeded

    def _call(self, callback: Callable[[], None]) -> bool:
        """Calls it; returns whether it raised nothing."""
        try:
            callback()
        except Exception as exc:
            log.exception("a callback of the device failed: %s", getattr(callback, "__qualname__", callback))
            if self.on_failure is not None:
                self.on_failure(exc)
            return False
        return True

    def _add_timer(self, timer: Timer) -> None:
        heapq.heappush(self._timers, (timer.deadline, next(self._sequence), timer))
        self.is_simple = False

    def _unwatch(self, watch: Watch) -> None:
        if self._watches.pop(watch.fd, None) is not None and not self._closed:
            self._epoll.unregister(watch.fd)
            self._update_simple()

    def _update_simple(self) -> None:
        # In this order: another thread, or a signal handler, first says what it wants and then clears is_simple. What
        # it said before the look is found here; what it says after the look, it says after is_simple was set.
        self.is_simple = True
        if self._ready or self._timers or self._waits_elsewhere():
            self.is_simple = False

    def _waits_elsewhere(self) -> bool:
        """More than one descriptor is watched, or another thread may want something, or it is to stop."""
        return self._called_from_outside or self._stopping or len(self._watches) > 1

    def _wake(self) -> None:
        # Never after close: the number may be another file's by then. The lock is one a signal handler may take again.
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake_fd, 1)

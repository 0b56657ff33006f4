"""What a device puts off - calls, timers, watched descriptors - kept back while the device is stopped to be migrated.

A stopped device does nothing on its own. What comes due meanwhile waits, in its order, and is done when the device runs
again. What was put off before another state was loaded belongs to the past the device had until then: it is dropped.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vfio_user.server.loop import Watch

__all__ = ["DeferredWork"]


class DeferredWork:
    """The deferred work of one device.

    Attributes:
        is_held: the device is stopped.

    Threading: ``wrap`` by any thread; everything else by the session's.
    """

    def __init__(self) -> None:
        self.is_held = False
        self._era = 0
        self._waiting: list[Callable[[], None]] = []
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()

    def wrap(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], None]:
        """What to give the loop instead of ``callback(*args)``."""
        era = self._era

        def work() -> None:
            if era != self._era:
                return
            if self.is_held:
                self._waiting.append(work)
            else:
                callback(*args)

        work.__qualname__ = getattr(callback, "__qualname__", work.__qualname__)
        return work

    def add(self, watch: Watch) -> Watch:
        """Takes a watch into account, and returns it. (One that is held waits to become readable, and nothing else.)"""
        self._watches.add(watch)
        watch.set_events(readable=not self.is_held)
        return watch

    def hold(self) -> None:
        """From now on everything waits."""
        self.is_held = True
        self._set_watches(readable=False)

    def release(self, call_soon: Callable[[Callable[[], None]], None]) -> None:
        """What waits is done soon, and what follows when it is due."""
        self.is_held = False
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            call_soon(work)
        self._set_watches(readable=True)

    def forget(self) -> None:
        """Drops what was put off so far, due or not; watched descriptors stay watched."""
        self._era += 1
        self._waiting.clear()

    def _set_watches(self, *, readable: bool) -> None:
        for watch in self._watches:
            watch.set_events(readable=readable)

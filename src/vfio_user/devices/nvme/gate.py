"""Which commands of a namespace may work on its blocks at the same time: all, or one alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["Gate"]


class Gate:
    """Lets work begin: shared work at once, exclusive work when nothing else is under way, and in its turn.

    Work waits behind exclusive work that waits, so that this comes to its turn.

    Threading: session thread.
    """

    def __init__(self) -> None:
        self._working = 0
        self._alone = False
        self._is_letting_in = False
        self._waiting: deque[tuple[Callable[[], None], bool]] = deque()

    @property
    def is_open(self) -> bool:
        """Shared work may begin at once, and end before anything else begins, without ``enter`` and ``leave``."""
        return not self._alone and not self._waiting

    def enter(self, start: Callable[[], None], *, alone: bool = False) -> None:
        """Calls ``start``, now or when it is its turn. ``leave`` follows when the work is done."""
        if self._waiting or self._alone or (alone and self._working):
            self._waiting.append((start, alone))
        else:
            self._begin(start, alone)

    def leave(self) -> None:
        """Work is done."""
        self._working -= 1
        self._alone = False
        if self._is_letting_in:  # work that began below has ended at once: the loop there goes on
            return
        self._is_letting_in = True
        try:
            while self._waiting and not self._alone:
                start, alone = self._waiting[0]
                if alone and self._working:
                    break
                self._waiting.popleft()
                self._begin(start, alone)
        finally:
            self._is_letting_in = False

    def _begin(self, start: Callable[[], None], alone: bool) -> None:
        self._working += 1
        self._alone = alone
        start()

"""Waiting for what another thread, or another process, is to do."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable

__all__ = ["wait_for"]


def wait_for(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Waits until something has been done.

    Raises:
        AssertionError: it was not, in that many seconds.
    """
    deadline = time.monotonic() + timeout
    turn = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{_source(condition)} did not come true in {timeout} s"
        turn.wait(0.001)


def _source(condition: Callable[[], bool]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)

"""What the tests in guests share: machines made from a few words, and stopped whatever happens."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable

from vfio_user.testing.guests import MachineFactory as VmFactory

__all__ = ["VmFactory", "wait_for"]


def wait_for(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Waits until something another thread is to do has been done.

    Raises:
        AssertionError: it was not, in that many seconds.
    """
    deadline = time.monotonic() + timeout
    turn = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{inspect.getsource(condition).strip()} did not come true in {timeout} s"
        turn.wait(0.001)

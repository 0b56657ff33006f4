"""The order in which another processor sees our stores, and we see its.

x86 shows stores in the order they were made, and loads see them so; only a load may overtake an earlier store. Other
machines keep no order at all. Python has no barrier of its own, but a lock is one: CPython's is an atomic
read-modify-write, with acquire semantics when it is taken and release semantics when it is given back.

Taking it and giving it back once is not enough: what is before may still sink into the locked part, what is after may
rise into it, and there they may change places. But nothing sinks below a release, nothing rises above an acquire, and
an acquire does not overtake a release before it: so a release followed by an acquire keeps everything apart. On x86
either is a full barrier.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from threading import Lock

__all__ = ["full_barrier", "load_barrier", "store_barrier"]

#: Machines that keep loads in order among themselves, and stores, too (total store order).
_ORDERED = {"x86_64", "AMD64", "i386", "i686", "s390x"}


def full_barrier() -> None:
    """What is before it is seen before what is after it, loads and stores, on every machine; 0.2 us."""
    lock = Lock()  # one of our own: never waited for
    lock.acquire()
    lock.release()
    lock.acquire()


def _nothing() -> None:
    """No instruction is needed here."""


def needed_barrier(machine: str) -> Callable[[], None]:
    """What keeps loads, or stores, in order on a kind of machine, as ``platform.machine`` calls it."""
    return _nothing if machine in _ORDERED else full_barrier


#: Between a load that says something is there (a tail, a phase tag) and the loads of what is there.
load_barrier = needed_barrier(platform.machine())

#: Between the stores of what is there and the store that says so.
store_barrier = load_barrier

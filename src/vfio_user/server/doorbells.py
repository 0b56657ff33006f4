"""The eventfds by which a client rings a device's doorbells, instead of sending the writes.

A client that asks with DEVICE_GET_REGION_IO_FDS gets an eventfd for each; from then on the device's loop watches them,
and calls the doorbell whenever one was written. (No client that asks costs nothing: with no watched descriptor the
session receives from its socket directly.) They are closed with the connection, and the next client gets new ones, so
that what an earlier one kept rings nothing.

A doorbell with a shadow has eight bytes of memory besides, which all of a device's share a file for: there the client
puts the value it wrote. It may write there at any moment; what is read when the eventfd says so is the value.

The other end of an eventfd is the client's, too: it can take what it wrote out again, or make reading block. Hence
RWF_NOWAIT.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from vfio_user.protocol.constants import MAX_FDS_PER_MESSAGE, NUM_PCI_REGIONS
from vfio_user.regions import PAGE_SIZE, Doorbell, SharedMemory

if TYPE_CHECKING:
    from vfio_user.server.loop import Watch

__all__ = ["Doorbells"]

#: Bytes of a shadow, and of the memory for all there can be: one for each descriptor a client is given, in any region.
_SLOT_SIZE = 8
_SHADOWS_SIZE = -(-MAX_FDS_PER_MESSAGE * _SLOT_SIZE * NUM_PCI_REGIONS // PAGE_SIZE) * PAGE_SIZE


class Doorbells:
    """The eventfds of one device; it has none until a client asks.

    Args:
        watch: ``Device.watch``.

    Threading: session thread.
    """

    def __init__(self, watch: Callable[[int, Callable[[], None]], Watch]) -> None:
        self._watch = watch
        #: By what tells a doorbell from another, so that asking again and again opens nothing.
        self._open: dict[tuple[int, int, int, int | None], tuple[int, Watch, Callable[[], None]]] = {}
        self._shadows: SharedMemory | None = None
        self._slots: dict[tuple[int, int, int, int | None], int] = {}

    def eventfds(self, region: int, doorbells: Iterable[Doorbell]) -> tuple[int, ...]:
        """An eventfd for each doorbell of a region, watched from here on; the same as before where it had one.

        Ownership: they stay the device's, and are open until ``clear``.

        Raises:
            OSError: too many descriptors are open.
        """
        fds = []
        for doorbell in doorbells:
            key = _key(region, doorbell)
            if key not in self._open:
                fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                if doorbell.shadow:
                    answer = partial(_answer_shadow, fd, doorbell, self._slot(region, doorbell))
                else:
                    answer = partial(_answer, fd, doorbell)
                try:
                    self._open[key] = fd, self._watch(fd, answer), answer
                except BaseException:
                    os.close(fd)
                    raise
            fds.append(self._open[key][0])
        return tuple(fds)

    def shadow(self, region: int, doorbell: Doorbell) -> tuple[int, int]:
        """Where the client puts what it writes to a doorbell: the descriptor of the memory, and bytes into it.

        Ownership: as that of ``eventfds``.

        Raises:
            OSError: no memory file can be made.
        """
        self._slot(region, doorbell)
        assert self._shadows is not None
        return self._shadows.fd, self._slots[_key(region, doorbell)]

    def _slot(self, region: int, doorbell: Doorbell) -> memoryview:
        if self._shadows is None:
            self._shadows = SharedMemory(_SHADOWS_SIZE, [(0, _SHADOWS_SIZE)])
        at = self._slots.setdefault(_key(region, doorbell), _SLOT_SIZE * len(self._slots))
        return self._shadows.views[0][at : at + doorbell.size]

    def answer(self) -> None:
        """Answers now what was rung: the device is about to be stopped, and a ring in an eventfd does not move with it.

        Raises:
            Exception: what a doorbell raised.
        """
        for _, _, answer in self._open.values():
            answer()

    def drain(self) -> None:
        """Forgets what was rung and not answered yet: the device was reset."""
        for fd, _, _ in self._open.values():
            _take(fd)

    def clear(self) -> None:
        """Closes all of them: the client is gone."""
        for fd, watch, _ in self._open.values():
            watch.close()
            os.close(fd)
        self._open.clear()
        self._slots.clear()
        self._shadows = None


def _key(region: int, doorbell: Doorbell) -> tuple[int, int, int, int | None]:
    return region, doorbell.offset, doorbell.size, doorbell.value


def _answer_shadow(fd: int, doorbell: Doorbell, slot: memoryview) -> None:
    # In this order: a value written after the look comes with a ring of its own.
    if _take(fd):
        doorbell.ring(int.from_bytes(slot, "little"))


def _answer(fd: int, doorbell: Doorbell) -> None:
    if _take(fd):
        doorbell.ring()


def _take(fd: int) -> bool:
    """Empties an eventfd; False if it was empty."""
    try:
        # -1 is "where it stands", the only place an eventfd has.
        os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:  # Linux before 5.8
            raise
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return False
    return True

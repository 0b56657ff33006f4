"""Copy on write: a disk that begins as another one, which is only read, and keeps what changes somewhere else.

The disk is cut into clusters. Each is the base's until something in it changes; then it is copied to the overlay, where
it stays. Zeroed and discarded clusters are the overlay's too, and take no space there: what was discarded must not
shine through from the base again.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence

from vfio_user.backends.base import Backend, ReadableBuffer

__all__ = ["OverlayBackend"]

#: Bytes of a cluster: a page is what drivers mostly write, so that mostly nothing has to be copied.
_CLUSTER = 4096

#: Clusters there are at most: they become larger, so that the map of a large disk takes 16 MiB and not more.
_MAX_CLUSTERS = 1 << 24

_OF_BASE, _OWN = b"\0", b"\1"


class OverlayBackend(Backend):
    """See the module.

    Args:
        base: what the disk begins as. Nothing else may change it meanwhile.
        overlay: holds what changes: at least as large as the base, and all zeroes. By default a sparse file in the
            folder for temporary files (``$TMPDIR``), which goes when the backend is closed.

    Raises:
        ValueError: the overlay is smaller than the base.
        OSError: there is no room for a temporary file.

    Ownership: closes both.
    """

    def __init__(self, base: Backend, overlay: Backend | None = None) -> None:
        super().__init__(base.size, block_size=base.block_size)
        cluster = _CLUSTER
        while -(-base.size // cluster) > _MAX_CLUSTERS:
            cluster *= 2
        if overlay is None:
            overlay = _temporary(base.size)
        elif overlay.size < base.size:
            raise ValueError(f"an overlay of {overlay.size} bytes over {base.size}: it has to hold all of them")
        self._base = base
        self._overlay = overlay
        self._cluster = cluster
        #: Whose each cluster is: a byte each, as finding the next of a kind is one search then.
        self._owners = bytearray(-(-base.size // cluster))
        self._changing = threading.Lock()
        self.blocking = base.blocking or overlay.blocking

    @property
    def flush_blocks(self) -> bool:
        """See ``Backend``."""
        return self._overlay.flush_blocks

    @property
    def own_clusters(self) -> int:
        """How many clusters are not the base's any more."""
        return self._owners.count(_OWN)

    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        for own, start, end in self._runs(offset, length):
            source = self._overlay if own else self._base
            source.read(start, list(_part(views, start - offset, end - offset)))

    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        with self._changing:
            self._keep_edges(offset, length)
            self._overlay.write(offset, views)
            self._take(offset, length)

    def _zero(self, offset: int, length: int, *, may_deallocate: bool) -> None:
        with self._changing:
            self._keep_edges(offset, length)
            self._overlay.zero(offset, length, may_deallocate=may_deallocate)
            self._take(offset, length)

    def _discard(self, offset: int, length: int) -> None:
        with self._changing:
            self._keep_edges(offset, length)
            self._overlay.discard(offset, length)
            self._take(offset, length)

    def _flush(self) -> None:
        self._overlay.flush()

    def _close(self) -> None:
        self._overlay.close()
        self._base.close()

    def _runs(self, offset: int, length: int) -> Iterator[tuple[bool, int, int]]:
        """Cuts a range where the owner changes: whether it is the overlay's, where it begins and ends."""
        end = offset + length
        while offset < end:
            number = offset // self._cluster
            own = self._owners[number] == _OWN[0]
            other = self._owners.find(_OF_BASE if own else _OWN, number, -(-end // self._cluster))
            stop = end if other < 0 else min(other * self._cluster, end)
            yield own, offset, stop
            offset = stop

    def _keep_edges(self, offset: int, length: int) -> None:
        """Copies what is to stay of clusters that are about to change in part."""
        end = offset + length
        first, last = offset // self._cluster, (end - 1) // self._cluster
        for number in {first, last}:
            start, stop = number * self._cluster, min((number + 1) * self._cluster, self._size)
            if self._owners[number] == _OF_BASE[0] and (start < offset or end < stop):
                copy = bytearray(stop - start)
                self._base.read(start, [memoryview(copy)])
                self._overlay.write(start, [copy])
                self._owners[number] = _OWN[0]

    def _take(self, offset: int, length: int) -> None:
        """From now on the clusters of a range are the overlay's."""
        first, end = offset // self._cluster, -(-(offset + length) // self._cluster)
        self._owners[first:end] = _OWN * (end - first)


def _part(views: Sequence[memoryview], start: int, end: int) -> Iterator[memoryview]:
    """The bytes ``[start, end)`` of views that follow each other."""
    for view in views:
        if start < len(view) and end > 0:
            yield view[max(start, 0) : end]
        start -= len(view)
        end -= len(view)


def _temporary(size: int) -> Backend:
    """A sparse file that is gone when it is closed."""
    from vfio_user.backends.file import FileBackend

    with tempfile.TemporaryFile(prefix="vfio-user-overlay-") as file:
        os.truncate(file.fileno(), size)
        return FileBackend(f"/proc/self/fd/{file.fileno()}")  # opens it once more: it has no name

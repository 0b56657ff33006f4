"""One DMA mapping: a range of IOVAs, what the device may do there, and the way to its bytes.

There are three ways, one class each: memory we mapped (``MmapMapping``), a file we read and write by system calls
(``FileMapping``), and nothing but messages to the client (``MessageMapping``: QEMU maps ROM, unshared RAM and the
device's own BARs that way).
"""

from __future__ import annotations

import enum
import weakref
from typing import Protocol

from vfio_user.errors import DmaAccess
from vfio_user.memory.shared_file import FileHandle, FileIdentity, MappedFile

__all__ = [
    "NOWHERE",
    "AccessMode",
    "DmaMapping",
    "FileMapping",
    "MessageDma",
    "MessageMapping",
    "Messenger",
    "MmapMapping",
]


class AccessMode(enum.Enum):
    """How the bytes of a mapping are reached. Spec: "VFIO_USER_DMA_MAP"."""

    MMAP = "mmap"
    FILE_IO = "file I/O"
    MESSAGE = "messages"


class MessageDma(Protocol):
    """What reaches memory the client did not share: DMA_READ and DMA_WRITE messages. The session provides it.

    It cuts long transfers to what the client takes, and raises DeviceError when the client refuses.
    """

    @property
    def is_ready(self) -> bool:
        """A transfer made now would be carried out now; where it would wait for ever, it is refused instead."""

    def read(self, iova: int, length: int, /) -> bytes:
        """Reads exactly ``length`` bytes."""

    def write(self, iova: int, data: memoryview, /) -> None:
        """Writes all of ``data``."""


class Messenger:
    """Where the mappings of one client find the way to send messages, once there is one."""

    __slots__ = ("dma",)

    def __init__(self) -> None:
        self.dma: MessageDma | None = None


class DmaMapping:
    """What the three kinds have in common.

    Attributes:
        iova: the first address.
        end: the address after the last.
        size: bytes.
        offset: where in its file the mapping begins, in bytes; 0 without a file.
        readable: the device may read.
        writable: the device may write.
        mode: the way to the bytes.
        identity: the file it is a slice of, None without one.

    Ownership: holds its file until ``release``.
    """

    __slots__ = ("end", "iova", "offset", "readable", "size", "writable")

    mode: AccessMode

    def __init__(self, iova: int, size: int, offset: int, *, readable: bool, writable: bool) -> None:
        self.iova = iova
        self.size = size
        self.end = iova + size
        self.offset = offset
        self.readable = readable
        self.writable = writable

    def __str__(self) -> str:
        access = ("r" if self.readable else "-") + ("w" if self.writable else "-")
        return f"DMA mapping [{self.iova:#x}, {self.end:#x}) {access} by {self.mode.value}"

    def __repr__(self) -> str:
        return f"<{self}>"

    @property
    def identity(self) -> FileIdentity | None:
        """See the class."""
        return None

    def same_slice(
        self, size: int, offset: int, identity: FileIdentity | None, *, readable: bool, writable: bool
    ) -> bool:
        """Whether mapping these at the same IOVA again would change nothing."""
        return (
            size == self.size
            and readable == self.readable
            and writable == self.writable
            and identity == self.identity
            and (offset == self.offset or identity is None)
        )

    def check_reachable(self) -> None:
        """Checks that ``read_into`` and ``write`` have a way to the bytes.

        Raises:
            DmaAccess: there is none.
        """

    def read(self, iova: int, length: int) -> bytes:
        """Reads ``length`` bytes; see ``read_into``."""
        data = bytearray(length)
        self.read_into(iova, memoryview(data))
        return bytes(data)

    def read_into(self, iova: int, target: memoryview) -> None:
        """Fills ``target`` (bytes) from ``iova`` on; the caller has checked range and permission.

        Raises:
            DeviceError: the bytes cannot be had.
        """
        raise NotImplementedError

    def write(self, iova: int, source: memoryview) -> None:
        """Writes all of ``source`` (bytes) from ``iova`` on; the caller has checked range and permission.

        Raises:
            DeviceError: the bytes cannot be written.
        """
        raise NotImplementedError

    def revoke_views(self) -> int:
        """Ends the device's direct use of the memory.

        Returns:
            How many views could not be ended, because something else (a NumPy array, a cast) stands on them.
        """
        return 0

    def release(self) -> None:
        """Lets go of the file. Nothing else may be called after."""


class MmapMapping(DmaMapping):
    """A slice of a file we mapped.

    Attributes:
        file: the mapped file.
        map: its mmap object (a copy of ``file.map``: one attribute less on the hot path).
        shift: what added to an IOVA gives its index in ``map``.
    """

    __slots__ = ("_prune_at", "_views", "file", "map", "shift")

    mode = AccessMode.MMAP

    def __init__(self, iova: int, size: int, offset: int, file: MappedFile, *, readable: bool, writable: bool) -> None:
        super().__init__(iova, size, offset, readable=readable, writable=writable)
        self.file = file
        self.map = file.map
        self.shift = offset - file.base - iova
        self._views: list[weakref.ref[memoryview]] | None = None
        self._prune_at = 16

    @property
    def identity(self) -> FileIdentity | None:
        """See ``DmaMapping``."""
        return self.file.identity

    def continues(self, before: MmapMapping) -> bool:
        """Whether this slice follows ``before`` both in IOVA and in the same mapped file."""
        return self.iova == before.end and self.file is before.file and self.shift == before.shift

    def read_into(self, iova: int, target: memoryview) -> None:
        """See ``DmaMapping.read_into``."""
        start = iova + self.shift
        target[:] = self.file.readonly[start : start + len(target)]

    def write(self, iova: int, source: memoryview) -> None:
        """See ``DmaMapping.write``."""
        start = iova + self.shift
        self.map[start : start + len(source)] = source

    def track(self, view: memoryview) -> None:
        """Remembers a view handed to the device, without keeping it alive, for ``revoke_views``."""
        views = self._views
        if views is None:
            views = self._views = []
        elif len(views) >= self._prune_at:
            views[:] = [known for known in views if known() is not None]
            # Twice what is alive: the work of pruning stays a constant share of the work of tracking.
            self._prune_at = 2 * len(views) + 16
        views.append(weakref.ref(view))

    def revoke_views(self) -> int:
        """See ``DmaMapping.revoke_views``."""
        stuck = 0
        for known in self._views or ():
            view = known()
            if view is not None:
                try:
                    view.release()
                except BufferError:
                    stuck += 1
        self._views = None
        return stuck

    def release(self) -> None:
        """See ``DmaMapping.release``."""
        del self.map  # whoever keeps this object must not keep the memory
        self.file.release()


def _nowhere() -> MmapMapping:
    mapping = object.__new__(MmapMapping)
    mapping.iova = 1
    mapping.end = 0
    return mapping


#: Contains no address, and has no memory: what "the mapping last hit" is while there is none.
NOWHERE = _nowhere()


class FileMapping(DmaMapping):
    """A slice of a file we reach by pread and pwrite.

    Attributes:
        file: the open file.
    """

    __slots__ = ("file",)

    mode = AccessMode.FILE_IO

    def __init__(self, iova: int, size: int, offset: int, file: FileHandle, *, readable: bool, writable: bool) -> None:
        super().__init__(iova, size, offset, readable=readable, writable=writable)
        self.file = file

    @property
    def identity(self) -> FileIdentity | None:
        """See ``DmaMapping``."""
        return self.file.identity

    def read_into(self, iova: int, target: memoryview) -> None:
        """See ``DmaMapping.read_into``."""
        self.file.read_into(self.offset + iova - self.iova, target)

    def write(self, iova: int, source: memoryview) -> None:
        """See ``DmaMapping.write``."""
        self.file.write(self.offset + iova - self.iova, source)

    def release(self) -> None:
        """See ``DmaMapping.release``."""
        self.file.release()


class MessageMapping(DmaMapping):
    """Memory of the client that only messages reach."""

    __slots__ = ("_messenger",)

    mode = AccessMode.MESSAGE

    def __init__(
        self, iova: int, size: int, offset: int, messenger: Messenger, *, readable: bool, writable: bool
    ) -> None:
        super().__init__(iova, size, offset, readable=readable, writable=writable)
        self._messenger = messenger

    def check_reachable(self) -> None:
        """See ``DmaMapping.check_reachable``."""
        self._dma()

    def read(self, iova: int, length: int) -> bytes:
        """See ``DmaMapping.read``."""
        return self._dma().read(iova, length)

    def read_into(self, iova: int, target: memoryview) -> None:
        """See ``DmaMapping.read_into``."""
        target[:] = self._dma().read(iova, len(target))

    def write(self, iova: int, source: memoryview) -> None:
        """See ``DmaMapping.write``."""
        self._dma().write(iova, source)

    def _dma(self) -> MessageDma:
        dma = self._messenger.dma
        if dma is None:
            raise DmaAccess(
                f"the client mapped [{self.iova:#x}, {self.end:#x}) without a file descriptor, so its bytes are out of "
                "reach: share the guest's RAM (QEMU: -object memory-backend-memfd,id=ram,size=1G,share=on "
                "-machine memory-backend=ram)"
            )
        return dma

"""The files behind DMA mappings: what a descriptor is, and the two ways to reach its bytes.

**SIGBUS.** Touching a mapped page beyond the end of its file kills the process. A slice of a file is therefore refused
unless the file is long enough for it now, and ``MappedFile.sealed`` says whether it stays so: a memfd sealed with
F_SEAL_SHRINK can never be truncated (QEMU's ``memory-backend-memfd`` seals by default). For an unsealed file the risk
remains that the peer truncates it later. File I/O (``FileHandle``) does not have it, at the price of a system call an
access.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from vfio_user.errors import DeviceError, InvalidAccess

__all__ = ["FileHandle", "FileIdentity", "FileInfo", "MappedFile", "SharedFile", "is_sealed"]

#: st_dev and st_ino: two descriptors with the same pair are the same file.
FileIdentity = tuple[int, int]


def is_sealed(fd: int) -> bool:
    """Whether the file can never become shorter: a memfd with F_SEAL_SHRINK."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:  # EINVAL: this kind of file has no seals
        return False


class FileInfo(NamedTuple):
    """What a descriptor is, as far as mapping it goes.

    Attributes:
        identity: which file it is.
        size: bytes in the file now.
        access: what the descriptor is open for: O_RDONLY, O_WRONLY or O_RDWR.
        page_size: bytes of a page of this file; more than usual for hugetlbfs.
    """

    identity: FileIdentity
    size: int
    access: int
    page_size: int

    @classmethod
    def of(cls, fd: int) -> FileInfo:
        """Asks the kernel (two system calls).

        Raises:
            DeviceError: ENODEV, as mmap(2) says it, for what has no memory of a known size: a pipe, a socket, a
                device; or whatever errno the kernel answers.
        """
        try:
            status = os.fstat(fd)
            access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError as exc:
            raise DeviceError(exc.errno or errno.EBADF, f"the descriptor of a DMA mapping is unusable: {exc}") from exc
        if not stat.S_ISREG(status.st_mode):
            raise DeviceError(
                errno.ENODEV,
                f"the descriptor of a DMA mapping is no file with a size (its mode is {status.st_mode:#o}): "
                "send a memfd, or a file of tmpfs or hugetlbfs",
            )
        return cls((status.st_dev, status.st_ino), status.st_size, access, status.st_blksize)

    def check(self, offset: int, size: int, *, read: bool, write: bool) -> None:
        """Checks that ``[offset, offset + size)`` lies in the file and that the descriptor allows the access.

        Raises:
            InvalidAccess: the file is too short; touching what is beyond its end would be SIGBUS.
            DeviceError: EACCES, as mmap(2) says it: the descriptor is not open for that.
        """
        if offset + size > self.size:
            raise InvalidAccess(
                f"a DMA mapping of bytes [{offset:#x}, {offset + size:#x}) of a file that ends at {self.size:#x}: "
                "the file has to be that long before it is mapped"
            )
        if write and self.access == os.O_RDONLY:
            raise DeviceError(errno.EACCES, "a writable DMA mapping needs a descriptor that is open for writing")
        if read and self.access == os.O_WRONLY:
            raise DeviceError(errno.EACCES, "a readable DMA mapping needs a descriptor that is open for reading")


class SharedFile:
    """A file that several mappings share; the last one to release it closes it.

    Args:
        identity: which file it is.
        on_last_release: called once, when nobody holds the file any more, before it is closed.

    Attributes:
        identity: which file it is.
        holders: how many hold it; it begins with none.
    """

    __slots__ = ("_on_last_release", "holders", "identity")

    def __init__(self, identity: FileIdentity, on_last_release: Callable[[SharedFile], None]) -> None:
        self.identity = identity
        self.holders = 0
        self._on_last_release = on_last_release

    def release(self) -> None:
        """One holder less."""
        self.holders -= 1
        if self.holders == 0:
            self._on_last_release(self)
            self.close()

    def close(self) -> None:
        """Gives descriptor and memory back to the kernel."""
        raise NotImplementedError


class MappedFile(SharedFile):
    """One mmap of a file, whole where possible.

    Args:
        memory: the mapping; owned from here on.
        base: where in the file it begins, in bytes.
        sealed: see ``is_sealed``.

    Attributes:
        base: as given.
        length: bytes mapped.
        map: the mmap object: slicing it is the fastest way to copy bytes.
        words: the memory as a memoryview for each access size (1, 2, 4, 8 bytes). Indexing one of them is a single load
            or store of that size, in native byte order: little-endian on every machine vfio-user runs on.
        readonly: the memory as bytes that cannot be written through this view.
        sealed: as given.
    """

    __slots__ = ("base", "length", "map", "readonly", "sealed", "words")

    def __init__(
        self,
        identity: FileIdentity,
        on_last_release: Callable[[SharedFile], None],
        memory: mmap.mmap,
        base: int,
        *,
        sealed: bool,
    ) -> None:
        super().__init__(identity, on_last_release)
        self.base = base
        self.length = len(memory)
        self.map = memory
        self.sealed = sealed
        octets = memoryview(memory)
        with octets[: self.length & ~7] as whole:
            self.words = {1: octets, 2: whole.cast("H"), 4: whole.cast("I"), 8: whole.cast("Q")}
        self.readonly = octets.toreadonly()

    def close(self) -> None:
        """Unmaps; if somebody still holds a view, the memory goes with the last of them instead."""
        self.readonly.release()
        for view in self.words.values():
            view.release()
        # mmap refuses while a view is alive, and is right: unmapping under it would be SIGSEGV. Every view keeps the
        # mmap object alive, and its deallocation unmaps.
        with contextlib.suppress(BufferError):
            self.map.close()
        del self.map


class FileHandle(SharedFile):
    """A file that is read and written by system calls instead of being mapped.

    Args:
        fd: the descriptor; owned from here on.
    """

    __slots__ = ("fd",)

    def __init__(self, identity: FileIdentity, on_last_release: Callable[[SharedFile], None], fd: int) -> None:
        super().__init__(identity, on_last_release)
        self.fd = fd

    def read_into(self, position: int, target: memoryview) -> None:
        """Fills ``target`` from byte ``position`` of the file on.

        Raises:
            DeviceError: the kernel's errno; EIO when the file has become too short.
        """
        self._transfer(os.preadv, position, target)

    def write(self, position: int, source: memoryview) -> None:
        """Writes all of ``source`` from byte ``position`` of the file on.

        Raises:
            DeviceError: the kernel's errno (hugetlbfs refuses every write with EINVAL: it has to be mapped).
        """
        self._transfer(os.pwritev, position, source)

    def _transfer(
        self, operation: Callable[[int, list[memoryview], int], int], position: int, data: memoryview
    ) -> None:
        done = 0
        while done < len(data):
            try:
                count = operation(self.fd, [data[done:]], position + done)
            except OSError as exc:
                raise DeviceError(
                    exc.errno or errno.EIO, f"file I/O on guest memory at byte {position + done:#x} failed: {exc}"
                ) from exc
            if count == 0:
                raise DeviceError(
                    errno.EIO, f"guest memory ends at byte {position + done:#x} of its file: the client truncated it"
                )
            done += count

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self.fd)

"""One mmap a file, however many slices of it a client sends.

QEMU describes guest RAM as many slices of one memfd, and sends a fresh descriptor with each. Mapping every slice by
itself would cost a system call, a kernel mapping and a kept descriptor a slice, and the limits on the latter two
(65,530 mappings, commonly 1,024 descriptors a process) are within a client's reach. So a file is recognised by device
and inode number, mapped whole at its first slice, counted, and unmapped when its last slice goes. The descriptor that
came with a slice is never kept: mmap holds one duplicate for the whole file.

A file that grew after it was mapped is mapped again for the slices that need its new part. Older slices keep the
mapping they have; both show the same memory.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TypeVar

from vfio_user.errors import DeviceError, DmaLimit
from vfio_user.memory.shared_file import FileHandle, FileIdentity, FileInfo, MappedFile, SharedFile, is_sealed

__all__ = ["DEFAULT_MAX_FILES", "FileCache"]

#: Files one client may have us hold at once. Each costs a descriptor, of which a process commonly has 1,024. A guest
#: has one file for each RAM backend (NUMA nodes and memory slots, of which QEMU allows 256).
DEFAULT_MAX_FILES = 300

F = TypeVar("F", bound=SharedFile)


class FileCache:
    """Finds the open file a descriptor stands for, or opens it.

    Args:
        max_files: files held at once; more are refused.

    Attributes:
        held: files held now, counting each mapping of a file that was mapped again because it grew.

    Ownership: descriptors given to the methods stay the caller's; what they return is held until ``release``.

    Threading: session thread.
    """

    def __init__(self, max_files: int = DEFAULT_MAX_FILES) -> None:
        self._max_files = max_files
        # Keyed by the file and whether the mapping allows stores.
        self._mapped: dict[tuple[FileIdentity, bool], MappedFile] = {}
        self._handles: dict[tuple[FileIdentity, int], FileHandle] = {}
        self.held = 0

    def map(self, fd: int, info: FileInfo, offset: int, size: int, *, write: bool) -> MappedFile:
        """Maps the file, or finds it mapped; the caller has had ``info.check`` agree to the slice.

        A descriptor that is open for writing is mapped for writing even when this slice is not, because the next slice
        of the same file probably is. What a slice may do is its mapping's business.

        Args:
            fd: a descriptor of the file.
            info: what ``FileInfo.of(fd)`` said.
            offset: where the slice begins in the file, in bytes.
            size: bytes of the slice.
            write: the slice must be writable.

        Raises:
            DmaLimit: EINVAL, too many files.
            DeviceError: mmap failed; its errno.
        """
        end = offset + size
        writable = info.access == os.O_RDWR
        for key in ((info.identity, True), (info.identity, False)):
            known = self._mapped.get(key)
            # A slice that only reads shares the mapping that also writes, whatever its own descriptor allows.
            if known is not None and end <= known.length and (key[1] or not write):
                return self._hold(known)
        self._check_room()
        try:
            return self._hold(self._map_whole(fd, info, writable=writable))
        except OSError as exc:
            if exc.errno in (errno.EPERM, errno.EACCES) and writable and not write:
                # The memfd is sealed against writing, or the like: reading it is all this slice wants anyway.
                return self.map(fd, info._replace(access=os.O_RDONLY), offset, size, write=False)
            if exc.errno != errno.ENOMEM:
                raise DeviceError(exc.errno or errno.EINVAL, f"mmap of guest memory failed: {exc}") from exc
        # More than the address space holds, such as a sparse file of exabytes: only this slice, then.
        try:
            return self._hold(self._map_slice(fd, info, offset, size, writable=writable))
        except OSError as exc:
            raise DeviceError(exc.errno or errno.EINVAL, f"mmap of guest memory failed: {exc}") from exc

    def open(self, fd: int, info: FileInfo) -> FileHandle:
        """Keeps a duplicate of the descriptor for file I/O, or finds one; the caller has had ``info.check`` agree.

        Raises:
            DmaLimit: EINVAL, too many files.
            DeviceError: the descriptor could not be duplicated; the kernel's errno.
        """
        key = (info.identity, info.access)
        known = self._handles.get(key)
        if known is not None:
            return self._hold(known)
        self._check_room()
        try:
            handle = FileHandle(info.identity, self._forget, os.dup(fd))
        except OSError as exc:
            raise DeviceError(exc.errno or errno.EMFILE, f"no descriptor left for guest memory: {exc}") from exc
        self._handles[key] = handle
        self.held += 1
        return self._hold(handle)

    def _map_whole(self, fd: int, info: FileInfo, *, writable: bool) -> MappedFile:
        mapped = self._mmap(fd, info, 0, info.size, writable=writable)
        self._mapped[info.identity, writable] = mapped
        return mapped

    def _map_slice(self, fd: int, info: FileInfo, offset: int, size: int, *, writable: bool) -> MappedFile:
        # hugetlbfs wants offset and length in its own pages.
        page = max(info.page_size, mmap.ALLOCATIONGRANULARITY)
        base = offset // page * page
        end = min(-(-(offset + size) // page) * page, info.size)
        return self._mmap(fd, info, base, end - base, writable=writable)

    def _mmap(self, fd: int, info: FileInfo, base: int, length: int, *, writable: bool) -> MappedFile:
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        try:
            memory = mmap.mmap(fd, length, flags=mmap.MAP_SHARED, prot=protection, offset=base)
        except (OverflowError, ValueError) as exc:
            # ValueError: the file shrank since it was looked at.
            raise OSError(errno.ENOMEM if isinstance(exc, OverflowError) else errno.EINVAL, str(exc)) from exc
        self.held += 1
        return MappedFile(info.identity, self._forget, memory, base, sealed=is_sealed(fd))

    def _check_room(self) -> None:
        if self.held >= self._max_files:
            raise DmaLimit(
                errno.EINVAL,
                f"the client's DMA mappings are of more than {self._max_files} different files: "
                "send slices of fewer files, or raise the limit",
            )

    @staticmethod
    def _hold(file: F) -> F:
        file.holders += 1
        return file

    def _forget(self, file: SharedFile) -> None:
        self.held -= 1
        if isinstance(file, MappedFile):
            # A file that was mapped again is known by its newest mapping only.
            self._mapped = {key: known for key, known in self._mapped.items() if known is not file}
        else:
            self._handles = {key: known for key, known in self._handles.items() if known is not file}

"""What the client mapped: DMA_MAP and DMA_UNMAP, with every rule about them.

``DmaTable`` is the client's half of ``vfio_user.memory.dma.Dma``, which adds the device's half. The two are one object,
because what the client takes away the device must not use a moment longer.

Spec: "VFIO_USER_DMA_MAP", "VFIO_USER_DMA_UNMAP". Where the text, libvfio-user and QEMU differ: an overlap is EEXIST (as
in the text; libvfio-user says EINVAL), mapping exactly the same again is a success (as in libvfio-user; a client may
repeat a map after an aborted transaction), unmapping anything but exactly one mapping is ENOENT.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vfio_user.errors import DmaExists, DmaLimit, DmaNotMapped, InvalidAccess
from vfio_user.memory.dirty_log import DirtyLog
from vfio_user.memory.file_cache import DEFAULT_MAX_FILES, FileCache
from vfio_user.memory.iova_map import IovaMap
from vfio_user.memory.mapping import DmaMapping, FileMapping, MessageMapping, Messenger, MmapMapping
from vfio_user.memory.shared_file import FileInfo, is_sealed
from vfio_user.protocol.constants import DEFAULT_MAX_DMA_MAPS, DmaMapFlags, DmaUnmapFlags

__all__ = ["MAX_MAPPING_SIZE", "DmaStatistics", "DmaTable"]

#: Bytes of the largest mapping accepted: 8 TiB, as in libvfio-user.
MAX_MAPPING_SIZE = 8 << 40

_ADDRESS_END = 1 << 64

# Plain integers: the operators of IntFlag cost more than the rest of a DMA_MAP together.
_READ = int(DmaMapFlags.READ)
_WRITE = int(DmaMapFlags.WRITE)
_FILE_IO = int(DmaMapFlags.ACCESS_FILE_IO)
_ACCESS_FLAGS = int(DmaMapFlags.ACCESS_MMAP) | _FILE_IO
_KNOWN_MAP_FLAGS = _READ | _WRITE | _ACCESS_FLAGS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DmaStatistics:
    """What happened to a ``Dma`` since it was made, and what it holds.

    Attributes:
        mappings: mappings now.
        mapped_bytes: their bytes.
        files: files held for them.
        maps: mappings made.
        unmaps: mappings that ended.
        faults: accesses of the device that were refused.
        stuck_views: views that could not be revoked when their mapping ended.
    """

    mappings: int
    mapped_bytes: int
    files: int
    maps: int
    unmaps: int
    faults: int
    stuck_views: int


class DmaTable:
    """The client's mappings.

    Args:
        max_maps: mappings kept at once; more are refused. Advertised as ``max_dma_maps``.
        max_files: different files they may be slices of.
        sealed_only: for clients that are not trusted. Maps only files that can never become shorter, and reaches the
            others by file I/O, so that no truncation can end this process with SIGBUS.

    Attributes:
        on_map: called with each new mapping. Raising DeviceError refuses it.
        on_unmap: called with each mapping that is about to end, while it still works. It cannot be refused,
            and is no time to map or unmap.

    Ownership: descriptors handed to ``map`` are this object's from the call on; ``clear`` gives everything back.

    Threading: session thread.
    """

    def __init__(
        self,
        *,
        max_maps: int = DEFAULT_MAX_DMA_MAPS,
        max_files: int = DEFAULT_MAX_FILES,
        sealed_only: bool = False,
    ) -> None:
        self.on_map: list[Callable[[DmaMapping], None]] = []
        self.on_unmap: list[Callable[[DmaMapping], None]] = []
        self._max_maps = max_maps
        self._sealed_only = sealed_only
        self._mappings: IovaMap[DmaMapping] = IovaMap()
        self._files = FileCache(max_files)
        self._messenger = Messenger()
        self._dirty_log: DirtyLog | None = None
        self._mapped_bytes = self._maps = self._unmaps = self._faults = self._stuck_views = 0

    def map(self, iova: int, size: int, flags: int, offset: int = 0, fd: int | None = None) -> DmaMapping:
        """Makes ``[iova, iova + size)`` accessible. Mapping exactly the same again changes nothing.

        A mapping is refused if its file is too short now. A file that is truncated *later* makes the next access end
        this process with SIGBUS, unless it is a memfd sealed against shrinking (QEMU's are), the client asks for file
        I/O, or ``sealed_only`` is set.

        Args:
            iova: the first address.
            size: bytes.
            flags: ``DmaMapFlags``: what the device may do, and how the bytes are reached; without an access mode a
                descriptor is mapped.
            offset: where the memory begins in the file, in bytes.
            fd: a memfd, or a file of tmpfs or hugetlbfs; None for memory that only messages reach.

        Raises:
            InvalidAccess: no bytes, beyond the address space, unknown flags, an access mode without a descriptor or
                both modes, a file that is too short.
            DmaExists: the range overlaps a mapping.
            DmaLimit: ENOSPC for more than ``MAX_MAPPING_SIZE``, EINVAL for too many mappings or files.
            DeviceError: mmap, or a listener, refused; its errno.

        Ownership: closes ``fd`` in every case.

        Spec: "VFIO_USER_DMA_MAP".
        """
        try:
            _check_map(iova, size, flags, fd)
            info = None if fd is None else FileInfo.of(fd)
            readable = bool(flags & _READ)
            writable = bool(flags & _WRITE)
            clash = self._mappings.overlap(iova, iova + size)
            if clash is not None:
                identity = None if info is None else info.identity
                if clash.iova == iova and clash.same_slice(
                    size, offset, identity, readable=readable, writable=writable
                ):
                    return clash
                raise DmaExists(f"a DMA mapping of [{iova:#x}, {iova + size:#x}) overlaps {clash}: unmap that first")
            if len(self._mappings) >= self._max_maps:
                raise DmaLimit(errno.EINVAL, f"more than {self._max_maps} DMA mappings at once: see max_dma_maps")
            mapping: DmaMapping
            if fd is None or info is None:
                mapping = MessageMapping(iova, size, offset, self._messenger, readable=readable, writable=writable)
            else:
                info.check(offset, size, read=readable, write=writable)
                if flags & _FILE_IO or (self._sealed_only and not is_sealed(fd)):
                    handle = self._files.open(fd, info)
                    mapping = FileMapping(iova, size, offset, handle, readable=readable, writable=writable)
                else:
                    file = self._files.map(fd, info, offset, size, write=writable)
                    mapping = MmapMapping(iova, size, offset, file, readable=readable, writable=writable)
        finally:
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._mappings.insert(mapping)
        self._mapped_bytes += size
        self._maps += 1
        if self.on_map:
            self._announce(mapping)
        return mapping

    def unmap(
        self,
        iova: int,
        size: int,
        flags: int = 0,
        *,
        page_size: int = 0,
    ) -> bytes:
        """Ends mappings. When it returns, nothing here uses their memory any more.

        The specification asks for exactly one mapping; but when a guest sets up its IOMMU, QEMU takes back the whole
        address space in a few ranges, each of which may hold many mappings or none, as it does with VFIO in the kernel.
        So a range ends every mapping in it, as there; one that would cut a mapping, or holds none, is refused.

        Args:
            iova: the first address; 0 with ALL.
            size: bytes; 0 with ALL.
            flags: ``DmaUnmapFlags``: none, GET_DIRTY_BITMAP or ALL.
            page_size: bytes of a page of the dirty bitmap, when that is asked for.

        Returns:
            The dirty bitmap that was asked for (see ``DirtyLog.report``), else nothing.

        Raises:
            DmaNotMapped: no mapping is in this range, or only part of one.
            InvalidAccess: other flags, a range with ALL, a bitmap while no dirty log is kept or of impossible pages.
            Exception: the first thing an ``on_unmap`` listener raised; the mappings have ended all the same.

        Spec: "VFIO_USER_DMA_UNMAP".
        """
        log = None
        if flags == DmaUnmapFlags.ALL:
            if iova or size:
                raise InvalidAccess(
                    f"DMA_UNMAP of everything with a range, [{iova:#x}, {iova + size:#x}): both must be 0"
                )
            self.clear()
            return b""
        if flags == DmaUnmapFlags.GET_DIRTY_BITMAP:
            log = self._dirty_log
            if log is None:
                raise InvalidAccess("DMA_UNMAP asks for a dirty bitmap while no dirty log is kept: start logging first")
            log.check_report(iova, size, page_size)
        elif flags:
            raise InvalidAccess(f"DMA_UNMAP flags {flags:#x}: 0, 1 (dirty bitmap) or 2 (everything)")
        self._end(self._within(iova, iova + size))
        return b"" if log is None else log.report(iova, size, page_size)

    def clear(self) -> None:
        """Ends every mapping: the client is gone, or asked for it.

        Raises:
            Exception: the first thing an ``on_unmap`` listener raised; every mapping has ended all the same.
        """
        self._end(list(self._mappings))

    def _within(self, start: int, end: int) -> list[DmaMapping]:
        """The mappings in ``[start, end)``, in ascending order: at least one, and none of them in part.

        Raises:
            DmaNotMapped: there is none, or one reaches beyond the range.
        """
        found = []
        at = start
        while at < end and (mapping := self._mappings.overlap(at, end)) is not None:
            if mapping.iova < start or mapping.end > end:
                raise DmaNotMapped(f"DMA_UNMAP of [{start:#x}, {end:#x}), which is only part of {mapping}")
            found.append(mapping)
            at = mapping.end
        if not found:
            raise DmaNotMapped(f"DMA_UNMAP of [{start:#x}, {end:#x}), where nothing is mapped")
        return found

    def _end(self, mappings: Iterable[DmaMapping]) -> None:
        failure: Exception | None = None
        for mapping in mappings:
            try:
                self._tell_unmap(mapping)
            except Exception as exc:
                failure = failure or exc
            self._drop(mapping)
        if failure is not None:
            raise failure

    @property
    def dirty_log(self) -> DirtyLog | None:
        """Where writes are remembered while the client migrates; None otherwise.

        Writes of this class are marked by themselves, views and segments made for writing when they are made. A device
        that writes through a view it made earlier calls ``mark_dirty``. Message mode is the client's to track.
        """
        return self._dirty_log

    @dirty_log.setter
    def dirty_log(self, log: DirtyLog | None) -> None:
        self._dirty_log = log
        self._forget_hits()

    def __len__(self) -> int:
        return len(self._mappings)

    def __iter__(self) -> Iterator[DmaMapping]:
        """The mappings by ascending IOVA."""
        return iter(self._mappings)

    def lookup(self, iova: int) -> DmaMapping | None:
        """The mapping that contains ``iova``, whatever it allows."""
        return self._mappings.find(iova)

    def statistics(self) -> DmaStatistics:
        """Counts so far. Single accesses are not counted: they are the hot path."""
        return DmaStatistics(
            mappings=len(self._mappings),
            mapped_bytes=self._mapped_bytes,
            files=self._files.held,
            maps=self._maps,
            unmaps=self._unmaps,
            faults=self._faults,
            stuck_views=self._stuck_views,
        )

    def _announce(self, mapping: DmaMapping) -> None:
        told = []
        try:
            for listener in self.on_map:
                listener(mapping)
                told.append(listener)
        except BaseException:
            # Whoever refused has not taken it, the others learn that it ended.
            try:
                if told:
                    self._tell_unmap(mapping)
            finally:
                self._drop(mapping)
            raise

    def _tell_unmap(self, mapping: DmaMapping) -> None:
        failure: Exception | None = None
        for listener in self.on_unmap:
            try:
                listener(mapping)
            except Exception as exc:
                failure = failure or exc
        if failure is not None:
            raise failure

    def _drop(self, mapping: DmaMapping) -> None:
        self._mappings.remove(mapping)
        self._forget_hits()
        self._mapped_bytes -= mapping.size
        self._unmaps += 1
        stuck = mapping.revoke_views()
        if stuck:
            self._stuck_views += stuck
            logger.warning(
                "%s ended while %d view(s) of it could not be revoked: drop arrays and casts over views in on_unmap",
                mapping,
                stuck,
            )
        mapping.release()

    def _forget_hits(self) -> None:
        """Drops what the device's half remembers of mappings: one of them, or what it allows, changed."""
        raise NotImplementedError


def _check_map(iova: int, size: int, flags: int, fd: int | None) -> None:
    """What can be said of a DMA_MAP without looking at anything else."""
    if size == 0:
        raise InvalidAccess(f"a DMA mapping of 0 bytes at {iova:#x}")
    if size > MAX_MAPPING_SIZE:
        raise DmaLimit(errno.ENOSPC, f"a DMA mapping of {size:#x} bytes; the most is {MAX_MAPPING_SIZE:#x} (8 TiB)")
    if iova + size > _ADDRESS_END:
        raise InvalidAccess(f"a DMA mapping of {size:#x} bytes at {iova:#x} goes beyond 64 bits of address")
    if flags & ~_KNOWN_MAP_FLAGS:
        raise InvalidAccess(f"DMA_MAP flags {flags:#x}: only the bits of {_KNOWN_MAP_FLAGS:#x} have a meaning")
    access = flags & _ACCESS_FLAGS
    if access == _ACCESS_FLAGS:
        raise InvalidAccess("DMA_MAP asks for access by mmap and by file I/O: one of the two")
    if access and fd is None:
        raise InvalidAccess(
            f"DMA_MAP asks for access by {DmaMapFlags(access).name} but no file descriptor came with it"
        )

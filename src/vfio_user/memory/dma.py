"""Guest memory as a device sees it.

``Dma`` keeps what the client mapped (DMA_MAP, DMA_UNMAP) and gives device code one way to read and write it by IOVA,
whichever of the three kinds a mapping is and however many mappings a range crosses.

**What is checked.** Before the first byte moves, the whole range must be mapped, with the permission needed, and the
device must be a bus master; a transfer is refused whole. After that only file I/O and messages can still fail.

**Order and atomicity.** ``read_u16`` to ``write_u64`` on a naturally aligned address of mmapped memory are one load or
store of that size: publish with them (a ring index, a completion's last word). Every other transfer is a plain copy, in
no defined order. x86 keeps the order of stores; Python offers no barrier for machines that do not.

**Speed.** The mapping last hit is tried first, in two slots, one for reading and one for writing. A slot only holds a
mapping that may be used that way now, so a hit needs no check but the range; whatever takes a permission away (bus
master off, unmap, a dirty log that has to see each write) empties the slots.

**The end of a mapping.** ``on_unmap`` listeners run first, while the memory is still there. Then views made by ``view``
are released: a later use of one raises ValueError. What cannot be revoked (a NumPy array or a cast over a view, the
memory of a ``Segment``) keeps the host's memory mapped until it goes, so a device that forgets one writes to memory
that is the guest's no more, but never crashes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vfio_user.errors import DeviceError, DmaAccess, DmaNotMapped, InvalidAccess
from vfio_user.memory.dma_table import DmaTable
from vfio_user.memory.file_cache import DEFAULT_MAX_FILES
from vfio_user.memory.mapping import NOWHERE, AccessMode, DmaMapping, MessageDma, MmapMapping
from vfio_user.protocol.constants import DEFAULT_MAX_DMA_MAPS

__all__ = ["Dma", "Segment"]

#: A part of a range that lies in one mapping: the mapping, its first address, the address after its last.
_Piece = tuple[DmaMapping, int, int]


class Segment(NamedTuple):
    """A part of a transfer that is contiguous in our memory: one entry of a scatter/gather list.

    Attributes:
        iova: where it begins for the device.
        length: bytes.
        memory: the bytes themselves, for ``os.preadv``, ``socket.recvmsg_into`` and the like; None where the client did
            not share memory we can map. Read-only unless the list was made for writing. Use it before the handler
            returns and keep no reference: unlike a view it is not revoked by an unmap.
    """

    iova: int
    length: int
    memory: memoryview | None


class Dma(DmaTable):
    """The client's memory, by IOVA: ``map`` and ``unmap`` are inherited, the rest is for device code.

    Args:
        max_maps: see ``DmaTable``.
        max_files: see ``DmaTable``.
        sealed_only: see ``DmaTable``.

    Threading: session thread.
    """

    def __init__(
        self,
        *,
        max_maps: int = DEFAULT_MAX_DMA_MAPS,
        max_files: int = DEFAULT_MAX_FILES,
        sealed_only: bool = False,
    ) -> None:
        super().__init__(max_maps=max_maps, max_files=max_files, sealed_only=sealed_only)
        self._enabled = True
        self._held = False
        self._read_hit = NOWHERE
        self._write_hit = NOWHERE

    # ---- What the session decides ----

    @property
    def enabled(self) -> bool:
        """Whether the device may access memory at all: Bus Master Enable of its PCI command register."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._enabled = enabled
        self._forget_hits()

    @property
    def held(self) -> bool:
        """The device is stopped, to be migrated, and must not access memory at all."""
        return self._held

    @held.setter
    def held(self, held: bool) -> None:
        self._held = held
        self._forget_hits()

    @property
    def messenger(self) -> MessageDma | None:
        """What reaches mappings that came without a descriptor; None while nothing does."""
        return self._messenger.dma

    @messenger.setter
    def messenger(self, messenger: MessageDma | None) -> None:
        self._messenger.dma = messenger

    # ---- What the device does ----

    def read(self, iova: int, length: int) -> bytes:
        """Reads ``length`` bytes, across as many mappings as it takes.

        Raises:
            DmaNotMapped: part of the range is not mapped; the text names the gap.
            DmaAccess: part of it cannot be read, or the device is no bus master, or stopped.
            DeviceError: file I/O or the client failed; its errno.
        """
        mapping = self._read_hit
        end = iova + length
        if mapping.iova <= iova <= end <= mapping.end:
            shift = mapping.shift
            return mapping.map[iova + shift : end + shift]
        pieces = self._pieces(iova, length, write=False)
        mapping = self._read_hit
        if mapping.iova <= iova <= end <= mapping.end:
            shift = mapping.shift
            return mapping.map[iova + shift : end + shift]
        if len(pieces) == 1:
            return pieces[0][0].read(iova, length)
        data = bytearray(length)
        _gather(pieces, iova, memoryview(data))
        return bytes(data)

    def is_immediate(self, iova: int, length: int, *, write: bool = False) -> bool:
        """Whether ``read`` (or ``write``) of that range would be carried out if it were called now.

        False where it would be refused: the range is not mapped that way, the device is no bus master, or part of it is
        reached by messages and the client waits for the reply to what is being handled. A device that is to work with
        memory the client does not share asks here, or always puts its transfers off (``call_soon``).
        """
        try:
            pieces = self._check(iova, length, write=write)
        except DeviceError:
            return False
        messenger = self._messenger.dma
        return all(
            mapping.mode is not AccessMode.MESSAGE or (messenger is not None and messenger.is_ready)
            for mapping, _, _ in pieces
        )

    def read_into(self, iova: int, buffer: bytearray | memoryview) -> None:
        """Fills a writable buffer from ``iova`` on, without a copy in between.

        Raises:
            DmaNotMapped: see ``read``.
            DmaAccess: see ``read``.
            DeviceError: see ``read``.
        """
        mapping = self._read_hit
        if type(buffer) is bytearray and mapping.iova <= iova and (end := iova + len(buffer)) <= mapping.end:
            shift = mapping.shift
            # Assigning to the bytearray itself would copy twice.
            memoryview(buffer)[:] = mapping.file.readonly[iova + shift : end + shift]
            return
        with memoryview(buffer) as whole, whole.cast("B") as target:
            if mapping.iova <= iova and iova + len(target) <= mapping.end:
                mapping.read_into(iova, target)
            else:
                _gather(self._pieces(iova, len(target), write=False), iova, target)

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Writes all of ``data``, across as many mappings as it takes.

        Raises:
            DmaNotMapped: part of the range is not mapped; the text names the gap. Nothing was written.
            DmaAccess: part of it cannot be written, or the device is no bus master. Nothing was written.
            DeviceError: file I/O or the client failed; its errno.
        """
        mapping = self._write_hit
        end = iova + len(data)
        if mapping.iova <= iova and end <= mapping.end:
            shift = mapping.shift
            try:
                mapping.map[iova + shift : end + shift] = data
                return
            except IndexError:  # an array of wider items, whose length is not its bytes
                pass
        with memoryview(data) as whole, whole.cast("B") as source:
            pieces = self._pieces(iova, len(source), write=True)
            _scatter(pieces, iova, source)

    def view(self, iova: int, length: int, *, writable: bool = False) -> memoryview:
        """The memory itself, without a copy, for as long as it stays mapped.

        The range must be contiguous in one file we mapped; it may cross mappings of it. Release the view when done
        (``with dma.view(...) as memory:``), or keep it: when the mapping ends it is released, and every later use
        raises ValueError. Arrays and casts made from it are the device's to drop in ``on_unmap``.

        Raises:
            DmaNotMapped: see ``read``.
            DmaAccess: the memory is not contiguous for us, or not mapped by us; or see ``read`` and ``write``.
        """
        mapping = self._write_hit if writable else self._read_hit
        end = iova + length
        if mapping.iova <= iova <= end <= mapping.end:
            file = mapping.file
            shift = mapping.shift
            view = (file.words[1] if writable else file.readonly)[iova + shift : end + shift]
            mapping.track(view)
            return view
        return self._view_across(iova, length, writable=writable)

    def sgl(self, iova: int, length: int, *, write: bool = False) -> list[Segment]:
        """Cuts a range into the fewest parts that are contiguous in our memory.

        Args:
            iova: the first address.
            length: bytes.
            write: the device is going to write there; otherwise the memory is read-only.

        Raises:
            DmaNotMapped: see ``read``.
            DmaAccess: see ``read`` and ``write``.
        """
        mapping = self._write_hit if write else self._read_hit
        end = iova + length
        if mapping.iova <= iova < end <= mapping.end:
            file = mapping.file
            shift = mapping.shift
            return [Segment(iova, length, (file.words[1] if write else file.readonly)[iova + shift : end + shift])]
        segments = []
        for run in _runs(self._pieces(iova, length, write=write)):
            start, stop = run[0][1], run[-1][2]
            segments.append(Segment(start, stop - start, _memory_of(run, writable=write)))
        return segments

    def mark_dirty(self, iova: int, length: int) -> None:
        """Says that the device wrote ``[iova, iova + length)`` through a view made earlier."""
        if self._dirty_log is not None:
            self._dirty_log.mark(iova, length)

    def read_u8(self, iova: int) -> int:
        """Reads one byte; raises as ``read`` does."""
        return self._read_word(iova, 1)

    def read_u16(self, iova: int) -> int:
        """Reads 2 little-endian bytes, in one load if aligned; raises as ``read`` does."""
        return self._read_word(iova, 2)

    def read_u32(self, iova: int) -> int:
        """Reads 4 little-endian bytes, in one load if aligned; raises as ``read`` does."""
        mapping = self._read_hit
        if mapping.iova <= iova and iova + 4 <= mapping.end:
            at = iova + mapping.shift
            if not at & 3:
                return mapping.file.words[4][at >> 2]
        return self._read_word(iova, 4)

    def read_u32_nowait(self, iova: int) -> int | None:
        """``read_u32`` of aligned bytes in the memory that was read last; None, and nothing done, for all others.

        For code that has something better to do than to be told what is wrong, or to wait for the client.
        """
        mapping = self._read_hit
        if mapping.iova <= iova and iova + 4 <= mapping.end:
            at = iova + mapping.shift
            if not at & 3:
                return mapping.file.words[4][at >> 2]
        return None

    def view_nowait(self, iova: int, length: int) -> memoryview | None:
        """The memory itself, to be read at once, in the memory that was read last; None for all others."""
        mapping = self._read_hit
        if mapping.iova <= iova and iova + length <= mapping.end:
            at = iova + mapping.shift
            return mapping.file.readonly[at : at + length]
        return None

    def views_nowait(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview] | None:
        """Ranges of the memory that was written last, to be written at once; None if one is elsewhere.

        Args:
            ranges: address and length of each.
        """
        mapping = self._write_hit
        first, end = mapping.iova, mapping.end
        for iova, length in ranges:
            if iova < first or iova + length > end:
                return None
        memory, shift = mapping.file.words[1], mapping.shift
        return [memory[iova + shift : iova + length + shift] for iova, length in ranges]

    def read_u64(self, iova: int) -> int:
        """Reads 8 little-endian bytes, in one load if aligned; raises as ``read`` does."""
        mapping = self._read_hit
        if mapping.iova <= iova and iova + 8 <= mapping.end:
            at = iova + mapping.shift
            if not at & 7:
                return mapping.file.words[8][at >> 3]
        return self._read_word(iova, 8)

    def write_u8(self, iova: int, value: int) -> None:
        """Writes one byte; raises as ``write`` does, and ValueError for a value that does not fit."""
        self._write_word(iova, 1, value)

    def write_u16(self, iova: int, value: int) -> None:
        """Writes 2 little-endian bytes, in one store if aligned; raises as ``write_u8`` does."""
        self._write_word(iova, 2, value)

    def write_u32(self, iova: int, value: int) -> None:
        """Writes 4 little-endian bytes, in one store if aligned; raises as ``write_u8`` does."""
        mapping = self._write_hit
        if mapping.iova <= iova and iova + 4 <= mapping.end:
            at = iova + mapping.shift
            if not at & 3:
                mapping.file.words[4][at >> 2] = value
                return
        self._write_word(iova, 4, value)

    def write_u32_nowait(self, iova: int, value: int) -> bool:
        """``write_u32`` of aligned bytes in the memory that was written last; False, and nothing done, for others."""
        mapping = self._write_hit
        if mapping.iova <= iova and iova + 4 <= mapping.end:
            at = iova + mapping.shift
            if not at & 3:
                mapping.file.words[4][at >> 2] = value
                return True
        return False

    def write_u64(self, iova: int, value: int) -> None:
        """Writes 8 little-endian bytes, in one store if aligned; raises as ``write_u8`` does."""
        mapping = self._write_hit
        if mapping.iova <= iova and iova + 8 <= mapping.end:
            at = iova + mapping.shift
            if not at & 7:
                mapping.file.words[8][at >> 3] = value
                return
        self._write_word(iova, 8, value)

    def read_struct(self, iova: int, layout: struct.Struct) -> tuple[Any, ...]:
        """Reads and unpacks one structure; raises as ``read`` does."""
        mapping = self._read_hit
        if mapping.iova <= iova and iova + layout.size <= mapping.end:
            return layout.unpack_from(mapping.map, iova + mapping.shift)
        return layout.unpack(self.read(iova, layout.size))

    def write_struct(self, iova: int, layout: struct.Struct, *values: Any) -> None:
        """Packs and writes one structure; raises as ``write`` does, and struct.error for values that do not fit.

        The driver may see it half written. Where one word of it publishes the rest (a phase bit), write the rest first
        and that word with ``write_u32``.
        """
        # Not pack_into: it clears the memory and then stores byte by byte, and the driver would see all of that.
        self.write(iova, layout.pack(*values))

    # ---- Inside ----

    def _forget_hits(self) -> None:
        self._read_hit = self._write_hit = NOWHERE

    def _pieces(self, iova: int, length: int, *, write: bool) -> list[_Piece]:
        """Cuts a range at the mappings' borders, and checks all of it; the common way to every slow path.

        Returns:
            (mapping, first address, address after the last) of each part, in order.
        """
        try:
            pieces = self._check(iova, length, write=write)
        except DeviceError:
            self._faults += 1
            raise
        if pieces:
            mapping = pieces[-1][0]
            log = self._dirty_log
            if isinstance(mapping, MmapMapping):
                if mapping.readable:
                    self._read_hit = mapping
                if mapping.writable and log is None:
                    self._write_hit = mapping
            if write and log is not None:
                for mapping, start, stop in pieces:
                    if mapping.mode is not AccessMode.MESSAGE:
                        log.mark(start, stop - start)
        return pieces

    def _check(self, iova: int, length: int, *, write: bool) -> list[_Piece]:
        end = iova + length
        if length < 0:
            raise InvalidAccess(f"DMA of {length} bytes at {iova:#x}: a length cannot be negative")
        if self._held:
            raise DmaAccess(
                f"DMA at [{iova:#x}, {end:#x}) while the device is stopped, to be migrated: put the work off with "
                "call_soon, which waits until it runs again"
            )
        if not self._enabled:
            raise DmaAccess(
                f"DMA at [{iova:#x}, {end:#x}) while the device is no bus master: the driver has to set Bus Master "
                "Enable (bit 2 of the command register) first"
            )
        pieces: list[_Piece] = []
        position = iova
        while position < end:
            mapping = self._mappings.find(position)
            if mapping is None:
                above = self._mappings.next(position)
                gap_end = end if above is None else min(above.iova, end)
                raise DmaNotMapped(
                    f"DMA {'to' if write else 'from'} [{iova:#x}, {end:#x}): the client has not mapped "
                    f"[{position:#x}, {gap_end:#x})"
                )
            if not (mapping.writable if write else mapping.readable):
                raise DmaAccess(
                    f"DMA {'to' if write else 'from'} [{iova:#x}, {end:#x}): the client does not allow "
                    f"{'writing' if write else 'reading'} in {mapping}"
                )
            mapping.check_reachable()
            stop = min(mapping.end, end)
            pieces.append((mapping, position, stop))
            position = stop
        return pieces

    def _view_across(self, iova: int, length: int, *, writable: bool) -> memoryview:
        pieces = self._pieces(iova, length, write=writable)
        if not pieces:
            return memoryview(b"")
        runs = list(_runs(pieces))
        view = _memory_of(runs[0], writable=writable)
        if view is None or len(runs) > 1:
            self._faults += 1
            raise DmaAccess(
                f"[{iova:#x}, {iova + length:#x}) cannot be viewed: "
                + (
                    f"no memory behind {pieces[0][0]}"
                    if view is None
                    else f"it is {len(runs)} separate pieces of memory"
                )
                + "; use read and write, or sgl"
            )
        for mapping, _start, _stop in pieces:
            assert isinstance(mapping, MmapMapping)
            mapping.track(view)
        return view

    def _read_word(self, iova: int, size: int) -> int:
        pieces = self._pieces(iova, size, write=False)
        mapping = pieces[0][0]
        if isinstance(mapping, MmapMapping) and len(pieces) == 1:
            at = iova + mapping.shift
            if not at % size:
                return mapping.file.words[size][at // size]
        data = bytearray(size)
        _gather(pieces, iova, memoryview(data))
        return int.from_bytes(data, "little")

    def _write_word(self, iova: int, size: int, value: int) -> None:
        if value >> 8 * size:
            raise ValueError(f"{value:#x} does not fit an unsigned integer of {size} bytes")
        pieces = self._pieces(iova, size, write=True)
        mapping = pieces[0][0]
        if isinstance(mapping, MmapMapping) and len(pieces) == 1:
            at = iova + mapping.shift
            if not at % size:
                mapping.file.words[size][at // size] = value
                return
        _scatter(pieces, iova, memoryview(value.to_bytes(size, "little")))


def _gather(pieces: list[_Piece], iova: int, target: memoryview) -> None:
    """Copies the parts of a range that begins at ``iova`` into ``target``."""
    for mapping, start, stop in _messages_last(pieces):
        mapping.read_into(start, target[start - iova : stop - iova])


def _scatter(pieces: list[_Piece], iova: int, source: memoryview) -> None:
    """Copies ``source`` into the parts of a range that begins at ``iova``."""
    for mapping, start, stop in _messages_last(pieces):
        mapping.write(start, source[start - iova : stop - iova])


def _messages_last(pieces: list[_Piece]) -> list[_Piece]:
    """Puts what needs the client to the end: while it answers, it may unmap the rest."""
    return pieces if len(pieces) == 1 else sorted(pieces, key=lambda piece: piece[0].mode is AccessMode.MESSAGE)


def _runs(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Groups neighbouring parts that are contiguous in one file."""
    run: list[_Piece] = []
    for piece in pieces:
        mapping = piece[0]
        if run:
            before = run[-1][0]
            if not (isinstance(mapping, MmapMapping) and isinstance(before, MmapMapping) and mapping.continues(before)):
                yield run
                run = []
        run.append(piece)
    if run:
        yield run


def _memory_of(run: list[_Piece], *, writable: bool) -> memoryview | None:
    """The memory of parts that are contiguous in one file, None where there is none."""
    mapping, start, stop = run[0][0], run[0][1], run[-1][2]
    if not isinstance(mapping, MmapMapping):
        return None
    file = mapping.file
    return (file.words[1] if writable else file.readonly)[start + mapping.shift : stop + mapping.shift]

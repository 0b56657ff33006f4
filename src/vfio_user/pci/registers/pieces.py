"""Cutting an access into registers, and checking the block's rules about odd accesses.

An access names bytes; a driver means registers. ``cut`` says which bytes of which registers an access touches, through
register files and placed regions, as the banks stand at that moment. It runs once for each place and size a client
uses (``RegisterBlock`` keeps the result), so it may take its time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vfio_user.pci.registers.declaration import REJECT
from vfio_user.pci.registers.layout import Selector
from vfio_user.pci.registers.register import Register
from vfio_user.pci.registers.views import RegisterFile
from vfio_user.regions import Region

if TYPE_CHECKING:
    from vfio_user.pci.registers.block import RegisterBlock

__all__ = ["Gap", "Piece", "RegionPiece", "cut", "refusal", "selected", "selectors_of"]


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes no register claims.

    Attributes:
        at: where they are in the access, bytes.
        size: how many.
    """

    at: int
    size: int


@dataclass(frozen=True, slots=True)
class RegionPiece:
    """Bytes of a region that was placed in the block and is not a block itself."""

    at: int
    size: int
    region: Region
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one register.

    Attributes:
        at: where they are in the access, bytes.
        size: how many.
        block: the block the register stands in; maybe inside the one that is accessed.
        register: the register.
        index: which one of an array; 0 for a single register.
        first: the first of the bytes in the register, in address order.
    """

    at: int
    size: int
    block: RegisterBlock
    register: Register[Any]
    index: int
    first: int

    @property
    def slot(self) -> int:
        """Where its value is."""
        return self.register.slot + self.index

    @property
    def is_whole(self) -> bool:
        """It is all of the register."""
        return self.size == self.register.size

    @property
    def shift(self) -> int:
        """Bit number of its lowest bit in the register's value."""
        big = self.block.byteorder == "big"
        return 8 * (self.register.size - self.first - self.size if big else self.first)

    @property
    def lanes(self) -> int:
        """Its bits in the register's value."""
        return (1 << 8 * self.size) - 1 << self.shift

    @property
    def name(self) -> str:
        """The register's full name."""
        index = "" if self.register.count is None else f"[{self.index}]"
        return f"{self.block.path}{self.register.name}{index}"


def cut(block: RegisterBlock, offset: int, size: int, *, writing: bool) -> list[Piece | RegionPiece | Gap]:
    """Cuts the access ``[offset, offset + size)`` of a block into pieces, in ascending order, without holes."""
    end = offset + size
    other_door = block.layout.read_only_doors if writing else block.layout.write_only_doors
    pieces: list[Piece | RegionPiece | Gap] = []
    for item, index in block.layout.find(offset, size):
        if item.name in other_door or not _answers(block, item.when):
            continue
        start = item.offset + index * item.stride
        low, high = max(start, offset), min(start + item.size, end)
        if isinstance(item, Register):
            pieces.append(Piece(low - offset, high - low, block, item, index, low - start))
        else:
            assert isinstance(item, RegisterFile)
            inner = block.element(item, index)
            pieces += _moved(cut(inner, low - start, high - low, writing=writing), low - offset)
    for placement in block.placements:
        start, region = placement.offset, placement.region
        low, high = max(start, offset), min(start + region.size, end)
        if low >= high:
            continue
        if placement.block is None:
            pieces.append(RegionPiece(low - offset, high - low, region, low - start))
        else:
            pieces += _moved(cut(placement.block, low - start, high - low, writing=writing), low - offset)
    pieces.sort(key=lambda piece: piece.at)
    filled: list[Piece | RegionPiece | Gap] = []
    at = 0
    for piece in pieces:
        if piece.at > at:
            filled.append(Gap(at, piece.at - at))
        filled.append(piece)
        at = piece.at + piece.size
    if at < size:
        filled.append(Gap(at, size - at))
    return filled


def _moved(pieces: list[Piece | RegionPiece | Gap], by: int) -> list[Piece | RegionPiece | Gap]:
    return [replace(piece, at=piece.at + by) for piece in pieces] if by else pieces


def _answers(block: RegisterBlock, when: tuple[str, frozenset[int]] | None) -> bool:
    if when is None:
        return True
    return selected(block, block.layout.selectors[when[0]]) in when[1]


def selected(block: RegisterBlock, selector: Selector) -> int:
    """The bank number a selector holds now."""
    return (block._values[selector.slot] & selector.mask) >> selector.shift


def selectors_of(block: RegisterBlock, offset: int, size: int) -> list[tuple[RegisterBlock, Selector]]:
    """Everything that decides which registers an access touches; empty nearly always."""
    found: dict[tuple[int, str], tuple[RegisterBlock, Selector]] = {}
    for item, index in block.layout.find(offset, size):
        if item.when is not None:
            found[id(block), item.when[0]] = block, block.layout.selectors[item.when[0]]
        if isinstance(item, RegisterFile):
            start = item.offset + index * item.stride
            low, high = max(start, offset), min(start + item.size, offset + size)
            inner = block.element(item, index)
            for owner, selector in selectors_of(inner, low - start, high - low):
                found[id(owner), selector.name] = owner, selector
    for placement in block.placements:
        low = max(placement.offset, offset)
        high = min(placement.offset + placement.region.size, offset + size)
        if placement.block is not None and low < high:
            for owner, selector in selectors_of(placement.block, low - placement.offset, high - low):
                found[id(owner), selector.name] = owner, selector
    return list(found.values())


def refusal(pieces: list[Piece | RegionPiece | Gap], offset: int, size: int, verb: str) -> str | None:
    """Why the rules of the blocks it touches refuse an access; None if they allow it.

    Args:
        pieces: what ``cut`` made of it.
        offset: as the client gave it, for the rule about alignment and for the text.
        size: bytes.
        verb: "read" or "write".
    """
    for piece in pieces:
        if not isinstance(piece, Piece):
            continue
        block, register = piece.block, piece.register
        sizes = register.sizes or block.access_sizes
        if sizes is not None and size not in sizes:
            allowed = " or ".join(map(str, sorted(sizes)))
            rule = f"it takes accesses of {allowed} bytes"
        elif offset % size and block.unaligned_access is REJECT:
            rule = "it takes aligned accesses only (unaligned_access = REJECT)"
        elif len(pieces) > 1 and block.spanning_access is REJECT:
            rule = "an access may not span registers (spanning_access = REJECT)"
        elif not piece.is_whole and (register.partial or block.partial_access) is REJECT:
            rule = f"all {register.size} bytes must be accessed at once (partial access: REJECT)"
        else:
            continue
        return f"{piece.name}: {verb} of {size} bytes at {offset:#x}: {rule}"
    return None

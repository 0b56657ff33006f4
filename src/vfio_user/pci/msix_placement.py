"""Where the MSI-X table and its pending bits go: behind which BAR, and at which offset of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vfio_user.errors import DefinitionError
from vfio_user.pci.bars import Bar, MemoryBar
from vfio_user.pci.capabilities.msix import MsiX
from vfio_user.regions import MemoryRegion

__all__ = ["MsiXPlacement", "occupied_indexes", "place_msix"]

#: Table and pending bits on pages of their own let a client map the rest of the BAR around them.
_PAGE = 4096


class MsiXPlacement(NamedTuple):
    """Where the two structures lie.

    Attributes:
        table: (BAR index, offset).
        pba: (BAR index, offset).
        bars: BARs that are made for them alone, by index.
    """

    table: tuple[int, int]
    pba: tuple[int, int]
    bars: Mapping[int, Bar[Any]]


class _Stretch(NamedTuple):
    """Part of a BAR that one of the two structures takes."""

    what: str
    bar: int
    offset: int
    size: int


def occupied_indexes(bars: Mapping[int, Bar[Any]]) -> dict[int, Bar[Any]]:
    """The BAR each index belongs to: a 64-bit BAR has two."""
    return {index + half: bar for index, bar in bars.items() for half in range(bar.width // 32)}


def place_msix(msix: MsiX, bars: Mapping[int, Bar[Any]]) -> MsiXPlacement:
    """Finds the places of a declaration.

    Args:
        msix: the declaration.
        bars: the BARs the device class declares, by index.

    Raises:
        DefinitionError: there is no room, or an explicit place is taken, outside its BAR or in an I/O BAR.
    """
    if msix.bar is None:
        free = [index for index in range(6) if index not in occupied_indexes(bars)]
        if free:
            return _exclusive(msix, free[0], bars)
        return _anywhere(msix, bars)
    if msix.bar not in bars and msix.bar not in occupied_indexes(bars):
        return _exclusive(msix, msix.bar, bars)
    return _shared(msix, msix.bar, bars)


def _exclusive(msix: MsiX, index: int, bars: Mapping[int, Bar[Any]]) -> MsiXPlacement:
    """A BAR of its own, the table in the lower half and the pending bits in the upper one."""
    table = msix.table_offset or 0
    end = table + msix.table_size
    shares_bar = msix.pba_bar in (None, index)
    pba = end if msix.pba_offset is None else msix.pba_offset
    half = max(_PAGE // 2, 1 << (max(end, 1) - 1).bit_length())
    if shares_bar and msix.pba_offset is None:
        pba = half
    needed = max(end, pba + msix.pba_size if shares_bar else 0, 2 * half if shares_bar else _PAGE)
    bar: MemoryBar[MemoryRegion] = MemoryBar(1 << (needed - 1).bit_length())
    bar.name, bar.location = f"bar{index}", msix.location
    made = {index: bar}
    if shares_bar:
        _refuse_overlaps(msix, [_stretch(msix, index, table), _stretch(msix, index, pba, pba=True)], {**bars, **made})
        return MsiXPlacement((index, table), (index, pba), made)
    assert msix.pba_bar is not None
    pba = _free_offset(msix, msix.pba_bar, msix.pba_size, msix.pba_offset, 0, {**bars, **made})
    stretches = [_stretch(msix, index, table), _stretch(msix, msix.pba_bar, pba, pba=True)]
    _refuse_overlaps(msix, stretches, {**bars, **made})
    return MsiXPlacement((index, table), (msix.pba_bar, pba), made)


def _anywhere(msix: MsiX, bars: Mapping[int, Bar[Any]]) -> MsiXPlacement:
    """Every index is taken: behind the registers of the first BAR that has room."""
    for index, bar in sorted(bars.items()):
        if bar.registers is not None and not bar.is_io:
            try:
                return _shared(msix, index, bars)
            except DefinitionError:
                continue
    raise DefinitionError(
        f"{msix.label}: all six BARs are taken, and none has {msix.table_size + msix.pba_size} bytes free behind its "
        "registers; make one of them larger, or say bar= and table_offset="
    )


def _shared(msix: MsiX, index: int, bars: Mapping[int, Bar[Any]]) -> MsiXPlacement:
    table = _free_offset(msix, index, msix.table_size, msix.table_offset, 0, bars)
    pba_bar = index if msix.pba_bar is None else msix.pba_bar
    after = table + msix.table_size if pba_bar == index else 0
    pba = _free_offset(msix, pba_bar, msix.pba_size, msix.pba_offset, after, bars)
    _refuse_overlaps(msix, [_stretch(msix, index, table), _stretch(msix, pba_bar, pba, pba=True)], bars)
    return MsiXPlacement((index, table), (pba_bar, pba), {})


def _free_offset(
    msix: MsiX, index: int, size: int, wanted: int | None, after: int, bars: Mapping[int, Bar[Any]]
) -> int:
    """The offset asked for, or the first one behind the registers and ``after``: on a page of its own if it fits."""
    bar = bars.get(index)
    if bar is None:
        there = ", ".join(f"bar{at}" for at in sorted(bars)) or "none"
        raise DefinitionError(f"{msix.label}: bar {index} is not declared; there are: {there}")
    if bar.is_io:
        raise DefinitionError(f"{msix.label}: bar {index} is an I/O BAR ({bar.location}); MSI-X lies in memory")
    if wanted is not None:
        return wanted
    if bar.registers is None:
        raise DefinitionError(
            f"{msix.label}: what of bar {index} ({bar.location}) is free cannot be known without registers=; "
            "say table_offset= and pba_offset=, or leave bar= out to get a BAR for MSI-X alone"
        )
    used = max(bar.registers.size, after)
    for alignment in (_PAGE, 16):
        offset = -(-used // alignment) * alignment
        # Room for both structures must be left, or the table would take the only page.
        rest = msix.pba_size if not after else 0
        if offset + size + rest <= bar.size:
            return offset
    raise DefinitionError(
        f"{msix.label}: bar {index} of {bar.size:#x} bytes ({bar.location}) has no {size} bytes free behind its "
        f"{used:#x} used ones; make it larger, or leave bar= out to get a BAR for MSI-X alone"
    )


def _stretch(msix: MsiX, bar: int, offset: int, *, pba: bool = False) -> _Stretch:
    if pba:
        return _Stretch("pending bits", bar, offset, msix.pba_size)
    return _Stretch("table", bar, offset, msix.table_size)


def _refuse_overlaps(msix: MsiX, stretches: list[_Stretch], bars: Mapping[int, Bar[Any]]) -> None:
    table, pba = stretches
    if table.bar == pba.bar and table.offset < pba.offset + pba.size and pba.offset < table.offset + table.size:
        raise DefinitionError(
            f"{msix.label}: the pending bits at {pba.offset:#x} lie in the table, [{table.offset:#x}, "
            f"{table.offset + table.size:#x}) of bar {table.bar}; move one, or leave the offsets out"
        )
    for what, index, offset, size in stretches:
        bar = bars[index]
        if offset + size > bar.size:
            raise DefinitionError(
                f"{msix.label}: the {what} [{offset:#x}, {offset + size:#x}) leaves bar {index} of {bar.size:#x} bytes "
                f"({bar.location})"
            )
        if bar.registers is not None:
            for item, _ in bar.registers.layout.find(offset, size):
                raise DefinitionError(
                    f"{msix.label}: the {what} [{offset:#x}, {offset + size:#x}) of bar {index} overlaps "
                    f"register {item}"
                )

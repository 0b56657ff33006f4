"""Where capabilities go: explicit offsets first, the others into the first gap that takes them, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vfio_user.errors import DefinitionError

__all__ = ["PlacementRequest", "place"]


@dataclass(frozen=True, kw_only=True)
class PlacementRequest:
    """One thing to be placed.

    Attributes:
        label: how errors call it: its name and the line it was declared in.
        size: bytes.
        at: the offset it must have; None takes any.
    """

    label: str
    size: int
    at: int | None = None


def place(requests: Sequence[PlacementRequest], *, start: int, end: int, what: str) -> list[int]:
    """Gives each request an offset in ``[start, end)``, a multiple of four.

    Args:
        requests: in order of declaration.
        start: first usable byte, a multiple of four.
        end: first byte beyond.
        what: what the area is called in errors.

    Returns:
        The offset of each request, in the order given.

    Raises:
        DefinitionError: an explicit offset is unaligned or outside, two overlap, or there is no room left.
    """
    taken: list[tuple[int, int, PlacementRequest]] = []
    for request in requests:
        if request.at is None:
            continue
        low, high = request.at, request.at + request.size
        if low % 4 or low < start or high > end:
            raise DefinitionError(
                f"{request.label}: at={low:#x} puts {request.size} bytes at [{low:#x}, {high:#x}), but the {what} is "
                f"[{start:#x}, {end:#x}) in steps of 4; leave at= out to have it placed"
            )
        for other_low, other_high, other in taken:
            if low < other_high and other_low < high:
                raise DefinitionError(
                    f"{request.label} at [{low:#x}, {high:#x}) overlaps {other.label} at [{other_low:#x}, "
                    f"{other_high:#x}); move one of them, or leave at= out to have it placed"
                )
        taken.append((low, high, request))
    taken.sort(key=lambda item: item[0])

    offsets: list[int] = []
    for request in requests:
        if request.at is not None:
            offsets.append(request.at)
            continue
        at = _first_gap(taken, request.size, start)
        if at + request.size > end:
            names = ", ".join(other.label for _, _, other in taken)
            raise DefinitionError(
                f"{request.label}: no {request.size} free bytes in the {what} [{start:#x}, {end:#x}), taken by "
                f"{names}; drop a capability, or place the explicit ones closer together"
            )
        taken.append((at, at + -(-request.size // 4) * 4, request))
        taken.sort(key=lambda item: item[0])
        offsets.append(at)
    return offsets


def _first_gap(taken: Sequence[tuple[int, int, PlacementRequest]], size: int, start: int) -> int:
    """The first multiple of four from ``start`` on with ``size`` bytes free; ``taken`` is sorted."""
    at = start
    for low, high, _ in taken:
        if at + size <= low:
            break
        at = max(at, -(-high // 4) * 4)
    return at

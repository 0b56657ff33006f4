"""What every message about a declaration needs: where it stands, and the nearest name to a wrong one."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Location", "here", "nearest", "public_name"]


class Location(NamedTuple):
    """A line of somebody's source; prints as ``file:line``."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def here(depth: int = 1) -> Location:
    """The line of the caller's caller (``depth`` 1), for messages only: nothing is decided by it."""
    frame = sys._getframe(depth + 1)  # the documented traceback/inspect way costs 30 times as much, per register
    return Location(frame.f_code.co_filename, frame.f_lineno)


def nearest(wrong: str, names: Iterable[str], *, alike: float = 0.6) -> str:
    """The end of a sentence: what the reader probably meant, or what there is to choose from."""
    import difflib  # for messages alone

    choices = sorted(names)
    matches = difflib.get_close_matches(wrong, choices, n=1, cutoff=alike)
    if matches:
        return f"did you mean {matches[0]!r}?"
    if not choices:
        return "there are none"
    shown = ", ".join(choices[:12])
    return f"there are: {shown}" + (f" and {len(choices) - 12} more" if len(choices) > 12 else "")


def public_name(attribute: str) -> str:
    """The name of a register whose attribute is ``attribute``: a trailing underscore only avoids a taken name."""
    return attribute.rstrip("_")

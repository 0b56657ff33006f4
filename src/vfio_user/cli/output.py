"""How the commands write: plain text of at most 80 columns, and a little emphasis where a terminal shows it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

__all__ = ["WIDTH", "Style", "columns", "complain", "wrap"]

#: Columns of a line, whatever the terminal has: output is pasted into mails and bug reports.
WIDTH = 80


def complain(text: str) -> None:
    """Writes an error, or another line about the run itself, to standard error."""
    print(f"vfio-user: {text}", file=sys.stderr, flush=True)


class Style:
    """Emphasis for a stream: escape sequences on a terminal, nothing anywhere else or with NO_COLOR.

    Args:
        stream: what the text is for; standard output when left out.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        target = stream or sys.stdout
        # https://no-color.org: set and not empty means no colour. A closed standard output is None.
        self.enabled = target is not None and target.isatty() and not os.environ.get("NO_COLOR")

    def bold(self, text: str) -> str:
        """Headings and names."""
        return self._wrapped(text, "1")

    def dim(self, text: str) -> str:
        """What may be skipped."""
        return self._wrapped(text, "2")

    def good(self, text: str) -> str:
        """As it should be."""
        return self._wrapped(text, "32")

    def doubtful(self, text: str) -> str:
        """Could be better."""
        return self._wrapped(text, "33")

    def bad(self, text: str) -> str:
        """Must be mended."""
        return self._wrapped(text, "31")

    def _wrapped(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.enabled else text


def wrap(text: str, indent: str = "", *, first: str | None = None) -> str:
    """Folds text into lines of at most WIDTH columns.

    Args:
        text: one paragraph.
        indent: before each line.
        first: before the first line instead.
    """
    import textwrap

    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Lines of a table: each column as wide as its widest cell, two blanks between, none at the end of a line."""
    if not rows:
        return []
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    return [
        (indent + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]

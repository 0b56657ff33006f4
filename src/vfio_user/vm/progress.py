"""Says what a long preparation is doing: one line a step, with what, how much and how long.

On a terminal the line appears when the step begins and is completed when it ends; anywhere else it is written once,
whole, so that a log stays readable.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["Progress", "Step", "format_bytes"]


def format_bytes(size: int) -> str:
    """Writes a number of bytes the way people say it: ``27 MB``, ``1.3 GB`` (decimal units)."""
    amount = float(size)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


class Step:
    """One step under way. Set ``detail`` to what came of it: it ends up on the step's line."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.detail = ""


class Progress:
    """Writes the steps of a preparation to a stream.

    Args:
        stream: where to; None keeps silent. Standard error when left out.
    """

    def __init__(self, stream: TextIO | None = sys.stderr) -> None:
        self._stream = stream
        self._is_terminal = stream is not None and stream.isatty()
        # https://no-color.org: set and not empty means no colour, whatever the terminal can do.
        self._has_colour = self._is_terminal and not os.environ.get("NO_COLOR")

    @classmethod
    def silent(cls) -> Progress:
        """A progress that writes nothing."""
        return cls(None)

    def note(self, text: str) -> None:
        """Writes one line that is not a step."""
        if self._stream is not None:
            print(f"vfio-user: {text}", file=self._stream, flush=True)

    @contextmanager
    def step(self, what: str) -> Iterator[Step]:
        """Surrounds one step; a step that raises is reported as failed, and the exception goes on."""
        step = Step(what)
        started = time.monotonic()
        if self._is_terminal:
            assert self._stream is not None
            print(f"vfio-user: {what} ...", end="", file=self._stream, flush=True)
        try:
            yield step
        except BaseException:
            self._finish(step, "failed", time.monotonic() - started)
            raise
        self._finish(step, step.detail, time.monotonic() - started)

    def _finish(self, step: Step, outcome: str, seconds: float) -> None:
        if self._stream is None:
            return
        took = f"{seconds:.1f} s"
        if self._has_colour:
            took = f"\x1b[2m{took}\x1b[0m"
        line = f"vfio-user: {step.what}: {outcome + ', ' if outcome else ''}{took}"
        # The carriage return goes back over the "..." of the beginning, and CSI K clears what is left of it.
        print(f"\r{line}\x1b[K" if self._is_terminal else line, file=self._stream, flush=True)

"""What a bench reports: figures with their targets, as lines to read and as JSON to keep."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["Figure", "environment", "format_table", "write_json"]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: what was measured.
        value: the figure.
        unit: of it: "us", "ms", "MiB", or "x" for a ratio.
        target: what it should be at most; None where there is only something to know.
        note: more to know, for people.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.value <= self.target

    def cells(self) -> tuple[str, str, str, str, str]:
        """The columns of its line."""
        target = "" if self.target is None else f"at most {_format(self.target, self.unit)}"
        verdict = {None: "", True: "met", False: "NOT MET"}[self.is_met]
        return self.name, _format(self.value, self.unit), target, verdict, self.note


def _format(value: float, unit: str) -> str:
    return f"{value:.2f}x" if unit == "x" else f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def format_table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset({1})) -> str:
    """Lines of aligned columns.

    Args:
        rows: cells, as many in each row.
        right: the columns whose cells are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def environment() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }


def write_json(path: Path, figures: Sequence[Figure], measurements: dict[str, object]) -> None:
    """Writes everything to a file; its folder is made.

    Args:
        path: the file.
        figures: what was reported.
        measurements: what they were computed from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "environment": environment(),
        "figures": [asdict(figure) | {"is_met": figure.is_met} for figure in figures],
        "measurements": measurements,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")

"""The examples of a page of documentation: found, and run as a reader would type them."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.source import ROOT

DOCS = ROOT / "docs"

_EXAMPLE = re.compile(r"^```(python|sh|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_FILE_NAME = re.compile(r"# (\w+\.\w+)\n")


@dataclass(frozen=True)
class Example:
    """One block of code.

    Attributes:
        page: the file it stands in.
        line: the number of lines before it.
        section: the heading above it; "" before the first.
        code: its text.
    """

    page: Path
    line: int
    section: str
    code: str

    @property
    def file_name(self) -> str | None:
        """The file a reader is to put it into, which its first line names."""
        match = _FILE_NAME.match(self.code)
        return match[1] if match else None

    def run(self, namespace: dict[str, Any]) -> None:
        """Runs it; tracebacks show the lines of the page."""
        linecache.checkcache(str(self.page))
        exec(compile("\n" * self.line + self.code, str(self.page), "exec", dont_inherit=True), namespace)


def examples(page: Path, language: str = "python") -> Iterator[Example]:
    """The examples of a page in one language (python, sh, console), in order."""
    text = page.read_text()
    headings = [(match.start(), match[1]) for match in _HEADING.finditer(text)]
    for match in _EXAMPLE.finditer(text):
        section = next((name for start, name in reversed(headings) if start < match.start()), "")
        if match[1] == language:
            yield Example(page, text.count("\n", 0, match.start(2)), section, match[2])


def run_all(found: Iterable[Example]) -> dict[str, Any]:
    """Runs examples one after the other in one namespace, and returns it."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for example in found:
        example.run(namespace)
    return namespace

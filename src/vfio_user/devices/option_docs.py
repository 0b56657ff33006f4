"""What a class says of its constructor's parameters: the ``Args`` of its docstring, in Google's style.

Options are documented where they are declared, and nowhere else; the command line shows what is read here.
"""

from __future__ import annotations

import inspect
import re

__all__ = ["described_arguments"]

_ENTRY = re.compile(r"(\w+)(?: \(.*?\))?: *(.*)")


def described_arguments(cls: type) -> dict[str, str]:
    """One line of plain text for each parameter the class's own docstring describes.

    Args:
        cls: a class whose docstring, or whose constructor's, has a section ``Args:``. Those of base classes are not
            looked at.

    Returns:
        Texts by parameter, without the marks of code; empty where the docstring says nothing.
    """
    constructor = cls.__dict__.get("__init__")
    for doc in (cls.__dict__.get("__doc__"), getattr(constructor, "__doc__", None)):
        described = _section(doc or "")
        if described:
            return described
    return {}


def _section(doc: str) -> dict[str, str]:
    lines = iter(inspect.cleandoc(doc).splitlines())
    for line in lines:
        if line.strip() in ("Args:", "Arguments:"):
            break
    described: dict[str, str] = {}
    name, margin = "", 0
    for line in lines:
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if not text:
            continue
        if not indent:  # the next section
            break
        margin = margin or indent
        entry = _ENTRY.fullmatch(text) if indent == margin else None
        if entry is not None:
            name, text = entry.groups()
        described[name] = f"{described.get(name, '')} {text.replace('``', '')}".strip()
    return described

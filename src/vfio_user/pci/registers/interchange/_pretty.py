"""Python expressions as text, laid out as formatters do it: on one line, on one line inside, or one line a part."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["WIDTH", "Call", "Expression", "docstring", "render", "string"]

#: Columns of a line.
WIDTH = 120

_INDENT = "    "


@dataclass(frozen=True)
class Call:
    """Something with parts between brackets.

    Attributes:
        opening: what stands before the parts, its bracket included: ``Register(``, or ``fields=[``.
        parts: separated by commas.
        closing: the bracket after them.
    """

    opening: str
    parts: Sequence[Expression]
    closing: str = ")"

    def __str__(self) -> str:
        return f"{self.opening}{', '.join(map(str, self.parts))}{self.closing}"


Expression = Call | str


def render(expression: Expression, indent: str, before: str = "", after: str = "") -> list[str]:
    """The lines of an expression.

    Args:
        expression: what to write.
        indent: of its first line.
        before: stands before it on its first line: ``name = ``.
        after: stands after it on its last: a comma.
    """
    flat = f"{indent}{before}{expression}{after}"
    if len(flat) <= WIDTH or isinstance(expression, str):
        return [flat]
    inside = indent + _INDENT
    hugged = f"{inside}{', '.join(map(str, expression.parts))}"
    first, last = f"{indent}{before}{expression.opening}", f"{indent}{expression.closing}{after}"
    if expression.closing == ")" and len(hugged) <= WIDTH:
        return [first, hugged, last]
    comma = "" if isinstance(expression, _Joined) else ","
    return [first, *(line for part in expression.parts for line in render(part, inside, after=comma)), last]


def string(text: str, before: str = "") -> Expression:
    """A string literal; a long one is several, between brackets.

    Args:
        text: what it says.
        before: stands before it: ``doc=``.
    """
    room = 80
    if len(text) <= room:
        return before + _literal(text)
    lines = textwrap.wrap(text, room, drop_whitespace=False, replace_whitespace=False, break_on_hyphens=False)
    return _Joined(f"{before}(", [_literal(line) for line in lines])


class _Joined(Call):
    """Literals side by side, which Python joins."""

    def __str__(self) -> str:
        # Never on one line: it was cut because it is too long for that.
        return f"{self.opening}{' ' * WIDTH}{self.closing}"


def _literal(text: str) -> str:
    """A string literal with as few backslashes as can be."""
    quoted = json.dumps(text, ensure_ascii=False)  # JSON's escapes are Python's
    if text.count('"') > text.count("'"):
        inside = quoted[1:-1].replace('\\"', '"').replace("'", "\\'")
        return f"'{inside}'"
    return quoted


def docstring(text: str, indent: str) -> list[str]:
    """A docstring, its paragraphs folded."""
    quotes = '"""'
    if "\\" in text and quotes not in text and not text.rstrip().endswith("\\"):
        quotes = 'r"""'
    else:
        text = text.replace("\\", "\\\\").replace(quotes, '\\"\\"\\"')
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    ends_in_quote = paragraphs[-1].endswith('"')  # which is not to meet the closing ones
    if len(paragraphs) == 1 and not ends_in_quote and len(indent) + len(quotes) + len(paragraphs[0]) + 3 <= WIDTH:
        return [f'{indent}{quotes}{paragraphs[0]}"""']
    lines: list[str] = []
    for paragraph in paragraphs:
        room = WIDTH - len(indent) - (0 if lines else len(quotes))
        lines += [*([""] if lines else []), *textwrap.wrap(paragraph, room, break_on_hyphens=False)]
    lines[0] = f"{quotes}{lines[0]}"
    return [f"{indent}{line}".rstrip() for line in [*lines, '"""']]

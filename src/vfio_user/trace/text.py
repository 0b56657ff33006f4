"""How a trace writes numbers, flags, ranges and whatever else came from the peer."""

from __future__ import annotations

from enum import IntFlag

__all__ = ["Described", "Fields", "elide", "escape", "flag_names", "hex_lines", "show_data", "span"]

#: Name and value of each field.
Fields = list[tuple[str, str]]

#: A phrase for the line, and the fields.
Described = tuple[str, Fields]

#: Bytes of data a line shows; the rest is counted.
_SHOWN_BYTES = 16


def escape(text: str) -> str:
    """Makes a peer's text harmless on a terminal: whatever does not print is written as an escape sequence.

    That covers control characters, those that turn the direction of writing, and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def elide(text: str, limit: int) -> str:
    """The first ``limit`` characters, and a sign that there were more."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def flag_names(flags: IntFlag) -> str:
    """``READ|WRITE``; bits without a name as a number, none at all as ``0``."""
    names = [member.name for member in type(flags) if member.name is not None and member & flags == member != 0]
    known = 0
    for member in type(flags):
        known |= int(member)
    unknown = int(flags) & ~known
    if unknown or not names:
        names.append(hex(unknown) if unknown else "0")
    return "|".join(names)


def span(start: int, size: int) -> str:
    """A half-open range: ``[0x1000, 0x2000)``."""
    return f"[{start:#x}, {start + size:#x})"


def show_data(data: bytes) -> str:
    """Data of an access: a number where it has the size of one, else its first bytes."""
    if len(data) in (1, 2, 4, 8):
        return f"{int.from_bytes(data, 'little'):#x}"
    shown = data[:_SHOWN_BYTES].hex(" ") or "nothing"
    return shown if len(data) <= _SHOWN_BYTES else f"{shown} ... ({len(data)} bytes)"


def hex_lines(data: bytes, limit: int = 256) -> list[str]:
    """A dump, sixteen bytes a line with their offset and their text; at most ``limit`` bytes of it."""
    lines = []
    for at in range(0, min(len(data), limit), 16):
        row = data[at : at + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{at:04x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  {text}")
    if len(data) > limit:
        lines.append(f"...   {len(data) - limit} bytes more")
    return lines

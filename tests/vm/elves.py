"""Makes small ELF files for tests, with just the parts that are asked for."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_BASE = 0x400000


def elf_file(
    *,
    interpreter: str | None = None,
    needed: Sequence[str] = (),
    notes: Sequence[tuple[bytes, int, bytes]] = (),
    padding: int = 0,
) -> bytes:
    """A 64-bit little-endian ELF file whose segments hold what is given; notes are (name, type, value)."""
    names = b"\0"
    dynamic = b""
    for name in needed:
        dynamic += struct.pack("<QQ", 1, len(names))
        names += name.encode() + b"\0"
    note_bytes = b""
    for owner, kind, value in notes:
        note_bytes += struct.pack("<III", len(owner), len(value), kind)
        note_bytes += owner + bytes(-len(owner) % 4) + value + bytes(-len(value) % 4)
    contents: list[tuple[int, bytes]] = []
    if interpreter is not None:
        contents.append((3, interpreter.encode() + b"\0"))
    if note_bytes:
        contents.append((4, note_bytes))
    count = len(contents) + (1 if needed else 0) + 1
    offset = 64 + 56 * count
    headers = b""
    body = b""
    if needed:
        # The address of the string table comes before anything knows it: it follows the dynamic entries.
        strings_at = offset + len(dynamic) + 32
        dynamic += struct.pack("<QQQQ", 5, _BASE + strings_at, 0, 0)
        contents.insert(0, (2, dynamic))
        body_after = names
    else:
        body_after = b""
    for index, (kind, content) in enumerate(contents):
        at = offset + len(body)
        headers += struct.pack("<IIQQQQQQ", kind, 4, at, _BASE + at, 0, len(content), len(content), 4)
        body += content + (body_after if index == 0 else b"")
        body += bytes(-(offset + len(body)) % 4)
    total = offset + len(body) + padding
    headers += struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, 0, total, total, 4096)
    start = b"\x7fELF\x02\x01\x01" + bytes(9)
    start += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return start + headers + body + bytes(padding)

"""Makes the smallest disc with one file on it."""

from __future__ import annotations

import struct

__all__ = ["make_iso9660"]

_BLOCK = 2048
_ROOT, _FILE = 20, 21


def _both(value: int, kind: str) -> bytes:
    """Least significant byte first, then the other way round. Spec: ECMA-119 7.2.3, 7.3.3."""
    return struct.pack("<" + kind, value) + struct.pack(">" + kind, value)


def _record(name: bytes, block: int, size: int, *, is_folder: bool) -> bytes:
    """A directory record. Spec: ECMA-119 9.1."""
    body = b"\0" + _both(block, "I") + _both(size, "I") + bytes((126, 1, 1, 0, 0, 0, 0))
    body += bytes((2 if is_folder else 0, 0, 0)) + _both(1, "H") + bytes([len(name)]) + name
    body += b"\0" * (len(body) + 1 & 1)
    return bytes([len(body) + 1]) + body


def make_iso9660(name: str, content: bytes) -> bytes:
    """A disc with one file, of a name in capitals: ``NAME.TXT``. Spec: ECMA-119."""
    blocks = -(-len(content) // _BLOCK)
    total = _FILE + blocks
    root = _record(b"\0", _ROOT, _BLOCK, is_folder=True)
    folder = root + _record(b"\1", _ROOT, _BLOCK, is_folder=True)
    folder += _record(f"{name};1".encode(), _FILE, len(content), is_folder=False)
    tables = [struct.pack(order + "BBIHBB", 1, 0, _ROOT, 1, 0, 0) for order in "<>"]
    volume = b"\1CD001\1\0" + b" " * 32 + b"DISC".ljust(32) + bytes(8) + _both(total, "I") + bytes(32)
    volume += _both(1, "H") + _both(1, "H") + _both(_BLOCK, "H") + _both(len(tables[0]), "I")
    volume += struct.pack("<II", 18, 0) + struct.pack(">II", 19, 0) + root
    volume += b" " * (128 * 4 + 37 * 3) + (b"0" * 16 + b"\0") * 4 + b"\1\0"
    parts = [bytes(16 * _BLOCK), volume, b"\xffCD001\1", *tables, folder, content]
    return parts[0] + b"".join(part.ljust(-(-len(part) // _BLOCK) * _BLOCK, b"\0") for part in parts[1:])

"""Entries of rings as NumPy arrays: many of a kind, checked and carried out together.

Needs NumPy (``pip install vfio-user[vector]``); nothing else of ``vfio_user.rings`` does.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["entry_type"]

#: The array types of struct's format characters.
_TYPES = {"B": "u1", "H": "<u2", "I": "<u4", "Q": "<u8"}


def entry_type(
    layout: struct.Struct, names: Sequence[str], wider: Mapping[str, tuple[str, str]] | None = None
) -> np.dtype[Any]:
    """The array type of entries that are described as a ``struct`` already.

    Args:
        layout: little-endian ("<"), of unsigned integers alone.
        names: of the fields, in order.
        wider: further fields, over others: by name, the first field each lies over and its format character.

    Raises:
        ValueError: the layout has other things than that, or not as many fields as there are names.
    """
    match = re.fullmatch(r"<((?:\d*[BHIQ])*)", layout.format)
    if match is None:
        raise ValueError(f"{layout.format!r} is no layout of little-endian unsigned integers: '<' and B, H, I, Q only")
    types = [_TYPES[kind] for times, kind in re.findall(r"(\d*)(\w)", match[1]) for _ in range(int(times or 1))]
    if len(types) != len(names):
        raise ValueError(f"{layout.format!r} has {len(types)} fields, and {len(names)} names were given")
    offsets, offset = {}, 0
    for name, kind in zip(names, types, strict=True):
        offsets[name] = offset
        offset += np.dtype(kind).itemsize
    extra = {name: (offsets[first], _TYPES[kind]) for name, (first, kind) in (wider or {}).items()}
    return np.dtype(
        {
            "names": [*names, *extra],
            "formats": [*types, *(kind for _, kind in extra.values())],
            "offsets": [*offsets.values(), *(start for start, _ in extra.values())],
            "itemsize": layout.size,
        }
    )

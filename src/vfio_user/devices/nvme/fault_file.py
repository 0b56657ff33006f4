"""A file of faults, for ``--set faults=faults.toml``.

::

    [[fault]]
    kind = "status"
    command = "read"  # admin commands as "admin.identify"
    lbas = [100, 108]  # from 100 up to, but not including, 108
    status = "unrecovered_read_error"
    every = 3

Keys are the attributes of ``Fault``. Errors name the file, the line, the key and its value, the rule, and the way out.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from vfio_user.devices.nvme.faults import Fault, FaultKind
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode
from vfio_user.hardware.nvme.status import Status

__all__ = ["load_faults"]

_HEADER = re.compile(r"\s*\[\[\s*fault\s*\]\]")

#: The keys there are, and what their values are.
_KEYS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "command": (str,),
    "nsid": (int,),
    "queue": (int,),
    "lbas": (list,),
    "nth": (int,),
    "every": (int,),
    "probability": (int, float),
    "seed": (int,),
    "times": (int,),
    "status": (str, int),
    "retry": (bool,),
    "seconds": (int, float),
    "blocks": (int,),
    "to": (int,),
}
_CALLED = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}


def load_faults(path: str | Path) -> list[Fault]:
    """The faults of a file, in its order.

    Raises:
        ValueError: the file is not as the module says.
        OSError: it cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"{path}: this is no TOML: {exc}") from None
    lines = text.splitlines()
    for key in document:
        if key != "fault":
            raise ValueError(f"{path}:{_line(lines, 0, key)}: {key}: the file has [[fault]] tables, and nothing else")
    tables = document.get("fault", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}:{_line(lines, 0, 'fault')}: fault: begin each fault with [[fault]], in two brackets")
    starts = [number for number, line in enumerate(lines) if _HEADER.match(line)] or [0]
    faults = []
    for number, table in enumerate(tables):
        start = starts[min(number, len(starts) - 1)]
        values: dict[str, Any] = {}
        key = "kind"
        try:
            for key, value in table.items():
                values[key] = _value(key, value)
            key = "kind"
            if "kind" not in values:
                raise ValueError(f"missing: it is one of {_names(kind.value for kind in FaultKind)}")
        except ValueError as exc:
            raise ValueError(f"{path}:{_line(lines, start, key)}: {key}: {exc}") from None
        try:
            faults.append(Fault(**values))
        except ValueError as exc:
            key = str(exc).partition("=")[0]
            raise ValueError(f"{path}:{_line(lines, start, key)}: {exc}") from None
    return faults


def _value(key: str, given: object) -> Any:
    types = _KEYS.get(key)
    if types is None:
        raise ValueError(f"there is no such key: a fault has {_names(_KEYS)}")
    if not isinstance(given, types) or (isinstance(given, bool) and bool not in types):
        raise ValueError(f"{given!r}: it is {' or '.join(_CALLED[kind] for kind in types)}")
    value: Any = given
    if key == "kind":
        try:
            return FaultKind(value)
        except ValueError:
            raise ValueError(f"{value!r}: it is one of {_names(kind.value for kind in FaultKind)}") from None
    if key == "command":
        family, opcodes = (AdminOpcode, value[6:]) if value.startswith("admin.") else (NvmOpcode, value)
        try:
            return family[opcodes.upper()]
        except KeyError:
            raise ValueError(
                f"{value!r}: it is one of {_names(code.name.lower() for code in NvmOpcode)}, or of "
                f"{_names('admin.' + code.name.lower() for code in AdminOpcode)}"
            ) from None
    if key == "status":
        try:
            return Status(value) if isinstance(value, int) else Status[value.upper()]
        except (KeyError, ValueError):
            raise ValueError(
                f"{value!r}: there is no such status; names are those of the specification with underscores, like "
                '"unrecovered_read_error", numbers are type << 8 | code'
            ) from None
    if key == "lbas":
        if len(value) != 2 or not all(isinstance(block, int) for block in value):
            raise ValueError(f"{value!r}: it is [first, end], the block the range begins with and the one behind it")
        return range(*value)
    return value


def _names(names: Any) -> str:
    return ", ".join(names)


def _line(lines: list[str], start: int, key: str) -> int:
    """The number of the line a key is in, of the table that begins at ``start``; the table's where it is in none."""
    pattern = re.compile(rf"\s*\[?\[?\s*[\"']?{re.escape(key)}[\"']?\s*[\]=.]")
    for number in range(start, len(lines)):
        if number > start and _HEADER.match(lines[number]):
            break
        if pattern.match(lines[number]):
            return number + 1
    return start + 1

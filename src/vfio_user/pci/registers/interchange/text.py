"""A register map for a terminal, in 80 columns, and as JSON for programs: both say everything a description has."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from vfio_user.pci.registers.block import RegisterBlock
from vfio_user.pci.registers.description import RegisterDescription
from vfio_user.pci.registers.fields import Field
from vfio_user.pci.registers.interchange.notes import Exported
from vfio_user.pci.registers.interchange.remarks import field_remarks, hooks_of, paragraphs, register_remarks
from vfio_user.pci.registers.policies import Access

__all__ = ["to_json", "to_text"]

_WIDTH = 80

#: Longer policies are spelt out below their register.
_ACCESS_WIDTH = 10


@dataclass(frozen=True)
class _Row:
    """One register or field: the cells of its line, and what is written below it."""

    cells: tuple[str, str, str, str]
    name: str
    remarks: tuple[str, ...]


_HEADING = _Row(("offset", "bits", "access", "reset"), "register", ())


def to_text(block: type[RegisterBlock], *, base: int = 0, title: str = "") -> Exported:
    """Writes a table of at most 80 columns: each register with its fields below it.

    Args:
        block: the class.
        base: added to each offset, bytes: where the block stands in something larger.
        title: what the first line begins with; the name of the class when not given.
    """
    rows = [_HEADING, *(row for item in block.describe() for row in _rows(block, item, base))]
    widths = [max(len(row.cells[column]) for row in rows) for column in range(4)]
    lines = _folded(f"{title or block.__name__}: {(paragraphs(block) or ['registers'])[0]}", "")
    lines += [f"{block.size:#x} bytes, {block.byteorder}-endian.", ""]
    for row in rows:
        lines += _lines(row, widths)
    return Exported("\n".join(lines) + "\n", ())


def _rows(block: type[RegisterBlock], item: RegisterDescription, base: int) -> Iterator[_Row]:
    register = item.register
    remarks = register_remarks(item)
    if item.dimensions:
        steps = "".join(f" + {stride:#x} * {index}" for (_, stride), index in zip(item.dimensions, "ijk", strict=False))
        remarks.append(f"at {base + item.offset:#x}{steps}")
    remarks += [f"{hook.kind.value}: {hook.name}" for hook in hooks_of(block, item)]
    access = register.access_names
    if len(access) > _ACCESS_WIDTH:
        if not register.fields:
            remarks.append(access)
        access = "by field" if len(register.fields) > 1 else "special"
    cells = (f"{base + item.offset:#06x}", str(register.width), access, f"{register.reset:#x}")
    yield _Row(cells, item.name, tuple(remarks))
    if item.alias_of:
        return
    for field in register.bits:
        yield _field_row(field, field.access or register.access, register.reset)


def _field_row(field: Field, access: Access, reset: int) -> _Row:
    remarks = field_remarks(field)
    name = str(access)
    if len(name) > _ACCESS_WIDTH:
        remarks.append(name)
        name = "special"
    return _Row(("", field.bits, name, f"{(reset & field.mask) >> field.lsb:#x}"), f"  {field.name}", tuple(remarks))


def _lines(row: _Row, widths: list[int]) -> Iterator[str]:
    cells = "".join(f"{cell:<{width}}  " for cell, width in zip(row.cells, widths, strict=True))
    remarks = "; ".join(row.remarks)
    line = cells + row.name
    if remarks and len(line) + 2 + len(remarks) <= _WIDTH:
        yield f"{line}  {remarks}"
        return
    if len(line) <= _WIDTH:
        yield line
    else:
        yield cells.rstrip()
        yield f"    {row.name}"
    column = len(cells) if len(cells) <= _WIDTH // 2 else 12
    yield from _folded(remarks, " " * (column + (4 if row.name.startswith(" ") else 2)))


def _folded(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def to_json(block: type[RegisterBlock]) -> Exported:
    """Writes JSON: an object with the registers, offsets and values as numbers."""
    about = {
        "name": block.__name__,
        "doc": " ".join(paragraphs(block)),
        "size": block.size,
        "byteorder": block.byteorder,
        "registers": [_register(block, item) for item in block.describe()],
    }
    return Exported(json.dumps(about, indent=2) + "\n", ())


def _register(block: type[RegisterBlock], item: RegisterDescription) -> dict[str, object]:
    register = item.register
    return {
        "name": item.name,
        "offset": item.offset,
        "width": register.width,
        "access": _access(register.access),
        "reset": {kind.value: value for kind, (_, value) in register.resets.items()},
        "sticky": sorted(kind.value for kind in register.sticky),
        "arrays": [{"count": count, "stride": stride} for count, stride in item.dimensions],
        "alias_of": item.alias_of,
        "when": [{"selector": selector, "values": sorted(values)} for selector, values in item.when],
        "doc": register.doc,
        "hooks": [{"kind": hook.kind.value, "path": hook.path, "method": hook.name} for hook in hooks_of(block, item)],
        "fields": [
            {
                "name": field.name,
                "lsb": field.lsb,
                "width": field.width,
                "access": _access(field.access or register.access),
                "reset": (register.reset & field.mask) >> field.lsb,
                "sticky": sorted(kind.value for kind in field.sticky),
                "values": {str(value): meaning for value, meaning in field.values.items()},
                "doc": field.doc,
            }
            for field in register.bits
        ],
    }


def _access(access: Access) -> dict[str, str]:
    return {"name": access.name, "write": access.write.value, "read": access.read.value}

"""A C header of a register block: offsets, masks, shifts, reset values and enumerations, as macros.

Macros, not structs with bit-fields: their layout is the compiler's choice, and a driver passes offsets to readl anyway.
The header needs nothing but a C99 compiler, and may be included in assembly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vfio_user.pci.registers.block import RegisterBlock
from vfio_user.pci.registers.description import RegisterDescription
from vfio_user.pci.registers.interchange.notes import Exported, Note

__all__ = ["to_c_header"]


def to_c_header(block: type[RegisterBlock], prefix: str | None = None) -> Exported:
    """Writes a C header.

    Args:
        block: the class.
        prefix: of every macro; the name of the class when not given.

    Returns:
        The header, and notes about what macros cannot say: access policies and banks are comments in it.
    """
    start = _macro(block.__name__ if prefix is None else prefix)
    writer = _Header(start)
    title = f"{block.__name__}: {_one_line(block.__doc__ or 'registers')}"
    lines = [
        f"/* {title} */",
        f"#ifndef {start}_REGISTERS_H",
        f"#define {start}_REGISTERS_H",
        "",
        *writer.define(f"{start}_SIZE", f"{block.size:#x}", block.__name__),
    ]
    for description in block.describe():
        lines += ["", *writer.register(description)]
    lines += ["", f"#endif /* {start}_REGISTERS_H */", ""]
    return Exported("\n".join(lines), tuple(writer.notes))


class _Header:
    """The macros so far: no name is defined twice."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.names: dict[str, str] = {f"{prefix}_REGISTERS_H": "the header itself"}
        self.notes: list[Note] = []

    def define(self, macro: str, value: str, where: str) -> Iterator[str]:
        """One #define, unless the name is taken."""
        name = macro.partition("(")[0]
        if name in self.names:
            self.notes.append(Note(where, f"no macro {name}: {self.names[name]} has it already"))
            return
        self.names[name] = where
        yield f"#define {macro} {value}"

    def register(self, description: RegisterDescription) -> Iterator[str]:
        """The macros of one register, with what it is as a comment."""
        register = description.register
        where = description.name
        name = "_".join([self.prefix, *(_macro(part.name) for part in description.parts)])
        comment = [f"{where}: {register.width} bits, {register.access_names}"]
        for selector, values in description.when:
            comment.append(f"answers while {selector} = {' or '.join(map(str, sorted(values)))}")
            self.notes.append(Note(where, f"its bank ({selector}) is a comment: select it before an access"))
        if description.alias_of:
            comment.append(f"alias of {description.alias_of}")
        if description.block.byteorder == "big":
            comment.append("big-endian")
            self.notes.append(Note(where, "its byte order is a comment: swap the bytes of each access"))
        if register.doc:
            comment.append(_one_line(register.doc))
        yield f"/* {', '.join(comment)} */"
        indexes = [f"i{level}" for level in range(len(description.dimensions))]
        if indexes:
            terms = [
                f"({index}) * {stride:#x}" for index, (_, stride) in zip(indexes, description.dimensions, strict=True)
            ]
            yield from self.define(
                f"{name}({', '.join(indexes)})", f"({description.offset:#x} + {' + '.join(terms)})", where
            )
            for index, (count, _) in zip(indexes, description.dimensions, strict=True):
                suffix = "COUNT" if len(indexes) == 1 else f"COUNT_{index.upper()}"
                yield from self.define(f"{name}_{suffix}", str(count), where)
        else:
            yield from self.define(name, f"{description.offset:#x}", where)
        yield from self.define(f"{name}_RESET", _constant(register.reset, register.width), where)
        if len({value for _, value in register.resets.values()}) > 1:
            self.notes.append(Note(where, "its reset value depends on the kind of reset: the header has power-on's"))
        for field in register.bits:
            field_name = f"{name}_{_macro(field.name)}"
            doc = f" /* {_one_line(field.doc)} */" if field.doc else ""
            for line in self.define(
                f"{field_name}_MASK", _constant(field.mask, register.width), f"{where}.{field.name}"
            ):
                yield line + doc
            yield from self.define(f"{field_name}_SHIFT", str(field.lsb), f"{where}.{field.name}")
            for value, meaning in field.values.items():
                yield from self.define(
                    f"{field_name}_{_macro(meaning)}", _constant(value, register.width), f"{where}.{field.name}"
                )


def _constant(value: int, width: int) -> str:
    return f"{value:#x}" + ("ull" if width == 64 else "u")


def _macro(name: str) -> str:
    return re.sub(r"\W", "_", name).upper()


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("*/", "* /").replace("/*", "/ *")

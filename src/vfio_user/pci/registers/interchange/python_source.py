"""A block class as Python source: what was imported once becomes a module one edits from then on.

The source says what the class says, and nothing else: executed, it makes a class of the same layout. Hooks and methods
are code already, and are left to their file.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Any

from vfio_user.pci import registers as language
from vfio_user.pci.registers.block import RegisterBlock
from vfio_user.pci.registers.declaration import AccessRule, Declaration
from vfio_user.pci.registers.fields import Field
from vfio_user.pci.registers.interchange._pretty import Call, Expression, docstring, render, string
from vfio_user.pci.registers.interchange.notes import Exported, Note
from vfio_user.pci.registers.interchange.remarks import hook_notes, paragraphs
from vfio_user.pci.registers.policies import RSVDP, RW, Access, ReadEffect
from vfio_user.pci.registers.register import Register
from vfio_user.pci.registers.reset import ResetKind
from vfio_user.pci.registers.unmodelled import Unmodelled
from vfio_user.pci.registers.views import Alias, RegisterFile

__all__ = ["to_python"]

#: The policies that have a name in the language.
_NAMED = {value: name for name, value in vars(language).items() if isinstance(value, Access)}

#: What a class may say about itself, besides its size.
_RULES = (
    "byteorder",
    "access_sizes",
    "partial_access",
    "spanning_access",
    "unaligned_access",
    "unmodelled_access",
    "state_version",
)


def to_python(*blocks: type[RegisterBlock]) -> Exported:
    """Writes a Python module.

    Args:
        blocks: the classes; the blocks inside them are written too, before them.

    Returns:
        The module, and notes about what it does not say: hooks, and names that had to change.
    """
    module = _Module()
    names = [module.block(block) for block in blocks]
    return Exported(module.text(names), tuple(module.notes))


class _Module:
    """The classes written so far, and the names they use."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self._imports: set[str] = set()
        self._constants: dict[Access, str] = {}
        self._written: dict[type, str] = {}
        self._taken: set[str] = set(language.__all__) | {"enum"}
        self._lines: list[str] = []
        self._constant_lines: list[str] = []

    def text(self, names: list[str]) -> str:
        """All of it."""
        lines = [f'"""The registers of {", ".join(names)}."""', ""]
        if any(issubclass(cls, enum.IntEnum) for cls in self._written):
            lines += ["import enum", ""]
        lines += _import_lines(self._imports)
        if self._constant_lines:
            lines += ["", *self._constant_lines]
        return "\n".join([*lines, *self._lines]) + "\n"

    def block(self, cls: type[RegisterBlock]) -> str:
        """Writes a class and those it needs; returns its name."""
        if cls in self._written:
            return self._written[cls]
        body: list[str] = []
        for item in cls.layout.declarations.values():
            body += render(self._declaration(item), "    ", f"{item.attribute} = ")
        rules = [f"    {name} = {self._rule(getattr(cls, name))}" for name in _RULES if _differs(cls, name)]
        end = max((item.end for item in cls.layout.declarations.values()), default=0)
        if cls.layout.size != end:
            rules.append(f"    size = {_hex(cls.layout.size)}")
        name = self._name(cls)
        self._imports.add("RegisterBlock")
        parts = [docstring("\n\n".join(paragraphs(cls)) or f"{name}.", "    "), rules, body]
        self._lines += ["", "", f"class {name}(RegisterBlock):"]
        for number, part in enumerate(part for part in parts if part):
            self._lines += [*([""] if number else []), *part]
        self.notes += hook_notes(cls)
        return name

    def _name(self, cls: type) -> str:
        """A name for a class, which no other one has here."""
        name = wanted = cls.__name__
        number = 2
        while name in self._taken:
            name = f"{wanted}{number}"
            number += 1
        if name != wanted:
            self.notes.append(Note(cls.__qualname__, f"called {name!r}: another class has its name"))
        self._taken.add(name)
        self._written[cls] = name
        return name

    # -- declarations ----------------------------------------------------------------------------------------------

    def _declaration(self, item: Declaration) -> Expression:
        if isinstance(item, RegisterFile):
            inner = self.block(item.block)
            self._imports.add("RegisterFile")
            return Call("RegisterFile(", [inner, _hex(item.offset, 4), *self._array(item), *self._said(item)])
        if isinstance(item, Alias):
            self._imports.add("Alias")
            access = [] if item._own_access is None else [f"access={self._access(item._own_access)}"]
            return Call("Alias(", [item.target.attribute, _hex(item.offset, 4), *access, *self._said(item)])
        assert isinstance(item, Register)
        self._imports.add("Register")
        return Call("Register(", [_hex(item.offset, 4), *self._register(item), *self._said(item)])

    def _register(self, item: Register[Any]) -> Iterable[Expression]:
        if item.width != 32:
            yield f"width={item.width}"
        usual = _usual_access(item)
        if usual != RW:
            yield f"access={self._access(usual)}"
        reset = self._reset(item)
        if reset is not None:
            yield reset
        yield from self._array(item)
        if item.sizes is not None:
            yield f"sizes={{{', '.join(map(str, sorted(item.sizes)))}}}"
        if item.partial is not None:
            yield f"partial={self._rule(item.partial)}"
        if item.reserved != RSVDP:
            yield f"reserved={self._access(item.reserved)}"
        if item.sticky:
            yield self._kinds(item.sticky)
        if item.fields:
            yield Call("fields=[", [self._field(field, item.access, usual) for field in item.fields], "]")

    def _reset(self, item: Register[Any]) -> Expression | None:
        """Its reset values, unless its fields say all of them."""
        power_on = item.reset
        # Sticky bits have no reset value of their own: they show power-on's.
        values = {kind: value | power_on & kept for kind, (kept, value) in item.resets.items()}
        other = {kind: value for kind, value in values.items() if value != power_on}
        if other:
            self._imports.add("ResetKind")
            every = {ResetKind.POWER_ON: power_on, **other}
            return Call("reset={", [f"ResetKind.{kind.name}: {_hex(value)}" for kind, value in every.items()], "}")
        said = sum(field.reset << field.lsb for field in item.fields if field.reset is not None)
        return None if power_on == said else f"reset={_hex(power_on)}"

    def _field(self, field: Field, default: Access, usual: Access) -> Expression:
        self._imports.add("Field")
        bits = str(field.lsb) if field.width == 1 else f"({field.msb}, {field.lsb})"
        parts: list[Expression] = [string(field.name), bits]
        access = field.access or default
        if access != usual:
            parts.append(f"access={self._access(access)}")
        if field.reset:
            parts.append(f"reset={int(field.reset) if field.values else _hex(field.reset)}")
        if field.enumeration is not None:
            parts.append(f"values={self._enumeration(field.enumeration)}")
        elif field.values:
            pairs = [string(meaning, f"{value}: ") for value, meaning in field.values.items()]
            parts.append(Call("values={", pairs, "}"))
        if field.sticky:
            parts.append(self._kinds(field.sticky))
        if field.doc:
            parts.append(string(field.doc, "doc="))
        return Call("Field(", parts)

    def _enumeration(self, cls: type[enum.IntEnum]) -> str:
        if cls in self._written:
            return self._written[cls]
        name = self._name(cls)
        self._lines += ["", "", f"class {name}(enum.IntEnum):", *docstring(cls.__doc__ or f"{name}.", "    "), ""]
        self._lines += [f"    {member} = {int(value)}" for member, value in cls.__members__.items()]
        return name

    def _array(self, item: Declaration) -> Iterable[str]:
        if item.count is not None:
            yield f"count={item.count}"
            if item.stride != item.size:
                yield f"stride={_hex(item.stride)}"

    def _said(self, item: Declaration) -> Iterable[Expression]:
        if item.when is not None:
            selector, values = item.when
            shown = str(next(iter(values))) if len(values) == 1 else f"({', '.join(map(str, sorted(values)))})"
            yield Call("when={", [f'"{selector}": {shown}'], "}")
        if item.doc:
            yield string(item.doc, "doc=")

    # -- words of the language -------------------------------------------------------------------------------------

    def _rule(self, value: object) -> str:
        if isinstance(value, AccessRule | Unmodelled):
            self._imports.add(value.name)
            return value.name
        if isinstance(value, frozenset | set | tuple):
            return str(tuple(sorted(value)))
        return str(string(value)) if isinstance(value, str) else repr(value)

    def _kinds(self, kinds: frozenset[ResetKind]) -> Expression:
        self._imports.add("ResetKind")
        return Call("sticky=[", [f"ResetKind.{kind.name}" for kind in ResetKind if kind in kinds], "]")

    def _access(self, access: Access) -> str:
        known = _NAMED.get(access)
        if known is not None:
            self._imports.add(known)
            return known
        if access not in self._constants:
            self._constants[access] = name = self._constant_name(access)
            self._imports |= {"Access", "WriteEffect"}
            parts = [string(access.name), f"WriteEffect.{access.write.name}"]
            if access.read is not ReadEffect.NONE:
                self._imports.add("ReadEffect")
                parts.append(f"ReadEffect.{access.read.name}")
            if access.overflow is not None:
                parts.append(f'overflow="{access.overflow}"')
            if access.constant:
                parts.append("constant=True")
            self._constant_lines += render(Call("Access(", parts), "", f"{name} = ")
        return self._constants[access]

    def _constant_name(self, access: Access) -> str:
        words = re.findall(r"[A-Z0-9]+", access.name.upper())
        name = wanted = "_".join(words) if words and not words[0][0].isdigit() else "_".join(["ACCESS", *words])
        number = 2
        while name in self._taken:
            name = f"{wanted}_{number}"
            number += 1
        self._taken.add(name)
        return name


def _differs(cls: type[RegisterBlock], name: str) -> bool:
    return bool(getattr(cls, name) != getattr(RegisterBlock, name))


def _usual_access(item: Register[Any]) -> Access:
    """The policy most of its fields have, which is said once; its own if it has none."""
    policies = [field.access or item.access for field in item.fields]
    return max(policies, key=policies.count, default=item.access)


def _hex(value: int, digits: int = 1) -> str:
    return f"0x{value:0{digits}X}"


def _import_lines(names: set[str]) -> list[str]:
    """One import statement, its names in the order import sorters have."""
    # CONSTANTS, then Classes.
    in_order = sorted(names, key=lambda name: (not name.isupper(), name))
    flat = f"from vfio_user.pci.registers import {', '.join(in_order)}"
    if len(flat) <= 120:
        return [flat]
    return ["from vfio_user.pci.registers import (", *(f"    {name}," for name in in_order), ")"]

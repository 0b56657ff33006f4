"""Making a block class from what an importer found: names made fit for Python, clashes reported instead of raised.

A description from elsewhere is not the user's to correct, and a class with one register fewer beats none. Whatever is
left out or renamed is a note.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import Any

from vfio_user.pci.registers._text import Location
from vfio_user.pci.registers.block import RegisterBlock
from vfio_user.pci.registers.declaration import Declaration
from vfio_user.pci.registers.fields import Field
from vfio_user.pci.registers.interchange.notes import Note
from vfio_user.pci.registers.layout import share_bytes
from vfio_user.pci.registers.register import Register

__all__ = ["BlockBuilder", "class_name", "fitting_width", "python_name"]

_TAKEN = frozenset(dir(RegisterBlock)) | frozenset(RegisterBlock.__annotations__)
_TAKEN_BY_INT = frozenset(dir(int))


def python_name(name: str, taken: frozenset[str]) -> str:
    """A name as an attribute: lower case, legal, and free."""
    legal = re.sub(r"\W+", "_", name).strip("_").lower() or "unnamed"
    if legal[0].isdigit():
        legal = f"n{legal}"
    return f"{legal}_" if legal in taken or keyword.iskeyword(legal) else legal


def class_name(name: str) -> str:
    """A name as a class: its words in upper camel case."""
    words = re.split(r"[\W_]+", name)
    camel = "".join(word[:1].upper() + word[1:] for word in words if word) or "Block"
    return camel if not camel[0].isdigit() else f"Block{camel}"


def fitting_width(bits: int) -> int:
    """The narrowest register width that holds so many bits.

    Raises:
        ValueError: none does.
    """
    for width in (8, 16, 32, 64):
        if bits <= width:
            return width
    raise ValueError(f"{bits} bits are more than the 64 of a register")


class BlockBuilder:
    """Collects the declarations of one class.

    Args:
        name: the class's, in the description's words.
        doc: its docstring.
        notes: where notes go.
    """

    def __init__(self, name: str, doc: str, notes: list[Note]) -> None:
        self.name = class_name(name)
        self.notes = notes
        self._namespace: dict[str, Any] = {"__doc__": doc or f"{name}, imported."}
        self._items: list[Declaration] = []

    def attribute(self, name: str, value: object) -> None:
        """Sets a class attribute, such as ``byteorder``."""
        self._namespace[name] = value

    def add(self, name: str, declaration: Declaration, location: Location) -> bool:
        """Adds one declaration, unless its place is taken.

        Returns:
            Whether it was added.
        """
        declaration.location = location
        for other in self._items:
            extents_meet = declaration.offset < other.end and other.offset < declaration.end
            if extents_meet and not _by_direction(declaration, other) and share_bytes(declaration, other):
                what = f"left out: {other} has these bytes; declare the bank (when=) by hand"
                self.notes.append(Note(f"{name} ({location})", what))
                return False
        attribute = python_name(name, _TAKEN)
        while attribute in self._namespace or attribute.rstrip("_") in self._namespace:
            attribute = f"{attribute.rstrip('_')}_2"
            self.notes.append(Note(f"{name} ({location})", f"called {attribute!r}: another one has its name"))
        self._namespace[attribute] = declaration
        self._items.append(declaration)
        declaration.__set_name__(RegisterBlock, attribute)  # for messages before the class exists
        return True

    def build(self) -> type[RegisterBlock]:
        """Makes the class.

        Raises:
            RegisterDefinitionError: the declarations contradict each other in a way ``add`` does not look for.
        """
        return type(self.name, (RegisterBlock,), self._namespace)


def _by_direction(one: Declaration, other: Declaration) -> bool:
    if not (isinstance(one, Register) and isinstance(other, Register)):
        return False
    if (one.offset, one.size, one.elements, one.stride) != (other.offset, other.size, other.elements, other.stride):
        return False
    return (not one.writable and not other.readable) or (not other.writable and not one.readable)


def unique_fields(fields: Sequence[tuple[str, Field]], where: str, notes: list[Note]) -> list[Field]:
    """Drops fields whose bits or names another one has, with a note for each."""
    kept: list[Field] = []
    claimed = 0
    for name, field in fields:
        if field.mask & claimed:
            notes.append(Note(f"{where}.{name}", f"left out: another field has bits {field.bits}"))
            continue
        claimed |= field.mask
        kept.append(field)
    return kept


def field_name(name: str, taken: Sequence[Field]) -> str:
    """A field's name in Python, unlike those of the fields before it."""
    attribute = python_name(name, _TAKEN_BY_INT)
    while any(field.name == attribute for field in taken):
        attribute += "_2"
    return attribute

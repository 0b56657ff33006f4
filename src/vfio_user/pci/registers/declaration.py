"""What everything in the body of a register block has in common: a name, a place, a line of source."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping

from vfio_user.errors import RegisterDefinitionError
from vfio_user.pci.registers._text import Location, public_name

__all__ = ["MERGE", "REJECT", "SPLIT", "AccessRule", "Declaration"]


class AccessRule(enum.Enum):
    """What happens to an access that is not exactly one register."""

    #: Cut at the borders of registers, each piece an access of its own.
    SPLIT = "split"
    #: The bytes the access does not carry stay as they are.
    MERGE = "merge"
    #: Refused with EINVAL, before anything happens.
    REJECT = "reject"


SPLIT = AccessRule.SPLIT
MERGE = AccessRule.MERGE
REJECT = AccessRule.REJECT


class Declaration:
    """What registers and register files have in common: a place in a block.

    Attributes:
        name: set by the class it stands in; without the trailing underscore that avoids a taken attribute.
        attribute: the Python attribute.
        offset: bytes from the start of the block, of the first element.
        size: bytes of one element.
        elements: how many there are.
        stride: bytes from one element to the next.
        when: ``(register or field name, values)``: the bank it answers in, None for always.
        location: where it was declared.
    """

    name: str = "?"
    attribute: str = "?"
    second_name: str = ""
    offset: int
    size: int
    count: int | None
    elements: int
    stride: int
    when: tuple[str, frozenset[int]] | None
    location: Location
    doc: str

    _kind = "register"

    def _place(
        self, offset: int, size: int, count: int | None, stride: int | None, when: Mapping[str, int | Collection[int]]
    ) -> None:
        self.offset = offset
        self.size = size
        self.count = count
        self.elements = 1 if count is None else count
        self.stride = size if stride is None else stride
        if offset < 0:
            raise self.error(f"offset {offset:#x} lies before its block")
        if self.elements < 1:
            raise self.error(f"count={count} leaves no element")
        if count is None and stride is not None:
            raise self.error(f"stride={stride:#x} without count=")
        if self.stride < size:
            raise self.error(f"stride={self.stride:#x} is less than the {size:#x} bytes of one element")
        if len(when) > 1:
            raise self.error(f"when= names {len(when)} selectors ({', '.join(when)}): one decides")
        self.when = None
        for selector, values in when.items():
            self.when = selector, frozenset([values] if isinstance(values, int) else values)

    @property
    def end(self) -> int:
        """The first byte after its last element."""
        return self.offset + (self.elements - 1) * self.stride + self.size

    @property
    def path(self) -> str:
        """Its name, with ``[]`` if it is an array."""
        return self.name if self.count is None else f"{self.name}[{self.count}]"

    def error(self, what: str) -> RegisterDefinitionError:
        """An error about this declaration, with the place it stands at."""
        label = repr(self.name) if self.name != "?" else f"at {getattr(self, 'offset', 0):#x}"
        return RegisterDefinitionError(f"{self._kind} {label} ({self.location}): {what}")

    def __set_name__(self, owner: type, attribute: str) -> None:
        if self.attribute not in ("?", attribute):
            self.second_name = attribute  # an exception from here would reach the reader as a RuntimeError
            return
        self.attribute = attribute
        self.name = public_name(attribute)

    def __str__(self) -> str:
        return f"{self.path} [{self.offset:#x}, {self.end:#x}) ({self.location})"

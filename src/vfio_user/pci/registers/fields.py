"""Fields: named bits of a register."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from vfio_user.errors import RegisterDefinitionError
from vfio_user.pci.registers._text import here
from vfio_user.pci.registers.policies import Access
from vfio_user.pci.registers.reset import ResetKind

__all__ = ["Field"]

#: Names an ``int`` already has; ``value.real`` must stay what everybody knows it to be.
_TAKEN = frozenset(dir(int))


class Field:
    """One field of a register.

    Args:
        name: an identifier: the field is read as ``block.status.computing``.
        bits: a bit number, or ``(msb, lsb)``, both included, as data sheets print ``7:4``.
        access: what a client may do with it; None takes the register's.
        reset: its reset value, not shifted; None takes these bits of the register's.
        values: what its values mean: an IntEnum, or ``{0: "off", 1: "on"}``. With an IntEnum, the device reads members.
        sticky: the kinds of reset that leave it alone; POWER_ON leaves nothing alone.
        doc: what the data sheet says.

    Attributes:
        lsb: lowest bit number.
        width: bits.
        mask: its bits in the register.
        values: ``{value: meaning}``, empty when nothing was said.
        enumeration: the IntEnum, if there is one.
        location: where it was declared.

    Raises:
        RegisterDefinitionError: the name is no identifier or taken by ``int``, the bits are in the wrong order or
            negative, or a reset or enumerated value does not fit.
    """

    __slots__ = (
        "access",
        "doc",
        "enumeration",
        "location",
        "lsb",
        "mask",
        "name",
        "reset",
        "sticky",
        "values",
        "width",
    )

    def __init__(
        self,
        name: str,
        bits: int | tuple[int, int],
        *,
        access: Access | None = None,
        reset: int | None = None,
        values: type[enum.IntEnum] | Mapping[int, str] | None = None,
        sticky: Iterable[ResetKind] = (),
        doc: str = "",
    ) -> None:
        self.location = here()
        self.name = name
        self.access = access
        self.reset = reset
        self.sticky = frozenset(sticky)
        self.doc = doc
        if not name.isidentifier():
            raise self._error("its name is not a Python identifier: `block.register.name` could not be written")
        if name in _TAKEN or name.startswith("_"):
            raise self._error(f"that name is taken by int or private: call it {name.strip('_') + '_'!r}")
        msb, self.lsb = (bits, bits) if isinstance(bits, int) else bits
        if self.lsb < 0 or msb < self.lsb:
            raise self._error(f"bits {msb}:{self.lsb} are not a range: give one bit number, or (msb, lsb)")
        self.width = msb - self.lsb + 1
        self.mask = ((1 << self.width) - 1) << self.lsb
        self.enumeration = values if isinstance(values, type) else None
        self.values: dict[int, str] = (
            {member.value: member.name for member in values} if isinstance(values, type) else dict(values or {})
        )
        for value, meaning in [*self.values.items(), *([] if reset is None else [(reset, "reset")])]:
            if not 0 <= value < 1 << self.width:
                raise self._error(f"{meaning} = {value:#x} does not fit its {self.width} bits")
        if ResetKind.POWER_ON in self.sticky:
            raise self._error("nothing is sticky over POWER_ON: there is no earlier value to keep")

    def _error(self, what: str) -> RegisterDefinitionError:
        return RegisterDefinitionError(f"field {self.name!r} ({self.location}): {what}")

    @property
    def msb(self) -> int:
        """Highest bit number."""
        return self.lsb + self.width - 1

    @property
    def bits(self) -> str:
        """Its bits as data sheets print them: ``7:4``, or ``3``."""
        return str(self.lsb) if self.width == 1 else f"{self.msb}:{self.lsb}"

    def extract(self, value: int) -> int:
        """The field in a register's ``value``: a member of its IntEnum where there is one for it."""
        number = (value & self.mask) >> self.lsb
        if self.enumeration is not None and number in self.values:
            return self.enumeration(number)
        return number

    def insert(self, value: int, number: int) -> int:
        """A register's ``value`` with the field set to ``number``, which must fit."""
        return value & ~self.mask | number << self.lsb

    def with_access(self, access: Access) -> Field:
        """The same field seen through another policy."""
        other = object.__new__(Field)
        for slot in self.__slots__:
            setattr(other, slot, getattr(self, slot))
        other.access = access
        return other

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.bits}, {self.access or 'the access of its register'})"

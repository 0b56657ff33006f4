"""Registers: the description of one, or of an array of them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from vfio_user.pci.registers._text import here
from vfio_user.pci.registers.declaration import SPLIT, AccessRule, Declaration
from vfio_user.pci.registers.fields import Field
from vfio_user.pci.registers.policies import RSVDP, RW, Access, Combined
from vfio_user.pci.registers.reset import ResetKind
from vfio_user.pci.registers.values import RegisterArray, RegisterValue, value_type

if TYPE_CHECKING:
    from vfio_user.pci.registers.block import RegisterBlock

__all__ = ["Register"]

T_co = TypeVar("T_co", covariant=True)


class Register(Declaration, Generic[T_co]):
    """A register, or with ``count`` an array of them.

    Args:
        offset: bytes from the start of the block; any alignment.
        width: 8, 16, 32 or 64 bits.
        access: what a client may do with it, and the default of its fields.
        reset: reset value, for every kind of reset or by kind; a kind that is not named takes POWER_ON's. None adds up
            the fields' values.
        fields: named bits. Bits no field names take ``reserved``.
        count: makes it an array: ``block.outputs[2]``.
        stride: bytes from one element to the next; as wide as the register when not given.
        doc: what the data sheet says.
        sizes: bytes an access may have, when it touches this register; None takes the block's ``access_sizes``.
        partial: MERGE or REJECT an access to some of its bytes; None takes the block's ``partial_access``.
        reserved: the policy of bits between the fields.
        sticky: the kinds of reset that leave the whole register alone.
        when: the bank it answers in: ``{"lcr.dlab": 1}`` or ``{"page": (2, 3)}``.

    Ownership: belongs to the class it stands in, and is not changed after it.

    Raises:
        RegisterDefinitionError: a width, offset, reset value or field that cannot be.
    """

    slot: int = -1

    @overload
    def __init__(
        self: Register[RegisterValue],
        offset: int,
        *,
        width: int = ...,
        access: Access = ...,
        reset: int | Mapping[ResetKind, int] | None = ...,
        fields: Iterable[Field] = ...,
        count: None = ...,
        stride: None = ...,
        doc: str = ...,
        sizes: Collection[int] | None = ...,
        partial: AccessRule | None = ...,
        reserved: Access = ...,
        sticky: Iterable[ResetKind] = ...,
        when: Mapping[str, int | Collection[int]] = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Register[RegisterArray],
        offset: int,
        *,
        width: int = ...,
        access: Access = ...,
        reset: int | Mapping[ResetKind, int] | None = ...,
        fields: Iterable[Field] = ...,
        count: int,
        stride: int | None = ...,
        doc: str = ...,
        sizes: Collection[int] | None = ...,
        partial: AccessRule | None = ...,
        reserved: Access = ...,
        sticky: Iterable[ResetKind] = ...,
        when: Mapping[str, int | Collection[int]] = ...,
    ) -> None: ...
    def __init__(
        self,
        offset: int,
        *,
        width: int = 32,
        access: Access = RW,
        reset: int | Mapping[ResetKind, int] | None = None,
        fields: Iterable[Field] = (),
        count: int | None = None,
        stride: int | None = None,
        doc: str = "",
        sizes: Collection[int] | None = None,
        partial: AccessRule | None = None,
        reserved: Access = RSVDP,
        sticky: Iterable[ResetKind] = (),
        when: Mapping[str, int | Collection[int]] | None = None,
    ) -> None:
        self.location = here()
        self.offset = offset
        if width not in (8, 16, 32, 64):
            raise self.error(f"width={width}: a register has 8, 16, 32 or 64 bits")
        self.width = width
        self.mask = (1 << width) - 1
        self.access = access
        self.doc = doc
        self.sizes = None if sizes is None else frozenset(sizes)
        if partial is SPLIT:
            raise self.error(
                "partial=SPLIT: an access to some bytes of one register is merged (MERGE) or refused (REJECT)"
            )
        self.partial = partial
        self.reserved = reserved
        self.sticky = frozenset(sticky)
        if ResetKind.POWER_ON in self.sticky:
            raise self.error("nothing is sticky over POWER_ON: there is no earlier value to keep")
        self._place(offset, width // 8, count, stride, when or {})
        self._set_fields(tuple(fields))
        self.resets = self._all_resets(reset)
        self._values: type[RegisterValue] | None = None
        #: The register whose storage this is; itself, unless it is an alias.
        self.target: Register[Any] = self

    def _set_fields(self, fields: tuple[Field, ...]) -> None:
        """Takes over the fields and folds their policies."""
        self.fields = fields
        if not fields:
            self.fields_by_name: dict[str, Field] = {}
            self.policies: tuple[tuple[int, Access], ...] = ((self.mask, self.access),)
        else:
            claimed = 0
            for field in fields:
                if field.mask > self.mask:
                    raise self.error(f"field {field.name!r} ({field.location}) has bits {field.bits} of {self.width}")
                if field.mask & claimed:
                    other = next(other for other in fields if other.mask & field.mask)
                    raise self.error(
                        f"field {field.name!r} bits {field.bits} ({field.location}) overlaps field {other.name!r} "
                        f"bits {other.bits} ({other.location})"
                    )
                claimed |= field.mask
            self.fields_by_name = {field.name: field for field in fields}
            if len(self.fields_by_name) < len(fields):
                names = [field.name for field in fields]
                twice = next(field for i, field in enumerate(fields) if field.name in names[:i])
                first = self.fields[names.index(twice.name)]
                raise self.error(f"two fields are called {twice.name!r} ({first.location} and {twice.location})")
            policies = [(field.mask, field.access or self.access) for field in fields]
            if claimed != self.mask:
                policies.append((self.mask & ~claimed, self.reserved))
            self.policies = tuple(policies)
        self.combined = Combined(self.policies)
        self._exact_store = not self.combined.constant and all(access.overflow is None for _, access in self.policies)

    def _all_resets(self, reset: int | Mapping[ResetKind, int] | None) -> dict[ResetKind, tuple[int, int]]:
        """The reset of each kind as (bits kept, value of the others)."""
        if isinstance(reset, Mapping):
            power_on = reset.get(ResetKind.POWER_ON, 0)
            given = {kind: reset.get(kind, power_on) for kind in ResetKind}
        else:
            given = dict.fromkeys(ResetKind, reset or 0)
        resets = {}
        for kind, value in given.items():
            if not 0 <= value <= self.mask:
                raise self.error(f"reset value {value:#x} does not fit {self.width} bits")
            kept = self.mask if kind in self.sticky else 0
            for field in self.fields:
                if field.reset is not None:
                    wanted = field.reset << field.lsb
                    if reset is not None and value & field.mask != wanted:
                        raise self.error(
                            f"reset={value:#x} gives field {field.name!r} {(value & field.mask) >> field.lsb:#x}, "
                            f"but the field says reset={field.reset:#x} ({field.location}): say it once"
                        )
                    value |= wanted
                if kind in field.sticky:
                    kept |= field.mask
            resets[kind] = kept, value & ~kept
        return resets

    @property
    def reset(self) -> int:
        """Its value after power-on."""
        return self.resets[ResetKind.POWER_ON][1]

    @property
    def readable(self) -> bool:
        """A client can read something other than 0 from it."""
        return any(access.readable for _, access in self.policies)

    @property
    def writable(self) -> bool:
        """A client's write can have an effect on its bits."""
        return any(access.writable for _, access in self.policies)

    @property
    def access_names(self) -> str:
        """The policies of its fields, or its own if it has none, for tables: ``RO``, or ``RW RW1C``."""
        fields = [str(field.access or self.access) for field in self.bits]
        return " ".join(dict.fromkeys(fields or [str(self.access)]))

    @property
    def is_simple(self) -> bool:
        """A single register in which the device can store every value that fits."""
        return self.count is None and self._exact_store

    @property
    def bits(self) -> Sequence[Field]:
        """Its fields, lowest bit first."""
        return sorted(self.fields, key=lambda field: field.lsb)

    def format(self, value: int) -> str:
        """``value`` in hex with its fields: ``0x81 (computing=1 raise_irq=1)``."""
        text = f"{int(value):#x}"
        if not self.fields:
            return text
        parts = []
        for field in self.bits:
            number = int(field.extract(value))
            parts.append(f"{field.name}={field.values.get(number, f'{number:#x}' if number > 9 else number)}")
        return f"{text} ({' '.join(parts)})"

    def field(self, name: str) -> Field:
        """The field of that name.

        Raises:
            KeyError: there is none.
        """
        return self.fields_by_name[name]

    # -- the device's side ---------------------------------------------------------------------------------------

    def value_at(self, block: RegisterBlock, slot: int) -> RegisterValue:
        """The value in a slot of a block's storage."""
        kind = self._values
        if kind is None:
            kind = self._values = value_type(self)
        value = kind(block._values[slot])
        if self.fields:
            value.__dict__["_place"] = block, slot
        return value

    def store(self, block: RegisterBlock, slot: int, value: int) -> None:
        """Stores a value as the device does.

        Raises:
            ValueError: it does not fit; counters saturate or wrap instead.
            AttributeError: the register, or a field that would change, is CONST.
        """
        if self._exact_store:
            if not 0 <= value <= self.mask:
                raise ValueError(self._misfit(self.name, value, self.width))
        else:
            stored = block._values[slot]
            if len(self.policies) == 1:  # all of it is one counter, with or without a field that says so
                value = _overflow(self.policies[0][1], value, self.mask)
            if not 0 <= value <= self.mask:
                raise ValueError(self._misfit(self.name, value, self.width))
            if (stored ^ value) & self.combined.constant:
                raise AttributeError(
                    f"{self.name} ({self.location}) is CONST at {stored:#x}: declare it RO if the device changes it"
                )
        block._values[slot] = int(value)

    def store_field(self, block: RegisterBlock, slot: int, field: Field, number: int) -> None:
        """Stores one field as the device does; raises what ``store`` raises."""
        top = field.mask >> field.lsb
        access = field.access or self.access
        if access.overflow is not None:
            number = _overflow(access, number, top)
        if not 0 <= number <= top:
            raise ValueError(self._misfit(f"{self.name}.{field.name}", number, field.width))
        self.store(block, slot, field.insert(block._values[slot], int(number)))

    def _misfit(self, what: str, value: int, width: int) -> str:
        return f"{what} = {value:#x} does not fit {width} bits: mask it, `& {(1 << width) - 1:#x}`"

    @overload
    def __get__(self, instance: None, owner: type[object]) -> Self: ...
    @overload
    def __get__(self, instance: RegisterBlock, owner: type[object]) -> T_co: ...
    def __get__(self, instance: RegisterBlock | None, owner: type[object]) -> Any:
        if instance is None:
            return self
        if self.count is not None:
            return RegisterArray(instance, self)
        return self.value_at(instance, self.slot)

    def __set__(self: Register[RegisterValue], instance: RegisterBlock, value: int) -> None:
        if self.count is not None:
            raise TypeError(
                f"{self.name} is an array of {self.count} registers: store to one, {self.name}[0] = {value}"
            )
        self.store(instance, self.slot, value)

    def for_class(self) -> Self:
        """A copy for another class, which may keep it in another slot."""
        other = copy.copy(self)
        other._values = None
        other.target = other
        return other

    def __repr__(self) -> str:
        return f"Register({self.path}, {self.offset:#x}, width={self.width}, access={self.access})"


def _overflow(access: Access, value: int, top: int) -> int:
    if access.overflow == "saturate" and value > top:
        return top
    return value & top if access.overflow == "wrap" and value >= 0 else value

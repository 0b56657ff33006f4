"""Registers by name, from the driver's side: the description the device is made of, over any way to reach it.

    regs = function.registers(0, EduRegisters)
    regs.liveness = 0x1234_5678               # a write of four bytes
    assert regs.liveness == 0xEDCB_A987       # a read
    regs.status.raise_interrupt = 1           # a read, and a write of what was read with that field changed
    assert not regs.status.computing

To a type checker a view is the block class itself. Reading an attribute reads the register, every time; keep the value
to look at several fields of one read.

A write of one field writes the others back as they were read, except where that would do something: bits that act on
being written 1 get 0. (Writing a status register back as read clears every event in it - the classic mistake.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, cast, overload

from vfio_user.pci.registers import Register, RegisterBlock, RegisterFile, RegisterValue, WriteEffect
from vfio_user.pci.registers.declaration import Declaration
from vfio_user.pci.registers.values import value_type

__all__ = ["RegisterAccess", "view_registers"]

B = TypeVar("B", bound=RegisterBlock)

#: A 1 written there does something.
_ONE_ACTS = {WriteEffect.ONE_CLEARS, WriteEffect.ONE_SETS, WriteEffect.ONE_TOGGLES, WriteEffect.PULSES}

#: A 0 written there does something.
_ZERO_ACTS = {WriteEffect.ZERO_CLEARS, WriteEffect.ZERO_SETS, WriteEffect.ZERO_TOGGLES}


class RegisterAccess(Protocol):
    """What registers can be reached through: a BAR, configuration space, or a part of one."""

    def read(self, offset: int, size: int, /) -> int:
        """Reads an integer of ``size`` bytes."""

    def write(self, offset: int, size: int, value: int, /) -> None:
        """Writes an integer of ``size`` bytes."""


def view_registers(block: type[B], access: RegisterAccess, offset: int = 0) -> B:
    """Makes a view.

    Args:
        block: what is there.
        access: how to reach it.
        offset: where it begins, bytes.
    """
    return cast("B", _View(block, access, offset))


class _Value(RegisterValue):
    """A register's value when it was read; assigning to a field writes the register."""

    def __setattr__(self, name: str, number: int) -> None:
        register = self._description[0]
        field = register.fields_by_name.get(name)
        if field is None:
            getattr(self, name)  # says what there is instead
            raise AttributeError(f"{name!r} is no field of register {register.name!r}")
        if not 0 <= number <= field.mask >> field.lsb:
            raise ValueError(f"{register.name}.{name} = {number:#x} does not fit {field.width} bits")
        value = int(self)
        for mask, policy in register.policies:
            if policy.write in _ONE_ACTS:
                value &= ~mask
            elif policy.write in _ZERO_ACTS:
                value |= mask
        self.__dict__["_write"](field.insert(value, number))


#: Register -> the type of its values. Registers belong to classes, and live as long.
_types: dict[Register[Any], type[_Value]] = {}


def _value_type(register: Register[Any]) -> type[_Value]:
    found = _types.get(register)
    if found is None:
        named = value_type(register)
        found = _types[register] = cast("type[_Value]", type(named.__name__, (_Value, named), {}))
    return found


class _View:
    """A block; its attributes are registers, rows of them, and blocks in it."""

    __slots__ = ("_access", "_block", "_offset")

    _access: RegisterAccess
    _block: type[RegisterBlock]
    _offset: int

    def __init__(self, block: type[RegisterBlock], access: RegisterAccess, offset: int) -> None:
        object.__setattr__(self, "_block", block)
        object.__setattr__(self, "_access", access)
        object.__setattr__(self, "_offset", offset)

    def __getattr__(self, name: str) -> Any:
        item = self._declaration(name)
        if item.count is not None:
            return _Row(self, item)
        return self._element(item, 0)

    def __setattr__(self, name: str, value: int) -> None:
        item = self._declaration(name)
        if item.count is not None or not isinstance(item, Register):
            raise AttributeError(f"{item.path} is several registers: write to one of them")
        self._write(item, 0, value)

    def __dir__(self) -> list[str]:
        return [item.attribute for item in self._block.layout.declarations.values()]

    def _declaration(self, name: str) -> Declaration:
        item = getattr(self._block, name, None)
        if not isinstance(item, Declaration):
            raise AttributeError(f"{self._block.__name__} has no register {name!r}")
        return item

    def _place(self, item: Declaration, index: int) -> int:
        return self._offset + item.offset + index * item.stride

    def _element(self, item: Declaration, index: int) -> Any:
        if isinstance(item, RegisterFile):
            return _View(item.block, self._access, self._place(item, index))
        assert isinstance(item, Register)
        value = _value_type(item)(self._swap(item, self._access.read(self._place(item, index), item.size)))
        write: Callable[[int], None] = lambda number: self._write(item, index, number)  # noqa: E731
        value.__dict__["_write"] = write
        return value

    def _write(self, item: Register[Any], index: int, value: int) -> None:
        if not 0 <= value <= item.mask:
            raise ValueError(f"{item.name} = {value:#x} does not fit {item.width} bits")
        self._access.write(self._place(item, index), item.size, self._swap(item, int(value)))

    def _swap(self, item: Register[Any], value: int) -> int:
        if self._block.byteorder == "little":
            return value
        return int.from_bytes(value.to_bytes(item.size, "little"), "big")

    def __repr__(self) -> str:
        return f"<{self._block.__name__} at {self._offset:#x}>"


class _Row:
    """An array of registers or of blocks."""

    __slots__ = ("_item", "_view")

    def __init__(self, view: _View, item: Declaration) -> None:
        self._view = view
        self._item = item

    def __len__(self) -> int:
        return self._item.elements

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self._view._element(self._item, self._checked(index))

    def __setitem__(self, index: int, value: int) -> None:
        if not isinstance(self._item, Register):
            raise TypeError(f"{self._item.path} are blocks: write to a register in one")
        self._view._write(self._item, self._checked(index), value)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self._item.name}[{index}]: the array has {len(self)}")
        return index % len(self)

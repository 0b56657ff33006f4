"""What device code sees of a register: an integer with fields, or an array of them.

These are the device's side of a register: no access policy, no hook. A client's side is ``RegisterBlock.read`` and
``write``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from vfio_user.pci.registers._text import nearest

if TYPE_CHECKING:
    from vfio_user.pci.registers.block import RegisterBlock
    from vfio_user.pci.registers.register import Register

__all__ = ["BlockArray", "RegisterArray", "RegisterValue", "value_type"]

B_co = TypeVar("B_co", bound="RegisterBlock", covariant=True)


class RegisterValue(int):
    """A register's value when it was read; its fields are attributes.

    ``block.status.computing`` reads the field from this value. ``block.status.computing = 1`` stores it in the
    register, as the device's hardware does: whatever its access policy, and without hooks. The value itself stays the
    integer it is.
    """

    #: A register in a class body is a descriptor; inside a tuple it is not.
    _description: ClassVar[tuple[Register[Any], ...]] = ()

    def __getattr__(self, name: str) -> int:
        # Reached for names the class does not have; fields are properties of the subclass ``value_type`` makes.
        raise AttributeError(_no_field(self._description[0], name))

    def __setattr__(self, name: str, number: int) -> None:
        register = self._description[0]
        field = register.fields_by_name.get(name)
        if field is None:
            raise AttributeError(_no_field(register, name))
        block, slot = self.__dict__["_place"]
        register.store_field(block, slot, field, number)

    def __repr__(self) -> str:
        return self._description[0].format(self) if self._description else int.__repr__(self)

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return int.__format__(self, spec) if spec else repr(self)


def _no_field(register: Register[Any], name: str) -> str:
    if not register.fields:
        return f"register {register.name!r} has no fields, so no {name!r}"
    return f"register {register.name!r} has no field {name!r}: {nearest(name, register.fields_by_name)}"


def value_type(register: Register[Any]) -> type[RegisterValue]:
    """Makes the type of one register's values: each field is a property of it."""
    namespace: dict[str, Any] = {"_description": (register,)}
    for field in register.fields:
        namespace[field.name] = property(field.extract, doc=field.doc)
    return type(f"{register.name}_value", (RegisterValue,), namespace)


class RegisterArray(Sequence[RegisterValue]):
    """An array of registers: ``block.outputs[2]``, ``block.outputs[2] = 5``, ``len``, ``for``."""

    __slots__ = ("_block", "_register")

    def __init__(self, block: RegisterBlock, register: Register[Any]) -> None:
        self._block = block
        self._register = register

    def __len__(self) -> int:
        return self._register.elements

    @overload
    def __getitem__(self, index: int) -> RegisterValue: ...
    @overload
    def __getitem__(self, index: slice) -> list[RegisterValue]: ...
    def __getitem__(self, index: int | slice) -> RegisterValue | list[RegisterValue]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._register.value_at(self._block, self._slot(index))

    def __setitem__(self, index: int, value: int) -> None:
        self._register.store(self._block, self._slot(index), value)

    def __iter__(self) -> Iterator[RegisterValue]:
        return (self[index] for index in range(len(self)))

    def _slot(self, index: int) -> int:
        count = self._register.elements
        if not -count <= index < count:
            raise IndexError(f"{self._register.name}[{index}]: the array has {count} registers")
        return self._register.slot + index % count

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self))}]"


class BlockArray(tuple[B_co, ...]):
    """The blocks of a register file: ``block.channels[2].control``."""

    __slots__ = ()

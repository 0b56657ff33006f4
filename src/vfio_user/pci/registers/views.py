"""Aliases and register files: registers seen again, and blocks inside blocks."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Generic, Never, Self, TypeVar, overload

from vfio_user.pci.registers._text import here
from vfio_user.pci.registers.declaration import Declaration
from vfio_user.pci.registers.fields import Field
from vfio_user.pci.registers.policies import Access
from vfio_user.pci.registers.register import Register
from vfio_user.pci.registers.values import BlockArray

if TYPE_CHECKING:
    from vfio_user.pci.registers.block import RegisterBlock

__all__ = ["Alias", "RegisterFile"]

T_co = TypeVar("T_co", covariant=True)
B = TypeVar("B", bound="RegisterBlock")


class Alias(Register[T_co]):
    """The same register seen at a second offset, maybe through another policy (set and clear registers).

    Hooks of the register fire whichever way it is written or read, but for ``before_write`` and ``on_read``: those see
    the raw access and belong to the name they were given.

    Args:
        target: the register, as declared above in the same class body.
        offset: bytes from the start of the block.
        access: the policy of all its bits here; None keeps the register's own.
        doc: what the data sheet says.
        when: the bank it answers in.
    """

    _kind = "alias"

    def __init__(
        self,
        target: Register[T_co],
        offset: int,
        *,
        access: Access | None = None,
        doc: str = "",
        when: Mapping[str, int | Collection[int]] | None = None,
    ) -> None:
        self._own_access = access
        self._show(target)
        self.location = here()
        self.doc = doc
        stride = None if target.count is None else target.stride
        self._place(offset, target.size, target.count, stride, when or {})

    def _show(self, target: Register[Any]) -> None:
        """Takes over what a register is, but for its place and name."""
        kept = {name: value for name, value in self.__dict__.items() if name in _OF_THE_ALIAS}
        self.__dict__.update(target.__dict__)
        self.name = self.attribute = "?"
        self.second_name = ""
        self.__dict__.update(kept)
        self.target = target
        self._values = None
        if self._own_access is not None:
            self.access = self.reserved = self._own_access
            self._set_fields(tuple(field.with_access(self._own_access) for field in target.fields))

    def store(self, block: RegisterBlock, slot: int, value: int) -> None:
        """See ``Register.store``: the device's side of an alias is that of its register."""
        self.target.store(block, slot, value)

    def store_field(self, block: RegisterBlock, slot: int, field: Field, number: int) -> None:
        """See ``Register.store_field``."""
        self.target.store_field(block, slot, self.target.fields_by_name[field.name], number)

    def showing(self, target: Register[Any]) -> Self:
        """This alias for a class whose register of that name is ``target``."""
        if self.target is target and self.slot in (-1, target.slot):
            self.slot = target.slot
            return self
        other = copy.copy(self)
        other._show(target)
        return other


#: What an alias does not take from the register it shows.
_OF_THE_ALIAS = frozenset({"_own_access", "attribute", "count", "doc", "elements", "location", "name", "offset",
                           "second_name", "size", "stride", "when"})  # fmt: skip


class RegisterFile(Declaration, Generic[T_co]):
    """A block inside a block, or with ``count`` a row of them.

    Args:
        block: the RegisterBlock class; each element is an instance of it, with its own hooks and methods.
        offset: bytes from the start of the outer block.
        count: makes it a row: ``block.channels[2].control``.
        stride: bytes from one to the next; the size of the block when not given.
        doc: what the data sheet says.
        when: the bank it answers in.
    """

    _kind = "register file"

    @overload
    def __init__(
        self: RegisterFile[B],
        block: type[B],
        offset: int,
        *,
        count: None = ...,
        stride: None = ...,
        doc: str = ...,
        when: Mapping[str, int | Collection[int]] | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: RegisterFile[BlockArray[B]],
        block: type[B],
        offset: int,
        *,
        count: int,
        stride: int | None = ...,
        doc: str = ...,
        when: Mapping[str, int | Collection[int]] | None = ...,
    ) -> None: ...
    def __init__(
        self,
        block: type[Any],
        offset: int,
        *,
        count: int | None = None,
        stride: int | None = None,
        doc: str = "",
        when: Mapping[str, int | Collection[int]] | None = None,
    ) -> None:
        self.location = here()
        self.block: type[RegisterBlock] = block
        self.doc = doc
        self._place(offset, block.size, count, stride, when or {})

    @overload
    def __get__(self, instance: None, owner: type[object]) -> Self: ...
    @overload
    def __get__(self, instance: RegisterBlock, owner: type[object]) -> T_co: ...
    def __get__(self, instance: RegisterBlock | None, owner: type[object]) -> Any:
        if instance is None:
            return self
        return instance._files[self.name]

    def __set__(self, instance: RegisterBlock, value: Never) -> None:
        raise TypeError(f"{self.name} is a register file: store to a register in it")

    def __repr__(self) -> str:
        return f"RegisterFile({self.path}, {self.offset:#x}, {self.block.__name__})"

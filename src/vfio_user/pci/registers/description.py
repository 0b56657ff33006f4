"""Walking a block class: every register with its absolute offset, for traces, documents and exporters.

This needs no instance, so it knows nothing of banks that are selected or regions that were placed at run time: where
several registers can answer, all are named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from vfio_user.pci.registers.declaration import Declaration
from vfio_user.pci.registers.register import Register
from vfio_user.pci.registers.views import Alias, RegisterFile

if TYPE_CHECKING:
    from vfio_user.pci.registers.block import RegisterBlock

__all__ = ["Located", "RegisterDescription", "describe_access", "locate", "walk"]


@dataclass(frozen=True, slots=True)
class RegisterDescription:
    """One register declaration, where the outermost block has it.

    Attributes:
        parts: the declarations on the way, the register last.
        offset: of the first element, bytes from the start of the outermost block.
        block: the class it stands in.
        register: fields, access, reset values and doc are there.
    """

    parts: tuple[Declaration, ...]
    offset: int
    block: type[RegisterBlock]
    register: Register[Any]

    @property
    def name(self) -> str:
        """Its path, arrays with their counts: ``channels[4].control``."""
        return ".".join(part.path for part in self.parts)

    @property
    def dimensions(self) -> tuple[tuple[int, int], ...]:
        """(count, stride) of each array on the way, outermost first."""
        return tuple((part.elements, part.stride) for part in self.parts if part.count is not None)

    @property
    def alias_of(self) -> str | None:
        """The register an alias shows."""
        return self.register.target.name if isinstance(self.register, Alias) else None

    @property
    def when(self) -> tuple[tuple[str, frozenset[int]], ...]:
        """The banks it answers in, outermost first: (selector, values)."""
        return tuple(part.when for part in self.parts if part.when is not None)

    def elements(self) -> Iterator[tuple[str, int]]:
        """Every single register: (full name with indexes, absolute offset)."""
        for indexes in product(*(range(part.elements) for part in self.parts)):
            names = []
            offset = self.offset
            for part, index in zip(self.parts, indexes, strict=True):
                names.append(part.name if part.count is None else f"{part.name}[{index}]")
                offset += index * part.stride
            yield ".".join(names), offset


def walk(block: type[RegisterBlock]) -> Iterator[RegisterDescription]:
    """Every register of a block class and of the blocks in it, by offset."""
    yield from _walk(block, (), 0)


def _walk(block: type[RegisterBlock], outer: tuple[Declaration, ...], base: int) -> Iterator[RegisterDescription]:
    for item in sorted(block.layout.declarations.values(), key=lambda item: item.offset):
        parts = (*outer, item)
        if isinstance(item, Register):
            yield RegisterDescription(parts, base + item.offset, block, item)
        else:
            assert isinstance(item, RegisterFile)
            yield from _walk(item.block, parts, base + item.offset)


@dataclass(frozen=True, slots=True)
class Located:
    """Some bytes of one register that an access touches.

    Attributes:
        name: full name with indexes.
        register: the register.
        first: the first of the bytes in the register, in address order.
        at: their place in the access, bytes.
        size: how many.
        byteorder: of the register.
    """

    name: str
    register: Register[Any]
    first: int
    at: int
    size: int
    byteorder: str

    def show(self, value: int) -> str:
        """What the access's ``value`` means here: ``status = 0x81 (computing=1 raise_irq=1)``.

        Of an access to part of a register, only the bytes are shown, as ``status[15:8] = 0x1``.
        """
        size = self.register.size
        bits = (value >> 8 * self.at) & (1 << 8 * self.size) - 1
        first = self.first
        if self.byteorder == "big":
            bits = int.from_bytes(bits.to_bytes(self.size, "little"), "big")
            first = size - first - self.size
        if self.size == size:
            return f"{self.name} = {self.register.format(bits)}"
        return f"{self.name}[{8 * (first + self.size) - 1}:{8 * first}] = {bits:#x}"


def locate(block: type[RegisterBlock], offset: int, size: int = 1, *, writing: bool | None = None) -> Iterator[Located]:
    """The registers an access to ``[offset, offset + size)`` touches, of all banks.

    Args:
        block: the class.
        offset: bytes from its start.
        size: bytes.
        writing: leaves out registers that only answer in the other direction; None keeps all.
    """
    layout = block.layout
    hidden: set[str] = set()
    if writing is not None:
        hidden = layout.read_only_doors if writing else layout.write_only_doors
    found = sorted(layout.find(offset, size), key=lambda pair: pair[0].offset + pair[1] * pair[0].stride)
    for item, index in found:
        if item.name in hidden:
            continue
        start = item.offset + index * item.stride
        low, high = max(start, offset), min(start + item.size, offset + size)
        name = item.name if item.count is None else f"{item.name}[{index}]"
        if isinstance(item, Register):
            yield Located(name, item, low - start, low - offset, high - low, block.byteorder)
        elif isinstance(item, RegisterFile):
            for inner in locate(item.block, low - start, high - low, writing=writing):
                yield Located(
                    f"{name}.{inner.name}",
                    inner.register,
                    inner.first,
                    inner.at + low - offset,
                    inner.size,
                    inner.byteorder,
                )


def describe_access(
    block: type[RegisterBlock], offset: int, size: int, value: int, *, writing: bool | None = None
) -> str:
    """One access in words: ``status = 0x81 (computing=1 raise_irq=1)``; an offset nobody claims stays a number."""
    shown = [located.show(value) for located in locate(block, offset, size, writing=writing)]
    return ", ".join(shown) if shown else f"{offset:#x} = {value:#x}"

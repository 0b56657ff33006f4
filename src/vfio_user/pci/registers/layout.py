"""The layout of a block class: every declaration in its place, checked once when the class is made.

A layout never changes. Instances hold values, one slot a register; a layout says which register answers at an offset,
and refuses what cannot be: two registers in the same bytes, unless a bank or the direction tells them apart, a name
``RegisterBlock`` needs itself, a bank selected by something that is not there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vfio_user.errors import RegisterDefinitionError
from vfio_user.pci.registers._text import nearest, public_name
from vfio_user.pci.registers.declaration import Declaration
from vfio_user.pci.registers.register import Register
from vfio_user.pci.registers.reset import ResetKind
from vfio_user.pci.registers.views import Alias, RegisterFile

if TYPE_CHECKING:
    from vfio_user.pci.registers.block import RegisterBlock

__all__ = ["Layout", "Selector", "share_bytes"]


class Selector(NamedTuple):
    """What decides which bank answers: some bits of a register."""

    name: str
    slot: int
    mask: int
    shift: int


class Layout:
    """The places of a block's registers.

    Args:
        owner: the block class.
        root: RegisterBlock, whose attributes no register may take.
        declared_size: bytes, when the class says so; otherwise the end of the last register.

    Attributes:
        declarations: registers, aliases and register files by name, in order of declaration, inherited ones first.
        registers: those that have storage, by name.
        files: register files, by name.
        size: bytes.
        slots: how many values an instance holds.
        selectors: what decides about banks, by its path.

    Raises:
        RegisterDefinitionError: the declarations contradict each other; both sides are named.
    """

    def __init__(self, owner: type[RegisterBlock], root: type, declared_size: int | None) -> None:
        self.owner = owner
        self.declarations: dict[str, Declaration] = dict(_collect(owner, root))
        self.registers: dict[str, Register[Any]] = {}
        self.files: dict[str, RegisterFile[Any]] = {}
        self._reset_plans: dict[ResetKind, tuple[list[int] | None, list[int]]] = {}
        self._sort_and_place()
        in_order = sorted(self.declarations.values(), key=lambda item: item.offset)
        self.selectors = self._find_selectors()
        #: Names of registers that answer in one direction only, because another one answers in the other.
        self.read_only_doors: set[str] = set()
        self.write_only_doors: set[str] = set()
        self._refuse_overlaps(in_order)
        end = max((item.end for item in in_order), default=0)
        self.size = end if declared_size is None else declared_size
        if self.size < end:
            last = max(in_order, key=lambda item: item.end)
            raise RegisterDefinitionError(
                f"{owner.__name__}.size = {self.size:#x}, but it declares {last}: raise size, or leave it out"
            )
        # One span per element row: those without holes are found by bisection, rows with holes one by one.
        self._dense: list[Declaration] = []
        self._sparse: list[Declaration] = []
        overlapping = self._banked_or_doubled()
        for item in in_order:
            holes = item.elements > 1 and item.stride > item.size
            (self._sparse if holes or item.name in overlapping else self._dense).append(item)
        self._starts = [item.offset for item in self._dense]

    def _sort_and_place(self) -> None:
        self.slots = 0
        for name, item in self.declarations.items():
            if isinstance(item, RegisterFile):
                self.files[name] = item
            elif not isinstance(item, Alias):
                assert isinstance(item, Register)
                if item.slot != self.slots:
                    if item.slot >= 0:  # inherited, and an override before it changed the number of slots
                        item = item.for_class()
                        self.declarations[name] = item
                        setattr(self.owner, item.attribute, item)
                    item.slot = self.slots
                self.registers[name] = item
                self.slots += item.elements
        for name, item in self.declarations.items():
            if isinstance(item, Alias):
                if isinstance(item.target, Alias):
                    raise item.error(
                        f"its target {item.target.name!r} is an alias itself: name {item.target.target.name!r}"
                    )
                target = self.registers.get(item.target.name)
                if target is None:
                    raise item.error(f"its target {item.target.name!r} is not a register of {self.owner.__name__}")
                shown = item.showing(target)
                if shown is not item:
                    self.declarations[name] = shown
                    setattr(self.owner, item.attribute, shown)

    def _find_selectors(self) -> Mapping[str, Selector]:
        found = {}
        for item in self.declarations.values():
            if item.when is None or item.when[0] in found:
                continue
            path = item.when[0]
            name, _, field_name = path.partition(".")
            register = self.registers.get(public_name(name))
            if register is None:
                raise item.error(f"when={path!r}: no register {name!r} here: {nearest(name, self.registers)}")
            if register.count is not None:
                raise item.error(
                    f"when={path!r}: {name!r} is an array ({register.location}); one register selects a bank"
                )
            if not field_name:
                found[path] = Selector(path, register.slot, register.mask, 0)
                continue
            field = register.fields_by_name.get(field_name)
            if field is None:
                raise item.error(
                    f"when={path!r}: register {name!r} ({register.location}) has no field {field_name!r}: "
                    f"{nearest(field_name, register.fields_by_name)}"
                )
            found[path] = Selector(path, register.slot, field.mask, field.lsb)
        return found

    def _banked_or_doubled(self) -> set[str]:
        banked = {item.name for item in self.declarations.values() if item.when is not None}
        return banked | self.read_only_doors | self.write_only_doors

    def _refuse_overlaps(self, in_order: list[Declaration]) -> None:
        open_items: list[Declaration] = []  # those whose extent reaches the current offset; nearly always none
        for item in in_order:
            if open_items:
                open_items = [other for other in open_items if other.end > item.offset]
                for other in open_items:
                    if share_bytes(other, item) and not _different_banks(other, item):
                        self._share_by_direction(other, item)
            open_items.append(item)

    def _share_by_direction(self, first: Declaration, second: Declaration) -> None:
        """Two registers in the same bytes are fine if one only reads and the other only writes (16550 RBR and THR)."""
        if isinstance(first, Register) and isinstance(second, Register):
            for reads, writes in ((first, second), (second, first)):
                same_place = (reads.offset, reads.size, reads.elements) == (writes.offset, writes.size, writes.elements)
                if same_place and not reads.writable and reads.readable and writes.writable and not writes.readable:
                    self.read_only_doors.add(reads.name)
                    self.write_only_doors.add(writes.name)
                    return
        raise RegisterDefinitionError(
            f"{self.owner.__name__}: {first} and {second} overlap; give one another offset, "
            f"make it an Alias, put them in different banks (when=), or make one read-only and the other WO"
        )

    def reset_plan(self, kind: ResetKind) -> tuple[list[int] | None, list[int]]:
        """What a reset does to every slot: the bits it keeps (None: it keeps nothing), and the value of the others."""
        plan = self._reset_plans.get(kind)
        if plan is None:
            kept: list[int] = []
            values: list[int] = []
            for register in self.registers.values():
                keep, value = register.resets[kind]
                kept += [keep] * register.elements
                values += [value] * register.elements
            plan = self._reset_plans[kind] = (kept if any(kept) else None, values)
        return plan

    def banks(self, selector: str) -> frozenset[int]:
        """The values of a selector at which something answers."""
        whens = [item.when for item in self.declarations.values() if item.when is not None]
        return frozenset().union(*(values for name, values in whens if name == selector))

    def find(self, offset: int, size: int) -> Iterator[tuple[Declaration, int]]:
        """The elements that have a byte in ``[offset, offset + size)``, of all banks, in no order.

        Yields:
            (declaration, element index).
        """
        end = offset + size
        at = bisect_right(self._starts, offset) - 1
        for item in self._dense[max(at, 0) : bisect_right(self._starts, end - 1)]:
            yield from _elements(item, offset, end)
        for item in self._sparse:
            yield from _elements(item, offset, end)


def _collect(owner: type, root: type) -> Iterator[tuple[str, Declaration]]:
    """The declarations of a class, bases first; a later one of the same name takes the earlier one's place."""
    attributes: dict[str, None] = {}
    for base in reversed(owner.__mro__):
        for attribute, member in vars(base).items():
            if isinstance(member, Declaration):
                attributes[attribute] = None
    names: dict[str, Declaration] = {}
    for attribute in attributes:
        member = getattr(owner, attribute)
        if not isinstance(member, Declaration):
            continue  # the subclass took it out
        if hasattr(root, attribute) or attribute in root.__annotations__ or attribute.startswith("_"):
            raise member.error(
                f"{attribute!r} is an attribute every RegisterBlock has: write {attribute.strip('_')}_ = ..., "
                f"the register is still called {attribute.strip('_')!r}"
            )
        if member.second_name:
            raise member.error(
                f"also called {member.second_name!r}; one register has one name, a second view of it is an Alias"
            )
        if member.name in names:
            raise member.error(f"called {member.name!r} like {names[member.name]}")
        names[member.name] = member
        yield member.name, member


def _elements(item: Declaration, offset: int, end: int) -> Iterator[tuple[Declaration, int]]:
    first = max((offset - item.offset - item.size) // item.stride + 1, 0)
    last = min((end - 1 - item.offset) // item.stride, item.elements - 1)
    for index in range(first, last + 1):
        yield item, index


def share_bytes(first: Declaration, second: Declaration) -> bool:
    """Whether two rows, whose extents overlap, have a byte in common."""
    if first.elements > second.elements:
        first, second = second, first
    if first.stride == second.stride and first.elements > 1:
        # Same stride: all elements that face each other do so alike. The first pair in the common range decides, and
        # its partner begins before or after the second row does.
        index = max(0, (second.offset - first.offset) // first.stride)
        candidates = range(index, min(index + 2, first.elements))
    else:
        candidates = range(first.elements)
    for index in candidates:
        start = first.offset + index * first.stride
        if any(True for _ in _elements(second, start, start + first.size)):
            return True
    return False


def _different_banks(first: Declaration, second: Declaration) -> bool:
    if first.when is None or second.when is None:
        return False
    return first.when[0] == second.when[0] and not first.when[1] & second.when[1]

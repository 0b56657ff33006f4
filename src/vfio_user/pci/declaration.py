"""What a device class declares about its PCI function, collected and checked.

This runs when the class is made, so that a wrong declaration is an error at its own line and not a guest that does not
boot. Ids may be left to subclasses: what is missing is an error when the first device is made.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vfio_user.errors import DefinitionError
from vfio_user.pci.bars import Bar, bar_hooks
from vfio_user.pci.capabilities.base import AnyCapability, Capability, ExtendedCapability
from vfio_user.pci.capabilities.express import PciExpress
from vfio_user.pci.capabilities.msix import MsiX
from vfio_user.pci.config_space import CONVENTIONAL_SIZE, EXPRESS_SIZE
from vfio_user.pci.doorbells import DoorbellPlaces, check_doorbells
from vfio_user.pci.header import HEADER_SIZE
from vfio_user.pci.msix_placement import MsiXPlacement, occupied_indexes, place_msix
from vfio_user.pci.placement import PlacementRequest, place
from vfio_user.pci.registers import Hooks
from vfio_user.pci.shared_areas import MsiXStructure, SharedArea, check_shared_areas

__all__ = ["FunctionDeclaration", "PlacedCapability", "declare_function"]

_BAR_NAME = re.compile(r"bar([0-5])\Z")


class PlacedCapability(NamedTuple):
    """A capability and its place in the chain.

    Attributes:
        name: the attribute it was declared as.
        declaration: what stands there.
        offset: in configuration space.
        next_offset: that of the next one in its chain, 0 for the last.
    """

    name: str
    declaration: AnyCapability
    offset: int
    next_offset: int


@dataclass(frozen=True, kw_only=True)
class FunctionDeclaration:
    """The function every device of a class has.

    Attributes:
        device_class: the class.
        bars: by index; those MSI-X needs for itself included.
        hooks: by BAR index, in the order they run.
        shared_areas: by BAR index, ascending.
        doorbells: by BAR index.
        capabilities: the conventional ones, in the order of their chain.
        extended_capabilities: the extended ones, in the order of theirs.
        msix: where the MSI-X table lies, None without MSI-X.
        config_size: bytes of configuration space, 256 or 4096.
    """

    device_class: type
    bars: Mapping[int, Bar[Any]]
    hooks: Mapping[int, Hooks]
    shared_areas: Mapping[int, tuple[SharedArea, ...]]
    doorbells: Mapping[int, tuple[DoorbellPlaces, ...]]
    capabilities: tuple[PlacedCapability, ...]
    extended_capabilities: tuple[PlacedCapability, ...]
    msix: MsiXPlacement | None
    config_size: int


def declare_function(device_class: type) -> FunctionDeclaration:
    """Collects what a class and its bases declare.

    Args:
        device_class: any class; what it and its bases have as attributes is looked at.

    Raises:
        DefinitionError: two declarations clash, or one of them cannot be; both are named, with their lines.
    """
    bars: dict[int, Bar[Any]] = {}
    areas: dict[str, SharedArea] = {}
    conventional: list[tuple[str, AnyCapability]] = []
    extended: list[tuple[str, AnyCapability]] = []
    seen: dict[int, str] = {}
    for name, member in _members(device_class):
        if not isinstance(member, (Bar, SharedArea, AnyCapability)):
            continue
        if id(member) in seen:
            raise DefinitionError(
                f"{device_class.__name__}.{name} and .{seen[id(member)]} are one declaration ({member.location}): "
                "write it twice"
            )
        seen[id(member)] = name
        if isinstance(member, Bar):
            bars[_bar_index(device_class, name, member)] = member
        elif isinstance(member, SharedArea):
            areas[name] = member
        elif isinstance(member, ExtendedCapability):
            extended.append((name, member))
        elif isinstance(member, Capability):
            conventional.append((name, member))
    _refuse_bar_clashes(bars)
    everything = conventional + extended
    _refuse_repeated(everything)
    for _, capability in everything:
        capability.validate(bars)
    express = any(isinstance(capability, PciExpress) for _, capability in conventional)
    if extended and not express:
        raise DefinitionError(
            f"{extended[0][1].label} is an extended capability, and {device_class.__name__} is a conventional PCI "
            "device without room for it: declare express = PciExpress() too"
        )
    msix = next((capability for _, capability in conventional if isinstance(capability, MsiX)), None)
    placement = None if msix is None else place_msix(msix, bars)
    all_bars = dict(sorted({**bars, **(placement.bars if placement else {})}.items()))
    structures = []
    if msix is not None and placement is not None:
        structures = [
            MsiXStructure("the MSI-X table", *placement.table, msix.table_size),
            MsiXStructure("the MSI-X pending bits", *placement.pba, msix.pba_size),
        ]
    hooks = _hooks(device_class, bars)
    return FunctionDeclaration(
        device_class=device_class,
        bars=all_bars,
        hooks=hooks,
        shared_areas=check_shared_areas(areas, all_bars, structures),
        doorbells=check_doorbells(device_class, bars, hooks),
        capabilities=_chain(conventional, HEADER_SIZE, CONVENTIONAL_SIZE, "capability area"),
        extended_capabilities=_chain(extended, CONVENTIONAL_SIZE, EXPRESS_SIZE, "extended capability area"),
        msix=placement,
        config_size=EXPRESS_SIZE if express else CONVENTIONAL_SIZE,
    )


def _members(device_class: type) -> Iterator[tuple[str, Any]]:
    """The attributes of a class in order of declaration, bases first; an override has its predecessor's place."""
    names: dict[str, None] = {}
    for base in reversed(device_class.__mro__):
        names |= dict.fromkeys(vars(base))
    for name in names:
        yield name, inspect.getattr_static(device_class, name)


def _bar_index(device_class: type, name: str, bar: Bar[Any]) -> int:
    match = _BAR_NAME.match(name)
    if match is None:
        raise DefinitionError(
            f"{device_class.__name__}.{name} ({bar.location}) is a BAR: its name says its index, bar0 to bar5"
        )
    index = int(match[1])
    if bar.width == 64 and index == 5:
        raise bar.error("a 64-bit BAR takes two indexes, and 5 is the last: call it bar4 or lower, or width=32")
    return index


def _refuse_bar_clashes(bars: Mapping[int, Bar[Any]]) -> None:
    for index, bar in bars.items():
        upper = occupied_indexes({at: other for at, other in bars.items() if at != index}).get(index)
        if upper is not None:
            raise DefinitionError(
                f"bar{index} ({bar.location}) is the upper half of bar{index - 1} ({upper.location}), which has 64 "
                f"bits: call it bar{index + 1}, or make bar{index - 1} width=32"
            )


def _refuse_repeated(capabilities: list[tuple[str, AnyCapability]]) -> None:
    first: dict[tuple[bool, int], tuple[str, AnyCapability]] = {}
    for name, capability in capabilities:
        cap_id = getattr(capability, "cap_id", None)
        if not isinstance(cap_id, int):
            raise DefinitionError(f"{name}: {type(capability).__name__} has no cap_id: set it in the class")
        limit = 0xFFFF if isinstance(capability, ExtendedCapability) else 0xFF
        if not 0 <= cap_id <= limit:
            raise DefinitionError(f"{name}: {type(capability).__name__}.cap_id = {cap_id:#x} is not in 0..{limit:#x}")
        key = isinstance(capability, ExtendedCapability), cap_id
        if key in first and not capability.repeatable:
            other_name, other = first[key]
            raise DefinitionError(
                f"{name} ({capability.location}) and {other_name} ({other.location}) are both capability "
                f"{cap_id:#x}, of which a function has one: drop one of them"
            )
        first.setdefault(key, (name, capability))


def _hooks(device_class: type, bars: Mapping[int, Bar[Any]]) -> dict[int, Hooks]:
    """The hooks of each BAR, checked against its registers."""
    by_name = {f"bar{index}": index for index in bars}
    found: dict[int, Hooks] = {}
    for mark in bar_hooks(device_class):
        hook = mark.hook
        index = by_name.get(mark.bar.name)
        if index is None:
            raise hook.error(f"{device_class.__name__} has no {mark.bar.name}: drop the hook too, {hook.name} = None")
        if bars[index].registers is None:
            raise hook.error(
                f"bar{index} ({bars[index].location}) has no registers to hook: declare it with registers="
            )
        found.setdefault(index, Hooks()).add(hook.kind, hook.path, hook.function, hook.location)
    for index, hooks in found.items():
        registers = bars[index].registers
        assert registers is not None
        hooks.check(registers, device_class)
    return found


def _chain(
    capabilities: list[tuple[str, AnyCapability]], start: int, end: int, what: str
) -> tuple[PlacedCapability, ...]:
    """Places capabilities and links them, in order of declaration.

    The extended chain has no pointer to it: it begins at its first byte, so whatever stands there comes first.
    """
    requests = [
        PlacementRequest(
            label=f"{name} = {type(capability).__name__} ({capability.location})",
            size=capability.size,
            at=capability.at,
        )
        for name, capability in capabilities
    ]
    offsets = place(requests, start=start, end=end, what=what)
    chain = [(name, capability, offset) for (name, capability), offset in zip(capabilities, offsets, strict=True)]
    if start == CONVENTIONAL_SIZE:
        chain.sort(key=lambda item: item[2] != start)
    return tuple(
        PlacedCapability(name, capability, offset, following[2] if following else 0)
        for (name, capability, offset), following in zip(chain, [*chain[1:], None], strict=False)
    )

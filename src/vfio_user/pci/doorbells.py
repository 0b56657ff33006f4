"""Doorbells: registers whose writes only say "there is work", as declarations of a device class.

``@bar0.doorbell("kick")`` makes a method the handler of such writes, whichever way they come: as messages, through
a hook of the register block, or through an eventfd the client adds one to (``regions.Doorbell``). What that costs is
told by ``Bar.doorbell``.

Spec: vfio-user "VFIO_USER_DEVICE_GET_REGION_IO_FDS".
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from vfio_user.errors import RegisterDefinitionError
from vfio_user.pci.registers import Hook, HookKind, Hooks, RegisterBlock
from vfio_user.pci.registers._text import Location
from vfio_user.pci.registers.hooks import Target, class_hooks, find_target
from vfio_user.regions import Doorbell

if TYPE_CHECKING:
    from vfio_user.pci.bars import Bar

__all__ = ["DoorbellHook", "DoorbellPlaces", "bind_doorbells", "check_doorbells", "mark_doorbell"]

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "_bar_doorbells"


@dataclass(frozen=True, slots=True)
class DoorbellHook(Hook):
    """A method that is called when a register is written, whatever brings the write.

    Attributes:
        bar: the declaration of the BAR it was declared on.
        value: the one value that rings; None for any.
        shadow: it is called with the value written, whichever way that comes.
    """

    bar: Bar[Any]
    value: int | None
    shadow: bool

    def error(self, what: str) -> RegisterDefinitionError:
        """See ``Hook.error``."""
        value = "" if self.value is None else f", value={self.value:#x}"
        return RegisterDefinitionError(f"@doorbell({self.path!r}{value}) on {self.name} ({self.location}): {what}")


class DoorbellPlaces(NamedTuple):
    """A doorbell of a class, checked, and where it is.

    Attributes:
        hook: the declaration.
        passes_indexes: its handler takes the indexes of arrays.
        size: bytes of the register.
        value: as the bytes of the access are read, least significant first; None for any.
        places: for each element its offset in the BAR, and its indexes.
    """

    hook: DoorbellHook
    passes_indexes: bool
    size: int
    value: int | None
    places: tuple[tuple[int, tuple[int, ...]], ...]


def mark_doorbell(bar: Bar[Any], path: str, value: int | None, shadow: bool, location: Location) -> Callable[[F], F]:
    """The decorator behind ``Bar.doorbell``."""

    def decorate(function: F) -> F:
        marks: list[DoorbellHook] = function.__dict__.setdefault(_MARK, [])
        marks.insert(
            0, DoorbellHook(HookKind.ON_WRITE, path, function.__name__, function, location, bar, value, shadow)
        )
        return function

    return decorate


def check_doorbells(
    device_class: type, bars: Mapping[int, Bar[Any]], hooks: Mapping[int, Hooks]
) -> dict[int, tuple[DoorbellPlaces, ...]]:
    """Collects and checks the doorbells of a device class and its bases.

    Args:
        device_class: the class.
        bars: by index.
        hooks: of each BAR's registers, checked.

    Returns:
        The doorbells of each BAR, bases first.

    Raises:
        RegisterDefinitionError: a doorbell is no register that can be one, two are one, its handler takes other
            arguments than the indexes, or another hook waits for the values that nobody sends any more.
    """
    by_name = {f"bar{index}": index for index in bars}
    found: dict[int, list[DoorbellPlaces]] = {}
    for hook in _doorbell_hooks(device_class):
        index = by_name.get(hook.bar.name)
        if index is None:
            raise hook.error(f"{device_class.__name__} has no {hook.bar.name}: drop it too, {hook.name} = None")
        registers = bars[index].registers
        if registers is None:
            raise hook.error(f"bar{index} ({bars[index].location}) has no registers: declare it with registers=")
        checked = _check_doorbell(hook, registers, device_class)
        for other in found.setdefault(index, []):
            shared = {offset for offset, _ in checked.places} & {offset for offset, _ in other.places}
            if shared and (checked.value == other.value or None in (checked.value, other.value)):
                raise hook.error(
                    f"the same writes ring {other.hook.name} ({other.hook.location}): let one call the other, or give "
                    "each a value="
                )
        if checked.value is None and not hook.shadow:
            _refuse_eavesdroppers(hook, registers, [*class_hooks(registers), *hooks.get(index, ())])
        found[index].append(checked)
    return {index: tuple(doorbells) for index, doorbells in found.items()}


def _doorbell_hooks(device_class: type) -> list[DoorbellHook]:
    found: dict[tuple[str, str, int | None, str], DoorbellHook] = {}
    for base in reversed(device_class.__mro__):
        for member in vars(base).values():
            if callable(member):
                for mark in getattr(member, "__dict__", {}).get(_MARK, ()):
                    found[mark.bar.name, mark.path, mark.value, mark.name] = mark
    return [hook for hook in found.values() if getattr(device_class, hook.name, None) is not None]


def _check_doorbell(hook: DoorbellHook, registers: type[RegisterBlock], device_class: type) -> DoorbellPlaces:
    target = find_target(registers, hook)
    register = target.register
    if target.field is not None:
        raise hook.error(f"a client rings with whole registers: name {register.name!r} ({register.location})")
    if any(part.when is not None for part in (*target.files, register)):
        raise hook.error(f"{register.name!r} ({register.location}) is in a bank, which an eventfd does not know of")
    value = hook.value
    if value is not None and hook.shadow:
        raise hook.error("with shadow= it is called with every value: compare there, and leave value= out")
    if value is not None:
        if not 0 <= value < 256**register.size:
            raise hook.error(f"{register.name!r} ({register.location}) has {register.size} bytes: no write has it")
        value = int.from_bytes(value.to_bytes(register.size, registers.byteorder), "little")
    signature = inspect.signature(getattr(device_class, hook.name))
    for count in (len(target.indexes), 0):
        with contextlib.suppress(TypeError):
            signature.bind(None, *[0] * (count + hook.shadow))
            return DoorbellPlaces(hook, count > 0, register.size, value, _places(target))
    forms = ", ".join(["self", *(f"{name} index" for name in target.indexes)])
    if hook.shadow:
        raise hook.error(f"its handler is called with ({forms}, value)")
    raise hook.error(f"its handler is called with ({forms}) and no value: an eventfd carries none")


def _places(target: Target) -> tuple[tuple[int, tuple[int, ...]], ...]:
    places: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for part in (*target.files, target.register):
        places = [
            (offset + part.offset + part.stride * element, indexes if part.count is None else (*indexes, element))
            for offset, indexes in places
            for element in range(part.elements)
        ]
    return tuple(places)


def _refuse_eavesdroppers(hook: DoorbellHook, registers: type[RegisterBlock], others: Iterable[Hook]) -> None:
    rung = find_target(registers, hook)
    for other in others:
        target = find_target(registers, other)
        reads = other.kind in (HookKind.ON_READ, HookKind.AFTER_READ)
        if not reads and target.register is rung.register and target.files == rung.files:
            raise hook.error(
                f"{other.name} ({other.location}) waits for the values written there, which a client that rings does "
                "not send: keep one of the two"
            )


def bind_doorbells(doorbells: Iterable[DoorbellPlaces], block: RegisterBlock, device: object) -> list[Doorbell]:
    """Connects the doorbells of a BAR to the methods of one device.

    Returns:
        What a client may ring by eventfd. Writes that come as messages ring through a hook of the block.
    """
    made = []
    for hook, passes_indexes, size, value, places in doorbells:
        handler = getattr(device, hook.name)
        rung = partial(_ring_by_message, handler, hook, passes_indexes)
        block.bind([hook], SimpleNamespace(**{hook.name: lambda *arguments, rung=rung: rung(*arguments)}))
        for offset, indexes in places:
            if hook.shadow:
                # The write itself, late: the register stores the value, and every hook hears of it.
                ring = partial(block.write, offset, size)
            else:
                ring = partial(handler, *indexes) if passes_indexes else handler
            made.append(Doorbell(offset, size, value, ring, hook.bar.is_io, hook.shadow))
    return made


def _ring_by_message(handler: Callable[..., Any], hook: DoorbellHook, passes_indexes: bool, *arguments: int) -> None:
    *indexes, new, _old = arguments
    if hook.value is None or new == hook.value:
        handler(*(indexes if passes_indexes else ()), *((new,) if hook.shadow else ()))

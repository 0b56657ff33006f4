"""What tables of registers say besides numbers, in the words all of them share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from vfio_user.pci.registers.block import RegisterBlock
from vfio_user.pci.registers.description import RegisterDescription
from vfio_user.pci.registers.fields import Field
from vfio_user.pci.registers.hooks import Hook
from vfio_user.pci.registers.interchange.notes import Note
from vfio_user.pci.registers.policies import Access
from vfio_user.pci.registers.reset import ResetKind
from vfio_user.pci.registers.views import RegisterFile

__all__ = ["access_words", "field_remarks", "hook_notes", "hooks_of", "paragraphs", "register_remarks"]

#: Where the docstring of a class begins to speak of its arguments, and no more of its registers.
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Ownership|Threading|Spec|Ref):", re.MULTILINE)

_PLAIN = {"RW", "RO", "WO"}


def access_words(access: Access) -> str:
    """A policy by name, and but for the plainest what it does."""
    if access.name in _PLAIN or access.name.startswith("("):
        return access.name
    return f"{access.name} (write: {access.write.value}, read: {access.read.value})"


def register_remarks(item: RegisterDescription) -> list[str]:
    """What there is to say about a register, its documentation first."""
    register = item.register
    remarks = [" ".join(register.doc.split())] if register.doc else []
    if item.alias_of:
        remarks.append(f"alias of {item.alias_of}")
    for selector, values in item.when:
        remarks.append(f"while {selector} = {' or '.join(map(str, sorted(values)))}")
    power_on = register.resets[ResetKind.POWER_ON][1]
    for kind, (kept, value) in register.resets.items():
        if not kept and value != power_on:
            remarks.append(f"{value:#x} after {kind.value}")
    if register.sticky:
        remarks.append(f"sticky over {_kinds(register.sticky)}")
    return remarks


def field_remarks(field: Field) -> list[str]:
    """What there is to say about a field, its documentation first."""
    remarks = [" ".join(field.doc.split())] if field.doc else []
    remarks += [f"{value} = {meaning}" for value, meaning in field.values.items()]
    if field.sticky:
        remarks.append(f"sticky over {_kinds(field.sticky)}")
    return remarks


def paragraphs(block: type[RegisterBlock]) -> list[str]:
    """What the docstring of a class says about its registers, without line ends; [] without one."""
    text = _SECTION.split(inspect.cleandoc(block.__doc__ or ""))[0]
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def hooks_of(block: type[RegisterBlock], item: RegisterDescription) -> Iterator[Hook]:
    """The hooks on a register and its fields: those of its own class, and of the classes around it up to ``block``."""
    owners = [block, *(part.block for part in item.parts if isinstance(part, RegisterFile))]
    for depth, owner in enumerate(owners):
        path = ".".join(part.name for part in item.parts[depth:])
        for hook in owner._hooks_of_class:
            if f"{hook.path}.".startswith(f"{path}."):
                yield hook


def hook_notes(block: type[RegisterBlock]) -> Iterator[Note]:
    """The hooks of a class, which no description says."""
    for hook in block._hooks_of_class:
        yield Note(hook.path, f"its {hook.kind.value} hook {hook.name} ({hook.location}) is code: describe it in doc=")


def _kinds(kinds: frozenset[ResetKind]) -> str:
    return ", ".join(kind.value for kind in ResetKind if kind in kinds)

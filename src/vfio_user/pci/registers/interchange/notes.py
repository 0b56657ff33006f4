"""What an exchange of formats gives besides its result: what the other format, or ours, has no words for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfio_user.pci.registers.block import RegisterBlock

__all__ = ["Exported", "Imported", "Note"]


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was left out, or expressed by something near.

    Attributes:
        where: the register or field, or a line of the source.
        what: what it is and what became of it.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, slots=True)
class Exported:
    """The text of an exported file.

    Attributes:
        text: all of it, with a newline at its end.
        notes: what it does not say.
    """

    text: str
    notes: tuple[Note, ...]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Imported:
    """A register block made from a description in another format.

    Attributes:
        block: the class; subclass it, or bind hooks to its instances.
        notes: what of the description it does not do.
    """

    block: type[RegisterBlock]
    notes: tuple[Note, ...]

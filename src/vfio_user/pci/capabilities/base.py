"""What every capability has: an id, a place in configuration space, and registers in the register language.

A capability is one class, and stands in a device class as an instance of it::

    class Bookkeeping(Capability):
        cap_id = 0x09
        length = Register(0x02, width=8, access=RO, reset=8)
        boots = Register(0x04, access=COUNTER)


    class Card(PciDevice):
        pm = PowerManagement()
        bookkeeping = Bookkeeping(at=0xA0)

That instance is the declaration: read through the class the attribute is the declaration itself, read through a device
it is a copy with registers of its own, ``device.pm.control.power_state``. Header, offset and the links of the chain are
filled in when the function is built.

What depends on the arguments is stored by ``configure``, which runs after every reset: hardware-initialised bits
(HwInit) are read-only to software and survive all of them. Whether a bit exists at all, where another one says so, is
decided by ``before_write`` hooks.

Spec: PCI 3.0 6.7; PCI Express Base 7.5 to 7.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, TypeVar

from vfio_user.errors import DefinitionError, StateError
from vfio_user.pci.bars import Bar
from vfio_user.pci.config_registers import ConfigRegisters
from vfio_user.pci.config_space import ConfigSpace
from vfio_user.pci.events import FunctionEvents
from vfio_user.pci.header import Type0Header
from vfio_user.pci.overlay import ReadOnlyMemory
from vfio_user.pci.registers import RO, Field, Register, ResetKind
from vfio_user.pci.registers._text import Location, here
from vfio_user.regions import MemoryRegion

__all__ = ["AnyCapability", "Capability", "CapabilityHost", "ExtendedCapability"]

C = TypeVar("C")


class CapabilityHost(Protocol):
    """The function a capability belongs to, as the capability sees it."""

    @property
    def config(self) -> ConfigSpace:
        """The configuration space it stands in."""

    @property
    def header(self) -> Type0Header:
        """The first 64 bytes of it."""

    @property
    def events(self) -> FunctionEvents:
        """Where to report what software did."""

    def find(self, kind: type[C]) -> C | None:
        """The function's capability of that class, None without one."""

    def reset(self, kind: ResetKind) -> None:
        """Resets the registers of the whole function."""


class AnyCapability(ConfigRegisters):
    """What conventional and extended capabilities have in common. Subclass one of those.

    Args:
        at: offset in configuration space; None places it.
        size: bytes of the capability, header included; its registers' when not given.

    Attributes:
        at: the offset asked for.
        name: the attribute it was declared as, known once the function is built.
        offset: where it stands in configuration space, known once the function is built.
        location: the line it was declared in.

    Ownership: the declaration belongs to its class and is never written to; each device has a copy.
    """

    cap_id: ClassVar[int]
    #: A function may have more than one of them.
    repeatable: ClassVar[bool] = False
    # With values, because a block takes an unknown name close to a register's for a slip of the pen.
    location: Location = Location("?", 0)
    at: int | None = None
    name: str = ""
    offset: int = 0
    _next: int = 0
    _host: CapabilityHost | None = None
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remembers the arguments: a device makes its own copy from them."""
        self = super().__new__(cls)
        self._arguments = args, kwargs
        self.location = here(2)  # past the metaclass of blocks
        return self

    def __init__(self, *, at: int | None = None, size: int | None = None) -> None:
        needed = type(self).size if size is None else size
        super().__init__(size=-(-needed // 4) * 4)
        self.at = at

    @property
    def label(self) -> str:
        """What errors call it."""
        name = f"{self.name} = " if self.name else ""
        return f"{name}{type(self).__name__} ({self.location})"

    @property
    def host(self) -> CapabilityHost:
        """The function it belongs to.

        Raises:
            StateError: this is the declaration, which belongs to a class and to no function.
        """
        if self._host is None:
            raise StateError(f"{self.label} is a declaration: only the copy a device has belongs to a function")
        return self._host

    def for_device(self, name: str, offset: int, next_offset: int, host: CapabilityHost) -> Self:
        """Makes the copy of one device, in its place and linked to the next capability."""
        args, kwargs = self._arguments
        copy = type(self)(*args, **kwargs)
        copy.location = self.location
        copy.name, copy.offset, copy._next, copy._host = name, offset, next_offset, host
        copy.reset(ResetKind.POWER_ON)
        return copy

    def refuse(self, what: str) -> DefinitionError:
        """An error about this declaration, with the line it stands at."""
        return DefinitionError(f"{self.label}: {what}")

    def check_range(self, **values: tuple[int, int]) -> None:
        """Checks that arguments fit their fields.

        Args:
            values: for each argument its value and the greatest one.

        Raises:
            DefinitionError: one does not fit.
        """
        for name, (value, most) in values.items():
            if not 0 <= value <= most:
                raise self.refuse(f"{name}={value:#x}; its field holds 0 to {most:#x}")

    def add_contents(self, offset: int, contents: bytes, *, writable: bool) -> MemoryRegion:
        """Puts plain bytes behind the registers."""
        region = MemoryRegion(len(contents), contents=contents) if writable else ReadOnlyMemory(contents)
        self.place(offset, region, "contents")
        return region

    def validate(self, bars: Mapping[int, Bar[Any]]) -> None:
        """Checks what can only be checked once its class is complete.

        Args:
            bars: those the class declares, by index.

        Raises:
            DefinitionError: the declaration cannot be.
        """

    def restored(self) -> None:
        """Its registers were loaded from a saved state: does what follows from them. The header is loaded later."""

    def notify(self, register: str) -> None:
        """Tells the device, once the write is over, that software wrote to ``register``."""
        host = self.host
        host.config.call_after_access(host.events.on_capability, self.name, register)

    def __set_name__(self, owner: type, name: str) -> None:
        """Takes the name of the attribute it stands in."""
        if not self.name:
            self.name = name

    def __get__(self, instance: object | None, owner: type[object]) -> Self:
        """The declaration, through a class. Through a device its own copy is found before this is asked."""
        if instance is None:
            return self
        raise StateError(
            f"{self.label} is not built yet in this {owner.__name__}: call super().__init__() before using it"
        )


class Capability(AnyCapability):
    """A capability of the conventional chain, below 0x100. Set ``cap_id`` and declare registers from 2 on."""

    capability_id = Register(0x00, width=8, access=RO)
    next_capability = Register(0x01, width=8, access=RO)

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        self.capability_id = self.cap_id
        self.next_capability = self._next


class ExtendedCapability(AnyCapability):
    """A capability of the extended chain, from 0x100 on. Set ``cap_id`` and declare registers from 4 on.

    Attributes:
        version: of the capability's layout.
    """

    version: ClassVar[int] = 1

    header = Register(
        0x00,
        access=RO,
        fields=[Field("cap_id", (15, 0)), Field("version", (19, 16)), Field("next_capability", (31, 20))],
    )

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        self.header = self._next << 20 | self.version << 16 | self.cap_id

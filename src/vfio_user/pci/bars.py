"""Base address registers, declared as class attributes of a device: ``bar0 = MemoryBar(size=1 << 20, ...)``.

A declaration describes the BAR and stands in its class; each device has a region of its own behind it. Read through a
device the attribute is that region - a register block with its registers as attributes, plain memory, or what your
factory made - and through the class it is the declaration::

    class Edu(PciDevice):
        bar0 = MemoryBar(size=1 << 20, registers=EduRegisters)

        @bar0.on_write("liveness")
        def invert(self, value: int) -> None:
            self.bar0.liveness = ~value & 0xFFFF_FFFF


    Edu.bar0  # the MemoryBar
    Edu().bar0  # an EduRegisters

The index of a BAR comes from its name, ``bar0`` to ``bar5``. A subclass inherits BARs and hooks. It may override a
hook's method, drop the hook by setting that name to None, put another declaration in a BAR's place (the hooks stay, and
are checked against it), or drop a BAR by setting it to None.

Spec: PCI 3.0 6.2.5.1; PCI Express Base 7.5.1.2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar, overload

from vfio_user.errors import DefinitionError, StateError
from vfio_user.pci.doorbells import mark_doorbell
from vfio_user.pci.overlay import OverlayRegion, UnclaimedRegion
from vfio_user.pci.registers import Hook, HookKind, RegisterBlock
from vfio_user.pci.registers._text import here
from vfio_user.pci.shared_areas import SharedArea
from vfio_user.regions import PAGE_SIZE, MemoryRegion, Region, SharedMemoryRegion

__all__ = ["Bar", "BarHook", "IoBar", "MemoryBar", "bar_hooks"]

R = TypeVar("R", bound=Region)
Block = TypeVar("Block", bound=RegisterBlock)
F = TypeVar("F", bound=Callable[..., Any])

_MARK = "_bar_hooks"


class BarHook(NamedTuple):
    """A hook, and the BAR declaration it was declared on."""

    bar: Bar[Any]
    hook: Hook


class Bar(Generic[R]):
    """What memory and I/O BARs have in common. Use one of those.

    Attributes:
        size: bytes, a power of two.
        is_io: an I/O BAR.
        width: bits of the address, 32 or 64.
        prefetchable: reads have no side effects, and writes may be merged.
        registers: the class of its register block, if it has one.
        shared: all of it is memory that a client may map.
        location: the line it was declared in.

    Ownership: belongs to its class and is never written to after it.
    """

    min_size: ClassVar[int]
    kind: ClassVar[str]
    is_io: ClassVar[bool] = False

    def __init__(
        self,
        *,
        size: int,
        width: int,
        prefetchable: bool,
        registers: type[RegisterBlock] | None,
        region: Callable[[Any], Region] | None,
        shared: bool = False,
    ) -> None:
        self.location = here(2)
        self.size = size
        self.width = width
        self.prefetchable = prefetchable
        self.registers = registers
        self.shared = shared
        self._factory = region
        self.name = ""
        if width not in (32, 64):
            raise self.error(f"width={width}; a base address has 32 or 64 bits")
        self._check_size(size)
        if registers is not None and region is not None:
            raise self.error("registers= and region= both say what lies behind it; give one")
        if shared:
            self._check_shared()
        if registers is not None and registers.size > size:
            raise self.error(
                f"{registers.__name__} has {registers.size:#x} bytes of registers, more than size={size:#x}; "
                f"write size={_next_power_of_two(registers.size, self.min_size):#x}"
            )

    @property
    def max_size(self) -> int:
        """The largest size, in bytes, its register can describe."""
        return 1 << self.width - 1

    def _check_size(self, size: int) -> None:
        if size < self.min_size or size & (size - 1):
            better = min(_next_power_of_two(size, self.min_size), self.max_size)
            raise self.error(
                f"size={size:#x} ({size}); a BAR decodes a power of two, at least {self.min_size} bytes: "
                f"write size={better:#x}, and leave the rest of it unclaimed"
            )
        if size > self.max_size:
            way_out = "write width=64" if self.width == 32 and not self.is_io else f"write size={self.max_size:#x}"
            raise self.error(f"size={size:#x}; {self.width} bits describe {self.max_size:#x} bytes at most: {way_out}")

    def _check_shared(self) -> None:
        if self.registers is not None or self._factory is not None:
            raise self.error(
                "shared=True makes memory of all of it, and registers= or region= put something else there: to share "
                "part of it, write tails = bar0.shared_area(0x1000, 0x1000) below it"
            )
        if self.size % PAGE_SIZE:
            raise self.error(f"shared=True and size={self.size:#x}; what is mapped are whole pages of {PAGE_SIZE:#x}")

    def error(self, what: str) -> DefinitionError:
        """An error about this declaration, with the place it stands at."""
        name = f"{self.name} = " if self.name else ""
        return DefinitionError(f"{name}{type(self).__name__} ({self.location}): {what}")

    @property
    def flags(self) -> int:
        """The constant low bits of its register."""
        return 0

    @property
    def mask(self) -> int:
        """The address bits it decodes, as wide as its address."""
        return (1 << self.width) - self.size

    def build(self, device: object) -> R:
        """Makes the region behind it, for one device.

        Raises:
            DefinitionError: the factory made no region, or one larger than the BAR.
        """
        region: Region
        if self.registers is not None:
            region = self.registers(size=self.size)
        elif self._factory is None:
            region = SharedMemoryRegion(self.size) if self.shared else MemoryRegion(self.size)
        else:
            region = self._factory(device)
            if not isinstance(region, Region):
                raise self.error(f"its region= made {region!r}, which is no Region: subclass vfio_user.regions.Region")
            if region.size > self.size:
                raise self.error(f"its region= made {region.size:#x} bytes for a BAR of {self.size:#x}")
        return region  # type: ignore[return-value]  # the overloads of __init__ tie R to what was given

    def fill(self, region: Region) -> Region:
        """The region as the client sees it: exactly as large as the BAR, because QEMU asserts a power of two."""
        if region.size == self.size:
            return region
        return OverlayRegion(UnclaimedRegion(self.size), [(0, region)])

    # -- hooks -----------------------------------------------------------------------------------------------------

    def _decorator(self, kind: HookKind, path: str) -> Callable[[F], F]:
        location = here(2)

        def decorate(function: F) -> F:
            marks: list[BarHook] = function.__dict__.setdefault(_MARK, [])
            # Decorators apply from the bottom up; hooks run in the order they are read.
            marks.insert(0, BarHook(self, Hook(kind, path, function.__name__, function, location)))
            return function

        return decorate

    def before_write(self, path: str) -> Callable[[F], F]:
        """A client writes the register or field; nothing has happened yet. The handler may return another value."""
        return self._decorator(HookKind.BEFORE_WRITE, path)

    def on_write(self, path: str) -> Callable[[F], F]:
        """A client has written the register or field."""
        return self._decorator(HookKind.ON_WRITE, path)

    def on_change(self, path: str) -> Callable[[F], F]:
        """A client's write has changed the register or field."""
        return self._decorator(HookKind.ON_CHANGE, path)

    def on_read(self, path: str) -> Callable[[F], F]:
        """A client reads the register or field; the handler may return what it is to read."""
        return self._decorator(HookKind.ON_READ, path)

    def after_read(self, path: str) -> Callable[[F], F]:
        """A client has read the register or field."""
        return self._decorator(HookKind.AFTER_READ, path)

    def doorbell(self, path: str, *, value: int | None = None, shadow: bool = False) -> Callable[[F], F]:
        """A client writes the register to say "there is work"; which value it writes does not matter, or is ``value``.

        The handler is called without the value (for arrays, with the indexes). A client may then ring through an
        eventfd: with KVM, the guest's write does not even leave the kernel. What that costs:

        - Several rings may be one call, and the call may come after messages sent later, or be lost in a reset.
        - The register does not see the write: what it stores stays, and other hooks of it do not run. So it is best
          declared WO, and a value the device needs best put in memory.
        - While a client is connected that asked for eventfds, register accesses take one system call more.

        Clients that do not ask (QEMU 11.1 is one) send messages, which ring as well: a write of any width, whose value,
        if one is named, is the register's then.

        Args:
            path: a register of its block: ``"kick"``, ``"queues.kick"``.
            value: the one value that rings; others are ordinary writes.
            shadow: the handler is called with the value, too, and the register stores it: the client puts it in memory
                before it rings. Of several written in quick succession only the last may be seen. For clients that
                know libvfio-user's shadow ioeventfds.
        """
        return mark_doorbell(self, path, value, shadow, here(1))

    # -- the attribute ---------------------------------------------------------------------------------------------

    def __set_name__(self, owner: type, name: str) -> None:
        if not self.name:
            self.name = name

    @overload
    def __get__(self, instance: None, owner: type[object]) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[object]) -> R: ...
    def __get__(self, instance: object | None, owner: type[object]) -> Self | R:
        # No __set__: the region a device has in its __dict__ is found first, at the price of a plain attribute.
        if instance is None:
            return self
        raise StateError(
            f"{self.name} is not built yet in this {owner.__name__}: call super().__init__() before using it"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} of {self.size:#x} bytes ({self.location})>"


class MemoryBar(Bar[R]):
    """A memory BAR.

    The client may map it: all of it with ``shared=True``, parts of it with ``shared_area``. Its accesses then need no
    message, go at the speed of memory, and are not noticed by the device. One such area in any BAR has a price: QEMU
    then waits for the reply to every register write of the whole device, where it would have posted the write. So share
    what is accessed in bulk, and do without where a driver mostly writes registers.

    Args:
        size: bytes, a power of two, 16 or more. 4096 or more lets a client map it; Windows wants 16 KiB for NVMe.
        prefetchable: reads have no side effects, and writes may be merged.
        width: 32 or 64 bits of address; 64 takes this BAR's index and the next.
        shared: plain memory that the client may map, a ``SharedMemoryRegion``; whole pages.
        registers: the register block behind it; what lies beyond its registers is unmodelled.
        region: makes the region behind it, given the device; it may be smaller than the BAR. Without ``registers`` or
            ``region`` the BAR is plain memory.

    Raises:
        DefinitionError: the size is no power of two, too small, or too large for its width.
    """

    min_size = 16
    kind = "memory"

    @overload
    def __init__(
        self: MemoryBar[SharedMemoryRegion],
        size: int,
        *,
        shared: Literal[True],
        prefetchable: bool = ...,
        width: int = ...,
    ) -> None: ...
    @overload
    def __init__(self: MemoryBar[MemoryRegion], size: int, *, prefetchable: bool = ..., width: int = ...) -> None: ...
    @overload
    def __init__(
        self: MemoryBar[Block], size: int, *, registers: type[Block], prefetchable: bool = ..., width: int = ...
    ) -> None: ...
    @overload
    def __init__(
        self: MemoryBar[R], size: int, *, region: Callable[[Any], R], prefetchable: bool = ..., width: int = ...
    ) -> None: ...
    def __init__(
        self,
        size: int,
        *,
        prefetchable: bool = False,
        width: int = 32,
        registers: type[Any] | None = None,
        region: Callable[[Any], Any] | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__(
            size=size, width=width, prefetchable=prefetchable, registers=registers, region=region, shared=shared
        )

    def shared_area(self, offset: int, size: int, *, when: Callable[[Any], bool] | None = None) -> SharedArea:
        """Makes part of it memory that a client may map, beside its registers: ``tails = bar0.shared_area(...)``.

        Read through a device, the attribute is that memory, a memoryview. The first area counts for SPDK, which maps
        one; others it reaches by messages.

        Args:
            offset: bytes into the BAR, the start of a page.
            size: bytes, whole pages.
            when: asked once, while a device is made, whether that one has it. A device without it has there what lies
                beneath: registers, which such an area may cover. None for every device.

        Raises:
            DefinitionError: they are no whole pages; with ``when``, once a device has it.
        """
        return SharedArea(self, offset, size, here(1), when)

    @property
    def flags(self) -> int:
        """See ``Bar.flags``."""
        return (4 if self.width == 64 else 0) | (8 if self.prefetchable else 0)


class IoBar(Bar[R]):
    """An I/O BAR.

    Args:
        size: bytes, a power of two, 4 or more. The specification allows 256; more works with QEMU, up to 64 KiB.
        registers: the register block behind it; what lies beyond its registers is unmodelled.
        region: makes the region behind it, given the device; it may be smaller than the BAR. Without ``registers`` or
            ``region`` the BAR is plain memory.

    Raises:
        DefinitionError: the size is no power of two, below 4 or above 64 KiB.
    """

    min_size = 4
    kind = "I/O"
    is_io = True

    @overload
    def __init__(self: IoBar[MemoryRegion], size: int) -> None: ...
    @overload
    def __init__(self: IoBar[Block], size: int, *, registers: type[Block]) -> None: ...
    @overload
    def __init__(self: IoBar[R], size: int, *, region: Callable[[Any], R]) -> None: ...
    def __init__(
        self, size: int, *, registers: type[Any] | None = None, region: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__(size=size, width=32, prefetchable=False, registers=registers, region=region)

    @property
    def max_size(self) -> int:
        """All the I/O space a PC has."""
        return 1 << 16

    @property
    def flags(self) -> int:
        """See ``Bar.flags``."""
        return 1


def _next_power_of_two(size: int, least: int) -> int:
    return max(least, 1 << max(size - 1, 0).bit_length())


def bar_hooks(device_class: type) -> list[BarHook]:
    """The hooks in a device class and its bases, bases first; one declared again replaces the earlier one."""
    found: dict[tuple[HookKind, str, str, str], BarHook] = {}
    for base in reversed(device_class.__mro__):
        for member in vars(base).values():
            if callable(member):
                for mark in getattr(member, "__dict__", {}).get(_MARK, ()):
                    found[mark.hook.kind, mark.bar.name, mark.hook.path, mark.hook.name] = mark
    return [mark for mark in found.values() if getattr(device_class, mark.hook.name, None) is not None]

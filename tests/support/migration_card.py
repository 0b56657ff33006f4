"""A device with something of everything that migrates, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.raw_client import RawClient, memory_session
from vfio_user.pci import MemoryBar, MsiX, Register, RegisterBlock
from vfio_user.protocol.migration import MigrationState
from vfio_user.server.device import Device
from vfio_user.server.pci_device import PciDevice

__all__ = ["PAGE", "Card", "session"]

PAGE = 4096


class Registers(RegisterBlock):
    value = Register(0x00)
    go = Register(0x04)
    done = Register(0x08)


class Card(PciDevice):
    """Registers, memory, MSI-X, work put off, and an attribute."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    migratable = True
    saved_attributes = ("history", "buffer", "last")
    enforce_bus_master = False
    msix = MsiX(vectors=4)
    bar0 = MemoryBar(size=PAGE, registers=Registers)
    bar2 = MemoryBar(size=1 << 18)

    def __init__(self) -> None:
        super().__init__()
        self.history: list[int] = []
        self.buffer = bytearray(8)
        self.last: int | None = None
        self.states: list[tuple[MigrationState, MigrationState]] = []
        self.fail_in: MigrationState | None = None
        self.loaded = 0

    @bar0.on_write("go")
    def start(self, value: int) -> None:
        self.call_soon(self.finish, value)

    def finish(self, value: int) -> None:
        self.history.append(value)
        self.last = value
        self.buffer[value % 8] = 1
        self.bar0.done = value
        self.raise_interrupt(value % 4)

    def on_state(self, old: MigrationState, new: MigrationState) -> None:
        self.states.append((old, new))
        if new == self.fail_in:
            raise RuntimeError("broken")

    def on_loaded(self) -> None:
        self.loaded += 1


@contextmanager
def session(device: Device, *, strict: bool = True) -> Iterator[RawClient]:
    """A client that has negotiated."""
    with memory_session(device, strict=strict) as client:
        client.negotiate()
        yield client

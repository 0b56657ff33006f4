"""The servers that are measured, written as a user writes one: ``python -m bench.serve memory SOCKET``."""

from __future__ import annotations

import sys
from collections.abc import Callable

from vfio_user.pci.registers import Register, RegisterBlock, on_read, on_write
from vfio_user.regions import MemoryRegion, Region
from vfio_user.server.device import Device
from vfio_user.server.server import Server, run_servers

__all__ = ["KINDS"]


class Registers(RegisterBlock):
    """Four registers, as a small device has."""

    identification = Register(0x00, reset=0x0100_00ED)
    scratch = Register(0x04)
    status = Register(0x08)
    hooked = Register(0x0C)

    @on_read("hooked")
    def read_hooked(self, value: int) -> int:
        """Device code at every read."""
        return value

    @on_write("hooked")
    def write_hooked(self, value: int) -> None:
        """Device code at every write."""


#: What there is to serve: a region each.
KINDS: dict[str, Callable[[], Region]] = {"memory": lambda: MemoryRegion(4096), "registers": Registers}


def main(kind: str, path: str) -> None:
    """Serves one of ``KINDS`` until it is told to stop."""
    device = Device()
    device.set_region(0, KINDS[kind]())
    run_servers(Server(device, path))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The servers that are measured, written as a user writes one: ``python -m bench.serve memory SOCKET``."""

from __future__ import annotations

import sys

from vfio_user import MemoryBar, PciDevice, Register, RegisterBlock, Server, on_read, on_write, run_servers

__all__ = ["DEVICES", "MemoryDevice", "RegisterDevice", "Registers"]


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


class MemoryDevice(PciDevice):
    """Plain memory in BAR 0."""

    vendor_id, device_id, class_code = 0x1234, 0x0001, 0x058000
    bar0 = MemoryBar(size=4096)


class RegisterDevice(PciDevice):
    """Declared registers in BAR 0."""

    vendor_id, device_id, class_code = 0x1234, 0x0002, 0xFF0000
    bar0 = MemoryBar(size=4096, registers=Registers)


#: What there is to serve.
DEVICES: dict[str, type[PciDevice]] = {"memory": MemoryDevice, "registers": RegisterDevice}


def main(name: str, path: str) -> None:
    """Serves one of ``DEVICES`` until it is told to stop."""
    run_servers(Server(DEVICES[name](), path))


if __name__ == "__main__":
    main(*sys.argv[1:])

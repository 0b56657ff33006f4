"""Descriptors of devices, for programs that look for one to start: a file each in ``/usr/share/vfio-user``.

Spec: "Backend program conventions": a JSON file under ``/usr/share/vfio-user``; in the form of ``VhostUserBackend`` of
QEMU's ``docs/interop/vhost-user.json``, with ``arguments`` beside it, since one program serves every device, and with
the ``features`` such a program prints there by ``--print-capabilities``.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from vfio_user.devices.registry import DeviceEntry
from vfio_user.server.device import Device

__all__ = ["BINARY", "describe", "descriptor_name", "linux_drivers", "write_descriptor"]

#: Where distributions install the program.
BINARY = "/usr/bin/vfio-user"

#: Types of the specification, by the PCI class and subclass they are; whatever it does not know is "pci".
_TYPES = {0x0100: "scsi", 0x0108: "block", 0x0200: "net", 0x0300: "gpu", 0x0780: "console"}


def describe(entry: DeviceEntry, cls: type[Device], *, binary: str = BINARY) -> dict[str, object]:
    """The descriptor of a device.

    Args:
        entry: its name.
        cls: what that loads.
        binary: the program, with its path.
    """
    summary = (inspect.getdoc(cls) or entry.name).partition("\n\n")[0].replace("\n", " ")
    class_code = getattr(cls, "class_code", None)
    ids = [getattr(cls, name, None) for name in ("vendor_id", "device_id")]
    tags = linux_drivers(cls)
    if all(isinstance(each, int) for each in ids):
        tags.insert(0, ":".join(f"{each:04x}" for each in ids))
    return {
        "description": summary.removesuffix("."),
        "type": _TYPES.get(class_code >> 8, "pci") if isinstance(class_code, int) else "pci",
        "binary": binary,
        "arguments": ["serve", entry.name],
        "tags": tags,
        "features": ["socket-path", "fd", *(["migration"] if cls.migratable else [])],
    }


def linux_drivers(cls: type[Device]) -> list[str]:
    """The kernel modules that drive it, by name: those of ``PciDevice.linux_modules``, without their parameters."""
    return [module.partition(" ")[0] for module in getattr(cls, "linux_modules", ())]


def descriptor_name(entry: DeviceEntry) -> str:
    """The name of the file; the number orders them, as with those of vhost-user: an administrator's own come first."""
    return f"50-{entry.name}.json"


def write_descriptor(entry: DeviceEntry, cls: type[Device], folder: Path) -> Path:
    """Writes the file, and returns its path.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / descriptor_name(entry)
    path.write_text(json.dumps(describe(entry, cls), indent=2) + "\n")
    return path

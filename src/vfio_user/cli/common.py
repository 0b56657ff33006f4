"""What commands share: devices named on the command line, the log, and the trace of ``-v``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfio_user.server.device import Device
    from vfio_user.server.session import Observer

__all__ = [
    "NamedDevice",
    "add_verbose",
    "make_named_device",
    "new_observer",
    "pci_id",
    "runtime_folder",
    "seconds",
    "setting",
    "start_log",
]


@dataclass(frozen=True)
class NamedDevice:
    """A device made for a command.

    Attributes:
        name: what to call it in a line of output.
        device: the device.
    """

    name: str
    device: Device

    @property
    def identity(self) -> str:
        """Its name, and its PCI ids if it has any: ``edu 1234:11e8``."""
        ids = pci_id(self.device)
        return f"{self.name} {ids}" if ids else self.name


def pci_id(device: Device | type[Device]) -> str:
    """``1234:11e8``; "" for a device that is no PCI device."""
    vendor_id, device_id = getattr(device, "vendor_id", None), getattr(device, "device_id", None)
    if isinstance(vendor_id, int) and isinstance(device_id, int):
        return f"{vendor_id:04x}:{device_id:04x}"
    return ""


def make_named_device(text: str, settings: dict[str, str]) -> NamedDevice:
    """Finds a device class and makes a device of it; see ``devices.registry`` and ``devices.options``."""
    from vfio_user.devices.options import make_device
    from vfio_user.devices.registry import find_device

    cls = find_device(text)
    is_place = ":" in text or "/" in text or text.endswith(".py")
    name = cls.__name__ if is_place else text
    return NamedDevice(name, make_device(cls, settings, name=name))


def setting(text: str) -> tuple[str, str]:
    """Reads ``name=value``, for argparse."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    return name, value


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Adds ``-v``."""
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="print each message on standard error: -v a line, -vv its fields too, -vvv its bytes too",
    )


def start_log(verbose: int) -> None:
    """Sends the package's log to standard error: warnings, and with ``-v`` what happens to connections."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("vfio-user: %(levelname)s: %(message)s"))
    log = logging.getLogger("vfio_user")
    log.addHandler(handler)
    log.setLevel(logging.INFO if verbose else logging.WARNING)


def new_observer(named: NamedDevice, verbose: int, *, label: bool = False) -> Observer | None:
    """What prints the messages of a device's sessions; None without ``-v``, so that nothing is spent on it.

    Args:
        named: the device.
        verbose: how often ``-v`` was given.
        label: begins each line with the device's name.
    """
    if not verbose or sys.stderr is None:
        return None
    from vfio_user.trace.names import DeviceNames
    from vfio_user.trace.observer import Detail, TraceObserver

    detail = Detail(min(verbose, max(Detail)))
    return TraceObserver(sys.stderr, detail, names=DeviceNames(named.device), label=named.name if label else "")


def runtime_folder() -> str:
    """Where sockets go that nobody named: private to the user where the system has such a place."""
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    return folder if os.path.isdir(folder) else "/tmp"  # noqa: S108, PTH112 - the name in it is ours alone: it has our pid


def seconds(text: str) -> float:
    """The ``type`` of options that are time limits: seconds, up to an hour."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 3600:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time limit: it must be a number of seconds, over 0 up to 3600"
        )
    return number

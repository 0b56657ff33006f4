"""Devices of this process, served on threads for a QEMU that this process starts."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vfio_user.cli.common import NamedDevice, new_observer
from vfio_user.server.device import Device
from vfio_user.server.server import Server
from vfio_user.vm.qemu import VfioUserDevice

__all__ = ["UNCLASSIFIED", "linux_modules", "plugged_in"]

#: A class code of no particular kind, for devices that declare none.
UNCLASSIFIED = 0xFF0000


@contextlib.contextmanager
def plugged_in(
    devices: Sequence[NamedDevice], *, verbose: int = 0, firmware: bool = True
) -> Iterator[list[VfioUserDevice]]:
    """Serves devices, each on a thread of its own, and yields what to plug into QEMU.

    Args:
        devices: what to serve. Their sockets lie in a folder only this user can enter.
        verbose: traces messages; see ``common.new_observer``.
        firmware: whether the machine has firmware that gives devices their addresses. Where it has not, Linux does,
            but never to a device of class 0: such a one is shown with another class.

    Ownership: at the end the servers are closed and the folder is removed; the devices stay usable.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfio-user-")))
        plugs = []
        for number, named in enumerate(devices):
            path = folder / f"{number}.sock"
            observer = new_observer(named, verbose, label=len(devices) > 1)
            stack.enter_context(Server(named.device, path, observer=observer)).start()
            classless = getattr(named.device, "class_code", None) == 0
            plugs.append(VfioUserDevice(path, class_code=UNCLASSIFIED if classless and not firmware else None))
        yield plugs


def linux_modules(devices: Iterable[NamedDevice | type[Device]]) -> list[str]:
    """The kernel modules of the devices' drivers, each once, as their classes name them in ``linux_modules``."""
    sources = [each.device if isinstance(each, NamedDevice) else each for each in devices]
    names = [name for source in sources for name in getattr(source, "linux_modules", ())]
    return list(dict.fromkeys(names))

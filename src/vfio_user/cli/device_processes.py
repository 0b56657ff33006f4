"""Devices in processes of their own, for a QEMU that this process starts: the way they run in production.

Each process is given a socket that listens already, so nobody has to wait for it: QEMU's connection does, until the
device is there. The socket closes with the process, and QEMU notices.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_user.cli.placement import DeviceRequest
from vfio_user.cli.plugged import UNCLASSIFIED
from vfio_user.vm.process import ChildProcess
from vfio_user.vm.qemu import VfioUserDevice

if TYPE_CHECKING:
    from vfio_user.server.device import Device
    from vfio_user.vm.machine import VirtualMachine

__all__ = ["DeviceProcess", "in_processes", "wait_for_an_end"]

#: Seconds a device has to end by itself once it was told to.
_END_TIMEOUT = 5.0

_STANDARD_ERROR = 2


@dataclass(frozen=True)
class DeviceProcess:
    """A device, and the process that serves it.

    Attributes:
        name: of the device.
        process: runs ``vfio-user serve``.
        plug: what to plug into QEMU.
    """

    name: str
    process: ChildProcess
    plug: VfioUserDevice


@contextlib.contextmanager
def in_processes(
    devices: Sequence[tuple[DeviceRequest, type[Device]]], *, verbose: int = 0, firmware: bool = True
) -> Iterator[list[DeviceProcess]]:
    """Starts a process for each device, and yields them.

    Args:
        devices: what was asked for, and its class.
        verbose: traces messages, as ``serve -v`` does.
        firmware: see ``plugged.plugged_in``.

    Ownership: at the end the processes are told to end, and end; then the sockets' folder is removed.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfio-user-")))
        children: list[DeviceProcess] = []
        stack.callback(_end_all, children)
        for number, (request, cls) in enumerate(devices):
            path = folder / f"{number}.sock"
            classless = getattr(cls, "class_code", None) == 0
            plug = VfioUserDevice(path, class_code=UNCLASSIFIED if classless and not firmware else None)
            children.append(DeviceProcess(request.name, _start(request, path, verbose), plug))
        yield children


def _start(request: DeviceRequest, path: Path, verbose: int) -> ChildProcess:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        command = [sys.executable, "-m", "vfio_user", "serve", request.name, f"--fd={listener.fileno()}"]
        for name, value in request.settings.items():
            command += ["--set", f"{name}={value}"]
        command += ["-v"] * verbose
        return ChildProcess(command, pass_fds=[listener.fileno()], output=subprocess.DEVNULL, errors=_STANDARD_ERROR)


def _end_all(children: Sequence[DeviceProcess]) -> None:
    """All are told, then waited for."""
    for child in children:
        child.process.signal(signal.SIGTERM)
    deadline = time.monotonic() + _END_TIMEOUT
    for child in children:
        child.process.wait(max(0.0, deadline - time.monotonic()))
        child.process.close()


def wait_for_an_end(
    machine: VirtualMachine, children: Sequence[DeviceProcess], timeout: float | None
) -> DeviceProcess | None:
    """Waits until the machine ends, or a device's process does before it.

    Args:
        machine: runs.
        children: those of its devices.
        timeout: seconds; forever when None.

    Returns:
        The first device whose process ended; None when the machine did, or neither in that time.
    """
    poller = select.poll()
    poller.register(machine, select.POLLIN)
    by_fd = {child.process.fileno(): child for child in children}
    for fd in by_fd:
        poller.register(fd, select.POLLIN)
    ended = {fd for fd, _ in poller.poll(None if timeout is None else max(0.0, timeout) * 1000)}
    if machine.fileno() in ended:
        return None
    return next((by_fd[fd] for fd in ended), None)

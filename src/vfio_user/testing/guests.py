"""Guests for tests: Linux in QEMU, with the devices under test plugged in.

`MachineFactory` starts machines from a few words; `GuestFactory`, which the fixture ``guest`` gives, serves devices
beside one and returns its Linux.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from vfio_user.server.device import Device
from vfio_user.server.server import Server
from vfio_user.vm import Guest, GuestKit, QemuCommand, VfioUserDevice, VirtualMachine, build_initramfs

__all__ = ["GuestFactory", "MachineFactory"]


class MachineFactory:
    """Makes machines of one kit. Leaving its ``with`` stops all of them, the newest first.

    Args:
        kit: what they are made of.
        directory: a folder for their consoles and sockets, which is there; it is the caller's.
    """

    def __init__(self, kit: GuestKit, directory: Path) -> None:
        self.kit = kit
        self._directory = directory
        self._running = ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def __call__(
        self,
        machine: str = "q35",
        *,
        devices: Iterable[VfioUserDevice | Mapping[str, object] | str] = (),
        modules: Iterable[str] = (),
        load: Iterable[str] = (),
        packages: Iterable[str] = (),
        files: Mapping[str, bytes | str | Path] | None = None,
        main: str | None = None,
        **command: Any,
    ) -> VirtualMachine:
        """Starts a machine. The first arguments say what is in it; ``command`` are fields of `QemuCommand`.

        Raises:
            VmUnavailableError: what the guest is to have cannot be got.
            VmLaunchError: QEMU does not start.
        """
        image = build_initramfs(self.kit, modules=modules, load=load, packages=packages, files=files, main=main)
        description = QemuCommand(
            executable=self.kit.qemu.path,
            machine=machine,
            kernel=self.kit.kernel,
            initrd=image,
            devices=tuple(devices),
            **command,
        )
        self._count += 1
        running = VirtualMachine(description, directory=self._directory / f"vm{self._count}")
        return self._running.enter_context(running)


class GuestFactory:
    """What the fixture ``guest`` gives: call it with the devices a guest is to have.

    Args:
        kit: what guests are made of.
        directory: a folder for their consoles, which is there; it is the caller's.
    """

    def __init__(self, kit: GuestKit, directory: Path) -> None:
        self._running = ExitStack()
        # A test's own folder may well have a name too long for a UNIX socket.
        self._sockets = Path(self._running.enter_context(tempfile.TemporaryDirectory(prefix="vfio-user-")))
        self._directory = directory
        self._kit = kit
        self._devices = self._guests = 0

    def __call__(self, *devices: Device, machine: str = "q35", **options: Any) -> Guest:
        """Serves devices, and boots a Linux that has them, in their order.

        Args:
            devices: each is served on a thread of its own, and taken out when the test is over.
            machine: QEMU's name of the machine: ``q35``, ``pc``, ``virt``.
            options: ``modules`` to have and to ``load``, ``packages``, ``files``: those of `MachineFactory`.

        Returns:
            The guest; it obeys commands: ``guest.run("lspci")``.

        Raises:
            VmUnavailableError: what the guest is to have cannot be got.
            VmLaunchError: QEMU does not start, or ends before Linux has booted.
            VmTimeoutError: Linux does not boot in time.
        """
        plugged = []
        for device in devices:
            self._devices += 1
            socket = self._sockets / f"{self._devices}.sock"
            self._running.enter_context(Server(device, socket).start())
            plugged.append(VfioUserDevice(socket))
        self._guests += 1
        directory = self._directory / f"guest{self._guests}"
        directory.mkdir()
        machines = self._running.enter_context(MachineFactory(self._kit, directory))
        booted = machines(machine, devices=plugged, **options).guest
        booted.wait_ready()
        return booted

    def close(self) -> None:
        """Stops the guests, then their devices; what was started last goes first."""
        self._running.close()

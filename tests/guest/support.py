"""What the tests in guests share: machines made from a few words, and stopped whatever happens."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from vfio_user.vm import GuestKit, QemuCommand, VfioUserDevice, VirtualMachine, build_initramfs


class VmFactory:
    """Makes machines of one kit. Leaving its ``with`` stops all of them, the newest first."""

    def __init__(self, kit: GuestKit, directory: Path) -> None:
        self.kit = kit
        self._directory = directory
        self._machines = ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._machines.close()

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
        """Starts a machine. The first arguments say what is in it; ``command`` are fields of `QemuCommand`."""
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
        return self._machines.enter_context(running)


def wait_for(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Waits until something another thread is to do has been done.

    Raises:
        AssertionError: it was not, in that many seconds.
    """
    deadline = time.monotonic() + timeout
    turn = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{inspect.getsource(condition).strip()} did not come true in {timeout} s"
        turn.wait(0.001)

"""Which QEMU this is, and whether it can be a client of a vfio-user device."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vfio_user.errors import VmUnavailableError

__all__ = ["MINIMUM_VERSION", "Qemu", "QemuVersion", "inspect_qemu"]

#: Seconds QEMU may take to answer a question about itself.
_TIMEOUT = 30.0


class QemuVersion(NamedTuple):
    """A QEMU version; versions compare as one expects."""

    major: int
    minor: int
    micro: int = 0

    @classmethod
    def parse(cls, text: str) -> QemuVersion:
        """Reads the output of ``--version``.

        Raises:
            ValueError: it names no version.
        """
        found = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", text)
        if found is None:
            raise ValueError(f"no QEMU version in {text[:80]!r}")
        return cls(int(found[1]), int(found[2]), int(found[3] or 0))

    def __str__(self) -> str:
        """As QEMU writes it: ``10.1.0``."""
        return f"{self.major}.{self.minor}.{self.micro}"


#: The first QEMU with the vfio-user client.
MINIMUM_VERSION = QemuVersion(10, 1)


@dataclass(frozen=True)
class Qemu:
    """A QEMU on this machine.

    Attributes:
        path: the program, or a wrapper that runs it.
        version: what it says it is.
        has_vfio_user: whether it has the device ``vfio-user-pci``; a build may leave it out.
    """

    path: Path
    version: QemuVersion
    has_vfio_user: bool

    @property
    def is_usable(self) -> bool:
        """Whether a vfio-user device can be plugged into it."""
        return self.has_vfio_user and self.version >= MINIMUM_VERSION

    @property
    def shortcoming(self) -> str:
        """Why it is not usable, as the end of a sentence; empty when it is."""
        if self.version < MINIMUM_VERSION:
            return f"is older than {MINIMUM_VERSION}, the first with a vfio-user client"
        return "" if self.has_vfio_user else "was built without the device vfio-user-pci"


def inspect_qemu(path: Path) -> Qemu:
    """Asks a QEMU for its version and its devices.

    Raises:
        VmUnavailableError: it does not run, or does not answer like QEMU.
    """
    try:
        version = QemuVersion.parse(_ask(path, "--version"))
    except ValueError as error:
        raise VmUnavailableError(f"{path} does not answer like QEMU: {error}") from error
    # Older versions have no such device; asking costs as much as starting it.
    has_vfio_user = version >= MINIMUM_VERSION and '"vfio-user-pci"' in _ask(path, "-device", "help")
    return Qemu(path, version, has_vfio_user)


def _ask(path: Path, *arguments: str) -> str:
    try:
        outcome = subprocess.run(
            [str(path), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VmUnavailableError(f"{path} does not run: {error}") from error
    if outcome.returncode != 0:
        raise VmUnavailableError(
            f"{path} {' '.join(arguments)} failed (status {outcome.returncode}): {outcome.stderr.strip()[-300:]}"
        )
    return outcome.stdout

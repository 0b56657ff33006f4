"""Helpers of the PCI tests: a card with everything, and a decoder that knows nothing of our code."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vfio_user.pci.dump import format_lspci


@pytest.fixture
def lspci(tmp_path: Path) -> Callable[[bytes], str]:
    """Decodes a configuration space with pciutils."""
    program = shutil.which("lspci")
    if program is None:
        pytest.skip("lspci is not on the PATH: install pciutils to have it read our configuration space")

    def decode(config: bytes) -> str:
        dump = tmp_path / "dump"
        dump.write_text(format_lspci(config))
        done = subprocess.run([program, "-vvv", "-F", dump], capture_output=True, text=True, check=True)
        return done.stdout

    return decode

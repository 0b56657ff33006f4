from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vfio_user.vm


def test_every_name_is_there() -> None:
    for name in vfio_user.vm.__all__:
        assert getattr(vfio_user.vm, name).__module__.startswith("vfio_user.vm.")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = vfio_user.vm.nothing


def test_a_command_line_costs_no_more_than_it_must() -> None:
    """`serve` prints QEMU's arguments: that may not bring in what fetches packages or runs machines."""
    script = "import sys; from vfio_user.vm import qemu_arguments_for; print(*sorted(sys.modules))"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    listing = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    loaded = set(listing.stdout.split())
    assert {"vfio_user.vm.qemu"} <= loaded
    assert not {"asyncio", "tarfile", "lzma", "tempfile", "vfio_user.vm.machine", "qemu"} & loaded

"""Files of faults: what they say, and what is said of those that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.nvme import bench, fails_with
from vfio_user.devices.nvme import Nvme
from vfio_user.devices.nvme.fault_file import load_faults
from vfio_user.devices.nvme.faults import FaultKind
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode
from vfio_user.hardware.nvme.status import Status

GOOD = """\
# media errors
[[fault]]
kind = "status"
command = "read"
lbas = [100, 108]
status = "unrecovered_read_error"
every = 3

[[fault]]
kind = "delay"
command = "admin.identify"
seconds = 2
probability = 0.5
seed = 7
"""


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(GOOD)
    media, late = load_faults(path)
    assert (media.kind, media.command, media.lbas) == (FaultKind.STATUS, NvmOpcode.READ, range(100, 108))
    assert (media.status, media.every) == (Status.UNRECOVERED_READ_ERROR, 3)
    assert (late.kind, late.command, late.queue) == (FaultKind.DELAY, AdminOpcode.IDENTIFY, 0)
    assert (late.seconds, late.probability, late.seed) == (2, 0.5, 7)


def test_the_option_of_the_device(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text('[[fault]]\nkind = "status"\nstatus = 0x286\n')
    with bench(faults=str(path)) as nvme, fails_with(Status.ACCESS_DENIED):
        nvme.driver.read(nvme.queue, 0, 1)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("[[fault]\n", None, "this is no TOML"),
        ("\n[fault]\n", 2, "in two brackets"),
        ("fautl = 1\n", 1, "fautl: the file has"),
        ('[[fault]]\nkind = "drop"\n\n[[fault]]\n', 4, "kind: missing"),
        ('[[fault]]\nkind = "dorp"\n', 2, "kind: 'dorp': it is one of status, delay"),
        ('[[fault]]\nkind = "drop"\n[[fault]]\nkind = "drop"\nntth = 1\n', 5, "ntth: there is no such key"),
        ('[[fault]]\nkind = "drop"\nnth = "1"\n', 3, "nth: '1': it is a whole number"),
        ('[[fault]]\nkind = "drop"\nnth = true\n', 3, "nth: True: it is a whole number"),
        ('[[fault]]\nkind = "drop"\nnth = 0\n', 3, "nth=0: commands are counted from 1"),
        ('[[fault]]\ncommand = "raed"\nkind = "drop"\n', 2, "command: 'raed': it is one of"),
        ('[[fault]]\nkind = "status"\nstatus = "oops"\n', 3, "there is no such status"),
        ('[[fault]]\nkind = "drop"\nlbas = [1]\n', 3, r"it is \[first, end\]"),
        ('[[fault]]\nkind = "drop"\nlbas = [4, 4]\n', 3, "at least one block"),
    ],
)
def test_files_that_are_wrong(text: str, line: int | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told) as caught:
        Nvme(image="null:1M", faults=str(path))
    assert str(caught.value).startswith(f"{path}:{'' if line is None else f'{line}:'} ")

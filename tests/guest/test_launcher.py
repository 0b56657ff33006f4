"""``vfio-user boot`` with several devices: the scenario of the launcher script of the 2021 series, and its ends."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.support import program
from tests.guest.test_rom import greeting
from vfio_user.errors import VmUnavailableError
from vfio_user.pci import build_option_rom
from vfio_user.vm import GuestKit

pytestmark = [pytest.mark.guest]

#: Two of ours and one of QEMU's in one slot, and one of ours elsewhere.
TOPOLOGY = [
    "--device=edu@05.0,qemu.romfile=my.rom,dma_mask=0xfff",
    "--device=gpio-pci-idio-16@05.1",
    "--qemu-device=pci-testdev,addr=05.2",
    "--device=edu@06",
]

#: What the guest says of each function: place, ids, driver; then of the ROM, and of the driver's own work.
SURVEY = """
for f in /sys/bus/pci/devices/*; do
  echo "function ${f##*:} $(cat $f/vendor):$(cat $f/device) $(readlink $f/driver | sed 's,.*/,,')"
done
cd /sys/bus/pci/devices/0000:00:05.0
echo 1 >rom; echo "rom $(wc -c <rom) $(sha256sum <rom)"
echo "header $(hexdump -s 14 -n 1 -e '1/1 "%02x"' config) $(hexdump -s 14 -n 1 -e '1/1 "%02x"' ../0000:00:06.0/config)"
echo "lines $(cat ../0000:00:05.1/gpio/gpiochip*/ngpio)"
"""


@pytest.fixture
def my_rom(tmp_path: Path) -> bytes:
    code = greeting("\r\na ROM of the client's\r\n") + bytes(700)
    rom = build_option_rom(vendor_id=0x1234, device_id=0x11E8, class_code=0x00FF00, code=code)
    (tmp_path / "my.rom").write_bytes(rom)
    return rom


@contextmanager
def booting(*words: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """``vfio-user boot`` as a program; killed at the end of the ``with`` at the latest."""
    process = subprocess.Popen(
        program("boot", *words),
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def children(pid: int) -> dict[int, str]:
    """The processes a process has started, and their command lines."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
    return found


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    assert process.stderr is not None
    pytest.fail(f"the machine ended before it said {text!r}: {process.stderr.read()}")


@pytest.mark.parametrize(("machine", "ways"), [("pc", ["--processes"]), ("q35", [])])
def test_a_topology_of_several_functions(
    guest_kit: GuestKit, tmp_path: Path, my_rom: bytes, machine: str, ways: list[str]
) -> None:
    with booting("--machine", machine, *ways, *TOPOLOGY, "--", SURVEY, folder=tmp_path) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    functions = dict(re.findall(r"function ([0-9a-f]{2}\.[0-7]) (.*)", output))
    assert functions["05.0"].startswith("0x1234:0x11e8")
    assert functions["05.1"] == "0x494f:0x0dc8 pci-idio-16"
    assert functions["05.2"].startswith("0x1b36:0x0005")
    assert functions["06.0"].startswith("0x1234:0x11e8")
    # A multifunction device in its slot, says its header; the other one is none.
    assert "header 80 00" in output
    assert "lines 32" in output
    # The client's ROM, run by the firmware and read by Linux; the device has none.
    assert "a ROM of the client's" in output
    assert f"rom {len(my_rom)} {hashlib.sha256(my_rom).hexdigest()}" in output
    assert list(tmp_path.glob("vfio-user-*")) == []


def test_the_death_of_a_device_ends_the_machine(guest_kit: GuestKit, tmp_path: Path) -> None:
    words = ["--processes", "--device=edu", "--device=gpio-pci-idio-16", "--", "echo it runs; sleep 1000"]
    with booting(*words, folder=tmp_path) as process:
        wait_for_line(process, "it runs")
        started = children(process.pid)
        device = next(pid for pid, command in started.items() if "serve edu" in command)
        os.kill(device, signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.endswith("vfio-user: the process of edu ended (signal 9), and with it the machine\n")
    assert len(started) == 3
    assert not any(is_running(pid) for pid in started)
    assert list(tmp_path.glob("vfio-user-*")) == []


def test_an_interrupt_ends_the_guest_before_its_devices(guest_kit: GuestKit, tmp_path: Path) -> None:
    words = ["-v", "--processes", "--device=edu", "--", "echo it runs; sleep 1000"]
    with booting(*words, folder=tmp_path) as process:
        wait_for_line(process, "it runs")
        started = children(process.pid)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    # The guest powered off, and said so; it did not have to be waited for until it would not listen any more.
    assert "reboot: Power down" in output
    assert time.monotonic() - begun < 9
    assert len(started) == 2
    assert not any(is_running(pid) for pid in started)
    # The device heard that its client was gone before it was told to end.
    assert "Traceback" not in errors
    assert list(tmp_path.glob("vfio-user-*")) == []


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_acceptance_test_of_2021(tmp_path: Path, arch: str) -> None:
    # A SCSI controller served by another process is found by both architectures' Linux. Here its driver finds a disk
    # on it besides, and reads what the host wrote.
    try:
        GuestKit.provision(arch)
    except VmUnavailableError as error:
        pytest.skip(f"no such guest can be made here: {error}")
    contents = bytes(index % 251 for index in range(1 << 20))
    (tmp_path / "disk.img").write_bytes(contents)
    machine = "--machine=pc" if arch == "x86_64" else "--arch=aarch64"
    words = [machine, "--processes", "--device=lsi53c895a@05.0,disk0=disk.img", "--device=gpio-pci-idio-16@05.1"]
    survey = """
    cat /sys/bus/pci/devices/*/uevent
    n=0; until [ -b /dev/sda ] || [ $n -gt 200 ]; do n=$((n + 1)); sleep 0.1; done
    sha256sum /dev/sda
    cat /sys/bus/pci/devices/0000:00:05.1/gpio/gpiochip*/ngpio
    """
    with booting(*words, "--", survey, folder=tmp_path) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "PCI_ID=1000:0012" in output
    assert hashlib.sha256(contents).hexdigest() in output, output
    assert re.search(r"^32$", output, re.MULTILINE), output

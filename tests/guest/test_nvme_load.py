"""A guest whose root file system is on an NVMe controller, and which does all it can to others: load, resets, death."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.guest.nvme_disks import (
    PATTERN,
    Disk,
    find_disks,
    host_tool,
    make_root_file_system,
    pattern_hash,
    serving,
    sparse,
)
from tests.support.fds import no_leaks
from tests.support.waiting import wait_for
from vfio_user import Server
from vfio_user.devices.nvme import Nvme
from vfio_user.devices.nvme.engines import BatchCommands
from vfio_user.vm import (
    Guest,
    GuestKit,
    QemuCommand,
    VfioUserDevice,
    VirtualMachine,
    build_initramfs,
    compile_guest_program,
)
from vfio_user.vm.process import ChildProcess

pytestmark = [pytest.mark.guest]

MiB = 1 << 20
GiB = 1 << 30

#: Seconds of the guest's time that the load lasts. Other tests run meanwhile.
LOAD_SECONDS = 60
#: Of that during which a controller is reset, and which is ended after that: more than it takes.
RESETS_SECONDS = 100

#: The initial program of the memory file system: all it does is to find the disk.
FIND_ROOT = """#!/bin/busybox sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
modprobe nvme
modprobe ext4
until found=$(grep -l '^root ' /sys/class/nvme/*/serial) && root=$(basename ${found%/serial})n1 && [ -b /dev/$root ]; do
  usleep 5000
done
mount -t ext4 /dev/$root /mnt
umount /dev /sys /proc
exec switch_root /mnt /sbin/init
"""

FIO = (
    "fio --direct=1 --ioengine=libaio --iodepth=32 --thread --rw=randwrite --verify=crc32c --verify_fatal=1 "
    "--verify_backlog=128 --time_based --output-format=json"
)
MIXED = "--bssplit=512/20:1k/10:4k/25:16k/15:64k/15:256k/10:1M/5"
#: Like commands, many with one doorbell: what the engine for batches is for.
BATCHES = "--bs=4k --iodepth_batch_submit=16 --iodepth_batch_complete_min=16"


class Load:
    """fio in the background of a guest."""

    def __init__(self, disk: Disk, seconds: int, arguments: str) -> None:
        self.guest = disk.guest
        self._seconds = seconds
        self._path = f"/dev/shm/{disk.controller.rsplit('/', 1)[-1]}"
        command = f"{FIO} --name=load --filename={disk.block} --runtime={seconds} {arguments}"
        self.guest.run(
            f"({command} >{self._path}.json 2>{self._path}.errors & echo $! >{self._path}.pid;"
            f" wait $!; echo $? >{self._path}.status) &"
        )

    def stop(self) -> None:
        """Ends it before its time."""
        self.guest.run(f"[ ! -s {self._path}.status ] && kill $(cat {self._path}.pid)")

    def result(self) -> dict[str, Any]:
        """Waits for its end. What its jobs did together."""
        guest = self.guest
        guest.wait_until(f"[ -s {self._path}.status ]", timeout=2 * self._seconds + 60)
        told = f"{guest.run(f'cat {self._path}.errors')}\n{guest.run('dmesg | tail -20')}"
        assert str(guest.run(f"cat {self._path}.status")) in ("0", "128"), told  # 128: it was told to stop
        text = guest.run(f"cat {self._path}.json").stdout
        jobs = json.loads(text[text.index("{") :])["jobs"]
        assert [job["error"] for job in jobs] == [0] * len(jobs), told
        together: dict[str, Any] = jobs[0]
        return together


class Scenario:
    """A running guest with its disks, by serial number."""

    def __init__(
        self,
        machine: VirtualMachine,
        devices: dict[str, Nvme],
        servers: dict[str, ChildProcess],
        images: dict[str, Path],
        kit: GuestKit,
    ) -> None:
        self.machine = machine
        self.guest: Guest = machine.guest
        self.devices = devices
        self.servers = servers
        self.images = images
        self.kit = kit
        self.disks = find_disks(self.guest, [*devices, *servers])
        self.load = Load(
            self.disks["load"], LOAD_SECONDS, f"{MIXED} --numjobs=4 --size=64M --offset_increment=64M --group_reporting"
        )


@pytest.fixture(scope="module")
def scenario(guest_kit: GuestKit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp("load")
    images = {
        serial: sparse(folder / f"{serial}.img", size)
        for serial, size in {
            "load": 256 * MiB,
            "big": GiB,
            "victim": 128 * MiB,
            "mapped": 64 * MiB,
            "file": 64 * MiB,
        }.items()
    }
    images["root"] = folder / "root.img"
    pattern = compile_guest_program(PATTERN)
    make_root_file_system(
        guest_kit, images["root"], 192 * MiB, packages=["fio", "nvme-cli"], files={"/bin/pattern": pattern}
    )
    initrd = build_initramfs(guest_kit, modules=["nvme", "ext4"], init=FIND_ROOT)
    with no_leaks(), ExitStack() as stack:
        servers = {}
        for serial, options in {
            "root": {},
            "load": {"doorbells": "shadow"},
            "big": {},
            "victim": {},
        }.items():
            server = serving(folder / f"{serial}.sock", image=images[serial], serial=serial, **options)
            servers[serial] = stack.enter_context(server)
        mapped = f"file:{images['mapped']}?mapped=on"
        servers["mapped"] = stack.enter_context(
            serving(folder / "mapped.sock", "nvme", image=mapped, serial="mapped", doorbells="mapped")
        )
        devices = {"file": Nvme(image=str(images["file"]), serial="file"), "memory": Nvme(serial="memory")}
        for serial, device in devices.items():
            stack.callback(device.close)
            stack.enter_context(Server(device, folder / f"{serial}.sock", strict=True).start())
        command = QemuCommand(
            guest_kit.qemu.path,
            machine="pc",
            memory=512 * MiB,
            kernel=guest_kit.kernel,
            initrd=initrd,
            devices=tuple(VfioUserDevice(folder / f"{serial}.sock", id=serial) for serial in (*servers, *devices)),
            extra=("-smp", "2"),
        )
        with VirtualMachine(command, directory=folder / "vm") as machine:
            yield Scenario(machine, devices, servers, images, guest_kit)


def test_the_root_file_system_is_on_the_disk(scenario: Scenario) -> None:
    guest, disk = scenario.guest, scenario.disks["root"]
    assert str(guest.run("grep ' / ' /proc/mounts | grep -v rootfs")).startswith(f"{disk.block} / ext4 rw")
    guest.run("dd if=/dev/urandom of=/root/file bs=64k count=64 2>/dev/null && sync")
    before = str(guest.run("md5sum /root/file"))
    guest.run("echo 3 >/proc/sys/vm/drop_caches")
    assert str(guest.run("md5sum /root/file")) == before
    # Two processors, two queues.
    assert len(scenario.devices["file"].submission_queues) == 3


def test_a_gibibyte(scenario: Scenario) -> None:
    guest, disk = scenario.guest, scenario.disks["big"]
    guest.run(f"pattern write {disk.block} {GiB} 7", timeout=120)
    with scenario.images["big"].open("rb") as image:
        assert hashlib.file_digest(image, "sha256").hexdigest() == pattern_hash(GiB, 7)
    guest.run(f"pattern check {disk.block} {GiB} 7", timeout=120)


@pytest.mark.parametrize("serial", ["file", "memory", "mapped"])
def test_resets_under_load(scenario: Scenario, serial: str) -> None:
    guest, disk = scenario.guest, scenario.disks[serial]
    load = Load(disk, RESETS_SECONDS, f"{BATCHES if serial == 'memory' else MIXED} --size=48M")
    # What no driver asked for it finds out when a command has taken too long.
    guest.run(f"echo 2000 >{disk.queue}/io_timeout")
    inflight = f"[ \"$(awk '{{print $1 + $2}}' {disk.queue}/../inflight)\" -gt 0 ]"
    for reset in (
        f"nvme reset {disk.controller}",
        f"echo 1 >{disk.sysfs}/reset_controller",
        f"echo 1 >{disk.pci}/reset",
    ):
        guest.wait_until(inflight)
        guest.run(reset)
        disk.wait_live()
    guest.wait_until(inflight)
    guest.run(f"dmesg -c >/dev/null; nvme subsystem-reset {disk.controller}")
    guest.wait_until("dmesg | grep 'controller is down; will reset'")
    disk.wait_live()
    if serial in scenario.devices:
        guest.wait_until(inflight)
        device = scenario.devices[serial]
        guest.run("dmesg -c")
        device.call_soon(lambda: device.life.fail("a test says so"))
        guest.wait_until("dmesg | grep 'controller is down; will reset: CSTS=0x3'")
        disk.wait_live()
    guest.wait_until(inflight)
    load.stop()
    did = load.result()
    assert did["write"]["total_ios"] > 100
    assert did["read"]["total_ios"] > 100
    engine = scenario.devices[serial].engine if serial == "memory" else None
    if isinstance(engine, BatchCommands):
        assert engine.together


def test_what_was_flushed_outlives_the_server(scenario: Scenario) -> None:
    guest, disk, image = scenario.guest, scenario.disks["victim"], scenario.images["victim"]
    guest.run(f"pattern write {disk.block} {32 * MiB} 3")
    guest.run(f"dd if=/dev/zero of={disk.block} bs=1M seek=64 count=64 oflag=direct >/dev/null 2>&1 &")
    # QEMU 11.1 must not write to a server that has died before it has noticed: "error_setv: Assertion `*errp == NULL'
    # failed". So its processors stand still until it has.
    machine = scenario.machine
    machine.qmp.execute("stop")
    scenario.servers["victim"].signal(signal.SIGKILL)
    assert scenario.servers["victim"].wait(10) == -signal.SIGKILL
    wait_for(lambda: "EOF" in machine.qemu_output)
    machine.qmp.execute("cont")
    with image.open("rb") as file:
        assert hashlib.sha256(file.read(32 * MiB)).hexdigest() == pattern_hash(32 * MiB, 3)
    # The guest lives on, and finds it all on the same image, plugged in once more. (Unplugging the dead one is the end
    # of QEMU 11.1: "memory_region_del_subregion: Assertion `subregion->container == mr' failed".)
    with serving(image.with_suffix(".again"), image=image, serial="again"):
        machine.qmp.plug(VfioUserDevice(image.with_suffix(".again"), id="again"))
        found = find_disks(guest, ["again"])["again"]
        guest.run(f"pattern check {found.block} {32 * MiB} 3")


def test_the_load(scenario: Scenario) -> None:
    did = scenario.load.result()
    assert did["job_runtime"] >= 4 * LOAD_SECONDS * 1000
    for direction in ("read", "write"):
        assert did[direction]["io_bytes"] > 64 * MiB
    name = scenario.disks["load"].controller.rsplit("/", 1)[-1]
    assert name not in str(
        scenario.guest.run(f"dmesg | grep -w '{name}\\|{name}n1' | grep -i 'timeout\\|error\\|abort'", check=False)
    )


def test_the_root_file_system_is_sound(scenario: Scenario) -> None:
    scenario.guest.run("sync && mount -o remount,ro /")
    program = host_tool(scenario.kit, "e2fsprogs", "e2fsck")
    checked = subprocess.run([*program, "-f", "-n", str(scenario.images["root"])], check=False, capture_output=True)
    assert checked.returncode == 0, checked.stdout.decode()

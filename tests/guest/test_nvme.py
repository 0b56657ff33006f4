"""The NVMe controller under Linux: the kernel's own driver, its file systems, and nvme-cli."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guest.nvme_disks import Disk, find_disks, host_tool, serving, sparse
from tests.guest.support import VmFactory, wait_for
from tests.support.fds import no_leaks
from vfio_user import Server
from vfio_user.devices.nvme import DoorbellMode, Nvme
from vfio_user.devices.nvme.engines import make_engine
from vfio_user.vm import Guest, GuestKit, VfioUserDevice

pytestmark = [pytest.mark.guest]

MiB = 1 << 20
SIZE = 96 * MiB


class Scenario:
    """A running guest with its disks, by serial number, which is what is special of them."""

    def __init__(self, kit: GuestKit, guest: Guest, devices: dict[str, Nvme], folder: Path) -> None:
        self.kit = kit
        self.guest = guest
        self.devices = devices
        self.folder = folder
        self.disks = find_disks(guest, ALL, empty=["many"])

    def image(self, serial: str) -> Path:
        return self.folder / f"{serial}.img"

    def allocated(self, serial: str) -> int:
        """Bytes a disk's file takes."""
        return self.image(serial).stat().st_blocks * 512


#: Those in this process, with a namespace from the beginning; and one in a process of its own, as it takes a processor.
HERE = ("file", "memory")
ALL = (*HERE, "mapped")
IN_FILES = ("file", "mapped")
BLOCK = {"file": 512, "memory": 4096, "mapped": 512}


@pytest.fixture(scope="module")
def scenario(guest_kit: GuestKit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp("nvme")
    for serial in IN_FILES:
        sparse(folder / f"{serial}.img", SIZE)
    with no_leaks(), ExitStack() as stack:
        devices: dict[str, Nvme] = {
            "file": Nvme(image=str(folder / "file.img"), serial="file"),
            "memory": Nvme(image=f"memory:{SIZE}", serial="memory", lba_size=4096, doorbells=DoorbellMode.SHADOW),
            "many": Nvme(image="", unallocated="memory:64M", serial="many"),
        }
        devices["memory"].engine = make_engine(devices["memory"], vector=False)
        for serial, device in devices.items():
            stack.callback(device.close)
            stack.enter_context(Server(device, folder / f"{serial}.sock", strict=True).start())
        mapped = f"file:{folder / 'mapped.img'}?mapped=on"
        stack.enter_context(serving(folder / "mapped.sock", "nvme", image=mapped, serial="mapped", doorbells="mapped"))
        with VmFactory(guest_kit, folder) as factory:
            vm = factory(
                "q35",
                devices=[VfioUserDevice(folder / f"{serial}.sock") for serial in (*devices, "mapped")],
                append=["iomem=relaxed"],  # so that nvme-cli may map the registers
                load=["nvme"],
                modules=["ext4", "xfs"],
                packages=["nvme-cli", "e2fsprogs", "xfsprogs"],
            )
            yield Scenario(guest_kit, vm.guest, devices, folder)


@pytest.fixture(params=HERE)
def serial(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def disk(scenario: Scenario, serial: str) -> Disk:
    return scenario.disks[serial]


# What the driver and nvme-cli see.


def test_the_driver_sees_the_namespaces(scenario: Scenario, disk: Disk, serial: str) -> None:
    assert disk.setting("logical_block_size") == str(BLOCK[serial])
    assert disk.setting("write_cache") == "write back"
    assert int(disk.setting("max_hw_sectors_kb")) == Nvme.max_transfer // 1024
    assert int(disk.setting("discard_max_bytes"))
    assert int(disk.setting("write_zeroes_max_bytes"))
    assert str(scenario.guest.run(f"cat {disk.queue}/../size")) == str(SIZE // 512)
    # One pair of queues for each processor, and the admin queue, each with a vector of its own.
    assert len(scenario.devices[serial].submission_queues) == 2
    found = scenario.guest.interrupts()
    name = disk.controller.rsplit("/", 1)[-1]
    assert {f"{name}q0", f"{name}q1"} <= {label.split()[-1] for label in found}


def test_the_modes_are_in_use(scenario: Scenario) -> None:
    assert scenario.devices["memory"].doorbells.are_followed
    assert not scenario.devices["file"].doorbells.are_followed
    with pytest.raises(AttributeError):
        _ = scenario.devices["memory"].engine.together  # type: ignore[attr-defined]


def test_identify(scenario: Scenario, disk: Disk, serial: str) -> None:
    device = scenario.devices[serial]
    controller = disk.json("id-ctrl")
    assert controller["sn"].strip() == serial
    assert controller["mn"].strip() == device.model
    assert controller["fr"].strip() == "1.0"
    assert controller["subnqn"] == device.subnqn
    assert controller["vid"] == device.vendor_id
    assert controller["mdts"] == (device.max_transfer // 4096).bit_length() - 1
    assert bool(controller["oacs"] & 0x100) is device.doorbells.takes_buffers
    assert (controller["sqes"], controller["cqes"]) == (0x66, 0x44)
    namespace = disk.json("id-ns", on=disk.block)
    assert namespace["nsze"] * BLOCK[serial] == SIZE
    in_use = namespace["lbafs"][namespace["flbas"] & 0xF]
    assert (in_use["ms"], 1 << in_use["ds"]) == (0, BLOCK[serial])
    assert namespace["nguid"] == device.namespaces.existing(1).nguid.hex()


def test_registers(scenario: Scenario, disk: Disk, serial: str) -> None:
    shown = json.loads(scenario.guest.run(f"nvme show-regs {disk.controller} -o json", check=False).stdout)
    registers = scenario.devices[serial].bar0
    for name in ("cap", "vs", "cc", "csts", "aqa", "asq", "acq"):
        assert shown[name] == int(getattr(registers, name)), name


def test_lists(scenario: Scenario) -> None:
    listed = scenario.disks["file"].json("list", on=" ")["Devices"]
    by_path = {entry["DevicePath"]: entry for entry in listed}
    for serial in HERE:
        entry = by_path[scenario.disks[serial].block]
        assert entry["SerialNumber"].strip() == serial
        assert (entry["SectorSize"], entry["PhysicalSize"]) == (BLOCK[serial], SIZE)
    subsystems = str(scenario.guest.run("nvme list-subsys"))
    for serial, device in scenario.devices.items():
        assert f"NQN={device.subnqn}\n" in subsystems
        assert re.search(rf"{scenario.disks[serial].controller.rsplit('/', 1)[-1]} pcie [0-9a-f:.]+ +live", subsystems)
    assert disks_of(scenario.guest, "list-ns", scenario.disks["file"]) == [1]


def disks_of(guest: Guest, command: str, disk: Disk, arguments: str = "") -> list[int]:
    """The identifiers a list has."""
    found = re.findall(r"\[ *\d+\]:(0x[0-9a-f]+)", str(guest.run(f"nvme {command} {disk.controller} {arguments}")))
    return [int(number, 16) for number in found]


def test_log_pages(scenario: Scenario, disk: Disk, serial: str) -> None:
    health = scenario.devices[serial].health
    guest = scenario.guest
    before = disk.json("smart-log")
    guest.run(f"dd if={disk.block} of=/dev/null bs=512k count=4 iflag=direct 2>/dev/null")
    after = disk.json("smart-log")
    assert after["temperature"] == health.temperature
    assert (after["critical_warning"], after["avail_spare"], int(after["media_errors"])) == (0, 100, 0)
    assert int(after["host_read_commands"]) == health.reads >= int(before["host_read_commands"]) + 4
    assert int(after["data_units_read"]) == -(-health.blocks_read // 1000)
    assert health.blocks_read * 512 >= 2 * MiB
    slots = next(iter(disk.json("fw-log").values()))
    assert slots["Active Firmware Slot (afi)"] == 1
    assert "1.0" in str(slots["Firmware Rev Slot 1"])
    effects = str(guest.run(f"nvme effects-log {disk.controller}"))
    for command in ("Format NVM", "Namespace Management", "Dataset Management", "Write Zeroes", "Compare"):
        assert command in effects
    pages = str(guest.run(f"nvme supported-log-pages {disk.controller}"))
    for page in ("Error Information", "SMART", "Firmware Slot", "Changed Namespace", "Device Self-test"):
        assert page in pages


def test_errors_are_logged(scenario: Scenario, disk: Disk, serial: str) -> None:
    errors = scenario.devices[serial].health.errors
    failed = scenario.guest.run(
        f"nvme read {disk.block} --start-block={SIZE} --block-count=0 --data-size={BLOCK[serial]} 2>&1", check=False
    )
    assert failed.returncode
    assert "LBA Out of Range" in failed.stdout
    newest = disk.json("error-log", "--log-entries=1")["errors"][0]
    assert newest["error_count"] == errors + 1
    assert (newest["nsid"], newest["lba"]) == (1, SIZE)
    # Linux, too, sends what a controller may refuse: only ours may have been added.
    assert scenario.devices[serial].health.errors == errors + 1


def test_features(scenario: Scenario, disk: Disk) -> None:
    def feature(number: int) -> int:
        told = str(scenario.guest.run(f"nvme get-feature {disk.controller} -f {number}"))
        return int(told.rsplit(":", 1)[-1], 16)

    assert feature(7) == 0x003F_003F  # so many queues Linux may have; it takes one for each processor
    assert feature(6) == 1
    scenario.guest.run(f"nvme set-feature {disk.controller} -f 4 -v 0x155")
    assert feature(4) == 0x155


def test_self_test(scenario: Scenario, disk: Disk) -> None:
    scenario.guest.run(f"nvme device-self-test {disk.controller} -s 1")

    def ended() -> bool:
        return bool(disk.json("self-test-log")["Current Device Self-Test Operation"] == 0)

    wait_for(ended)
    [newest, *_] = disk.json("self-test-log")["List of Valid Reports"]
    assert (newest["Self test result"], newest["Self test code"]) == (0, 1)


@pytest.mark.parametrize("serial", ALL)
def test_resets(scenario: Scenario, disk: Disk) -> None:
    guest = scenario.guest
    for number, reset in enumerate(
        (f"nvme reset {disk.controller}", f"echo 1 >{disk.sysfs}/reset_controller", f"echo 1 >{disk.pci}/reset")
    ):
        guest.run(reset)
        disk.wait_live()
        guest.run(
            f"head -c 4096 /dev/urandom >/tmp/a && dd if=/tmp/a of={disk.block} bs=4k oflag=direct seek={number}"
            f" && dd if={disk.block} bs=4k count=1 iflag=direct skip={number} | cmp - /tmp/a"
        )
    guest.run(f"nvme ns-rescan {disk.controller}")


# Media.


def outside(scenario: Scenario, serial: str) -> str:
    """The hash of a disk as the host sees it."""
    if serial in IN_FILES:
        return hashlib.md5(scenario.image(serial).read_bytes()).hexdigest()
    contents = scenario.devices[serial].namespaces.existing(1).backend.contents
    assert contents is not None
    return hashlib.md5(contents).hexdigest()


FILE_SYSTEMS = {
    "ext4": ("mkfs.ext4 -q -F -E nodiscard", "e2fsck -f -n", ("e2fsprogs", "e2fsck", "-f", "-n")),
    "xfs": ("mkfs.xfs -q -f -K --unsupported", "xfs_repair -n", ("xfsprogs", "xfs_repair", "-n", "-f")),
}


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
@pytest.mark.parametrize("serial", ALL)
def test_a_file_system(scenario: Scenario, disk: Disk, serial: str, kind: str) -> None:
    guest = scenario.guest
    make, check, (package, program, *arguments) = FILE_SYSTEMS[kind]
    guest.run(f"blkdiscard {disk.block} && {make} {disk.block} && mount -t {kind} {disk.block} /mnt")
    guest.run(
        """
        cd /mnt
        for n in 1 2 3 4 5 6 7 8; do mkdir -p d$n && cp /bin/busybox d$n/busybox; echo $n >d$n/name; done
        dd if=/dev/zero bs=512k count=200 2>/dev/null >filler  # ends when the disk is full
        [ $(stat -f -c %f .) -lt 2000 ] || df .
        rm -r d3 d5
        sync
        for n in 1 2 4 6 7 8; do cmp /bin/busybox d$n/busybox || exit 1; done
        """,
        timeout=120,
    )
    guest.run("umount /mnt && echo 3 >/proc/sys/vm/drop_caches")
    guest.run(f"{check} {disk.block} 2>&1", timeout=120)
    inside = str(guest.run(f"md5sum {disk.block}", timeout=120)).split()[0]
    assert inside == outside(scenario, serial)
    if serial in IN_FILES:
        subprocess.run(
            [*host_tool(scenario.kit, package, program), *arguments, str(scenario.image(serial))],
            check=True,
            capture_output=True,
        )
    guest.run(f"mount -t {kind} {disk.block} /mnt && cmp /bin/busybox /mnt/d8/busybox && cat /mnt/d7/name")
    guest.run("umount /mnt")


def test_what_is_discarded_leaves_the_file(scenario: Scenario) -> None:
    # Not that of the mapped one: a mapped file keeps its blocks, as one that could not get them back would be fatal.
    guest, disk = scenario.guest, scenario.disks["file"]
    guest.run(f"blkdiscard {disk.block}")
    assert scenario.allocated("file") < MiB
    guest.run(f"mkfs.ext4 -q -F {disk.block} && mount -t ext4 {disk.block} /mnt")
    guest.run("dd if=/dev/urandom of=/mnt/big bs=1M count=32 conv=fsync 2>/dev/null", timeout=60)
    full = scenario.allocated("file")
    assert full > 32 * MiB
    guest.run("rm /mnt/big && sync && fstrim /mnt")
    assert scenario.allocated("file") < full - 30 * MiB
    guest.run(f"umount /mnt && e2fsck -f -n {disk.block}")
    guest.run(f"dd if=/dev/urandom of={disk.block} bs=1M count=16 seek=64 conv=fsync 2>/dev/null")
    full = scenario.allocated("file")
    guest.run(f"blkdiscard -o {64 * MiB} -l {16 * MiB} {disk.block}")
    assert scenario.allocated("file") <= full - 16 * MiB
    left = guest.run(f"dd if={disk.block} bs=1M count=16 skip=64 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c")
    assert str(left) == "0"


def test_format(scenario: Scenario, disk: Disk, serial: str) -> None:
    guest = scenario.guest
    other = {512: 4096, 4096: 512}[BLOCK[serial]]
    guest.run(f"dd if=/dev/urandom of={disk.block} bs=64k count=1 conv=fsync 2>/dev/null")
    for size in (other, BLOCK[serial]):
        lbaf = {512: 0, 4096: 1}[size]
        guest.run(f"nvme format {disk.block} --lbaf={lbaf} --force")
        guest.wait_until(f"[ $(cat {disk.queue}/logical_block_size) = {size} ]")
        namespace = disk.json("id-ns", on=disk.block)
        assert (namespace["flbas"] & 0xF, namespace["nsze"] * size) == (lbaf, SIZE)
        assert (
            str(guest.run(f"dd if={disk.block} bs=64k count=1 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c")) == "0"
        )


# Namespaces the host makes.


def test_namespaces_come_and_go(scenario: Scenario) -> None:
    guest, disk = scenario.guest, scenario.disks["many"]
    device, name = scenario.devices["many"], disk.controller
    assert int(disk.json("id-ctrl")["unvmcap"]) == 64 * MiB
    guest.run(f"nvme create-ns {name} --nsze=32768 --ncap=32768 --flbas=0")
    guest.run(f"nvme create-ns {name} --nsze=8192 --ncap=8192 --flbas=1")
    assert disks_of(guest, "list-ns", disk, "--all") == [1, 2]
    assert disks_of(guest, "list-ns", disk) == []
    assert int(disk.json("id-ctrl")["unvmcap"]) == 64 * MiB - (32768 * 512 + 8192 * 4096)
    for nsid, size in ((1, 512), (2, 4096)):
        guest.run(f"nvme attach-ns {name} --namespace-id={nsid} --controllers=1")
        guest.wait_until(f"[ -b {name}n{nsid} ]")  # the driver heard of it from an event
        assert str(guest.run(f"cat /sys/block/{name.rsplit('/', 1)[-1]}n{nsid}/queue/logical_block_size")) == str(size)
        guest.run(f"dd if=/bin/busybox of={name}n{nsid} bs=64k count=16 conv=fsync 2>/dev/null")
    for nsid in (1, 2):
        guest.run(
            f"dd if={name}n{nsid} bs=64k count=16 iflag=direct 2>/dev/null >/tmp/b; cmp -n 1048576 /tmp/b /bin/busybox"
        )
    guest.run(f"nvme detach-ns {name} --namespace-id=1 --controllers=1")
    guest.wait_until(f"[ ! -b {name}n1 ]")
    assert disks_of(guest, "list-ns", disk) == [2]
    for nsid in (1, 2):
        guest.run(f"nvme delete-ns {name} --namespace-id={nsid}")
    guest.wait_until(f"[ ! -b {name}n2 ]")
    assert disks_of(guest, "list-ns", disk, "--all") == []
    assert device.namespaces.unallocated_capacity == 64 * MiB


def test_linux_has_nothing_to_complain_of(scenario: Scenario) -> None:
    log = scenario.guest.dmesg()
    about = [line for line in log.splitlines() if re.search(r"nvme|pcieport|AER|blk|I/O", line)]
    # The read behind the end was ours: test_errors_are_logged.
    complaints = [
        line
        for line in about
        if re.search(r"timeout|error|fail|abort|invalid|warn|unable|missing", line, re.IGNORECASE)
    ]
    assert not complaints, "\n".join(about)
    assert "Call Trace" not in log
    assert "WARNING" not in log
    assert "BUG" not in log

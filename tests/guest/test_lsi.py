"""The SCSI controller under Linux: the kernel's own ``sym53c8xx``, file systems, a CD-ROM and sg3-utils."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.guest.iso9660 import make_iso9660
from tests.guest.nvme_disks import host_tool
from tests.guest.support import VmFactory
from vfio_user import Server
from vfio_user.backends.file import FileBackend
from vfio_user.devices.lsi53c8xx.controller import Lsi53c895a
from vfio_user.devices.scsi.block_unit import BlockUnit
from vfio_user.devices.scsi.target import Target
from vfio_user.devices.scsi.task import Task, TaskPhase
from vfio_user.hardware.scsi.inquiry import BLOCK_LIMITS, PROVISIONING
from vfio_user.vm import Guest, GuestKit, VfioUserDevice

pytestmark = [pytest.mark.guest]

MiB = 1 << 20
SIZES = {"disk": 80 * MiB, "other": 24 * MiB}
TEXT = b"What is on the disc.\n" * 1000
IDS = {"disk": 0, "other": 1, "disc": 4}


class Seen:
    """What tasks there were at once, with which tags, by the target that had them."""

    def __init__(self) -> None:
        self.tags: dict[Target, set[int]] = defaultdict(set)
        self.most: dict[Target, int] = defaultdict(int)
        self.tasks: dict[Target, list[Task]] = defaultdict(list)

    def start(self, target: Target, task: Task) -> None:
        if task.tag is not None:
            self.tags[target].add(task.tag)
        mine = self.tasks[target]
        mine[:] = [*(other for other in mine if other.phase is not TaskPhase.STATUS), task]
        self.most[target] = max(self.most[target], len(mine))


class Scenario:
    """A running guest, and the names its driver gave the units."""

    def __init__(self, guest: Guest, device: Lsi53c895a, folder: Path, seen: Seen, boot: str) -> None:
        self.guest, self.device, self.folder, self.seen, self.boot = guest, device, folder, seen, boot
        self.names: dict[str, str] = {}
        for name, number in IDS.items():
            units = f"/sys/bus/scsi/devices/*:0:{number}:0/block"
            guest.wait_until(f"ls {units}/*")
            self.names[name] = f"/dev/{guest.run(f'ls {units}')}"

    def image(self, name: str) -> Path:
        return self.folder / f"{name}.img"


@pytest.fixture(scope="module", params=["pc", "q35", "virt"])
def scenario(
    request: pytest.FixtureRequest, guest_kit: GuestKit, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scenario]:
    machine = str(request.param)
    kit = GuestKit.provision("aarch64") if machine == "virt" else guest_kit
    folder = tmp_path_factory.mktemp("lsi")
    for name, size in SIZES.items():
        part = hashlib.shake_128(name.encode()).digest(MiB)
        with (folder / f"{name}.img").open("wb") as file:
            for index in range(size // MiB):
                file.write(index.to_bytes(4, "little") + part[4:])
    (folder / "disc.img").write_bytes(make_iso9660("TEXT.TXT", TEXT))
    seen = Seen()
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        start = Target.start

        def recorded(target: Target, task: Task, notify: Any) -> None:
            seen.start(target, task)
            start(target, task, notify)

        patch.setattr(Target, "start", recorded)
        device = Lsi53c895a(
            disk0=str(folder / "disk.img"), disk1=str(folder / "other.img"), cdrom4=str(folder / "disc.img")
        )
        stack.callback(device.close)
        stack.enter_context(Server(device, folder / "lsi.sock", strict=True).start())
        with VmFactory(kit, folder) as factory:
            vm = factory(
                machine,
                devices=[VfioUserDevice(folder / "lsi.sock")],
                load=["sd_mod", "sr_mod", "sg", "sym53c8xx settle=0"],
                modules=["ext4", "isofs"],
                packages=["e2fsprogs", "sg3-utils"],
            )
            yield Scenario(vm.guest, device, folder, seen, machine)


def test_the_driver_finds_everything(scenario: Scenario) -> None:
    guest = scenario.guest
    assert "PCI_ID=1000:0012" in str(guest.run("cat /sys/bus/pci/devices/*/uevent"))
    assert guest.pci_device(0x1000, 0x0012).driver == "sym53c8xx"
    found = str(guest.run("ls /sys/bus/scsi/devices | grep -v '^[ht]'")).split()
    assert sorted(name.split(":", 1)[1] for name in found) == ["0:0:0", "0:1:0", "0:4:0"]


def test_the_contents_are_the_image(scenario: Scenario) -> None:
    command = f"dd if={scenario.names['disk']} bs=1M count=64 2>/dev/null | sha256sum"
    wanted = hashlib.sha256(scenario.image("disk").read_bytes()[: 64 * MiB]).hexdigest()
    assert str(scenario.guest.run(command, timeout=60)).split()[0] == wanted


def test_the_disc(scenario: Scenario) -> None:
    guest = scenario.guest
    guest.run(f"mount -t iso9660 -o ro {scenario.names['disc']} /mnt")
    names = str(guest.run("ls /mnt")).lower()
    content = guest.run("cat /mnt/*").output
    guest.run("umount /mnt")
    assert names == "text.txt"
    assert content == TEXT


def test_sg3_utils_agree(scenario: Scenario) -> None:
    guest, names = scenario.guest, scenario.names
    for name, number in IDS.items():
        unit = scenario.device.bus.targets[number].luns[0]
        assert isinstance(unit, BlockUnit)
        blocks, size = unit.blocks, unit.block_size

        def says(command: str, *lines: str, node: str = names[name]) -> None:
            said = " ".join(str(guest.run(f"{command} {node}")).split())
            for line in lines:
                assert line in said, f"{command}: {said}"

        kind = "cd/dvd" if name == "disc" else "disk"
        says(
            "sg_inq",
            f"Peripheral device type: {kind}",
            f"Vendor identification: {unit.vendor} Product identification: {unit.product}",
            f"Product revision level: {unit.revision} Unit serial number: {unit.serial}",
            "version=0x06 [SPC-4]",
            "CmdQue=1",
        )
        capacity = f"Number of logical blocks={blocks} Logical block length={size} bytes"
        says("sg_readcap", f"Last LBA={blocks - 1} ", capacity, f"Device size: {blocks * size} bytes")
        says("sg_readcap --16", capacity, f"lbpme={int(name != 'disc')}")
        says("sg_luns", "Lun list length = 8 which imples 1 lun entry", "0000000000000000")
        pages = {
            "sn": f"Unit serial number: {unit.serial}",
            "di": f"vendor id: {unit.vendor} vendor specific: {unit.product} {unit.serial}",
        }
        if name != "disc":
            limits, provisioning = (
                BLOCK_LIMITS.unpack(unit.vpd_pages()[0xB0]),
                PROVISIONING.unpack(unit.vpd_pages()[0xB2]),
            )
            assert provisioning["unmap"]
            assert provisioning["type"] == 2
            says(
                "sg_vpd -p bl",
                f"Optimal transfer length granularity: {limits['optimal_granularity']} blocks",
                f"Optimal transfer length: {limits['optimal_transfer_length']} blocks",
                "Maximum unmap LBA count: -1 [unbounded]",
                f"Maximum unmap block descriptor count: {limits['max_unmap_descriptors']}",
                f"Optimal unmap granularity: {limits['optimal_unmap_granularity']} blocks",
            )
            says("sg_vpd -p lbpv", "Unmap command supported (LBPU): 1", "unmap bit supported (LBPWS): 1", "(LBPRZ): 1")
            says("sg_vpd -p lbpv", "Provisioning type: 2 (thin provisioned)")
            says("sg_vpd -p bdc", "Non-rotating medium")
            says("sg_modes -a", "WP=0, DpoFua=1", "08 12 04 00")
        for page, line in pages.items():
            says(f"sg_vpd -p {page}", line)
        listed = str(guest.run(f"sg_vpd {names[name]}"))
        assert listed.count("[") == len(unit.vpd_pages()) + 1
        says("sg_turs")


def test_two_disks_at_once_with_tags(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    # As of images that are not in the page cache: there is something to wait for, and targets disconnect.
    monkeypatch.setattr(FileBackend, "_read_at_once", lambda *_: False)
    guest, (disk, other) = scenario.guest, (scenario.names["disk"], scenario.names["other"])
    guest.run("echo 3 >/proc/sys/vm/drop_caches")
    scenario.seen.most.clear()
    jobs = " ".join(
        f"dd if={name} of=/dev/null bs=1M count=4 skip={4 * index} iflag=direct 2>/dev/null &"
        for index in range(4)
        for name in (disk, other)
    )
    guest.run(f"{jobs} wait", timeout=60)
    for number in (0, 1):
        target = scenario.device.bus.targets[number]
        assert len(scenario.seen.tags[target]) > 4
        assert scenario.seen.most[target] > 1, scenario.seen.most
    depth = int(str(guest.run("cat /sys/bus/scsi/devices/*:0:0:0/queue_depth")))
    assert depth > 1


def test_a_file_system(scenario: Scenario, guest_kit: GuestKit) -> None:
    guest, disk = scenario.guest, scenario.names["other"]
    guest.run(f"mkfs.ext4 -q -F {disk} && mount -t ext4 {disk} /mnt", timeout=60)
    guest.run(
        """
        cd /mnt
        for n in 1 2 3 4; do mkdir d$n && cp /bin/busybox d$n/busybox; done
        dd if=/dev/zero bs=512k count=200 2>/dev/null >filler  # ends when the disk is full
        rm -r d2
        sync
        for n in 1 3 4; do cmp /bin/busybox d$n/busybox || exit 1; done
        """,
        timeout=60,
    )
    guest.run("umount /mnt && echo 3 >/proc/sys/vm/drop_caches")
    guest.run(f"e2fsck -f -n {disk} 2>&1", timeout=60)
    inside = str(guest.run(f"sha256sum {disk}", timeout=60)).split()[0]
    assert inside == hashlib.sha256(scenario.image("other").read_bytes()).hexdigest()
    check = [*host_tool(guest_kit, "e2fsprogs", "e2fsck"), "-f", "-n", str(scenario.image("other"))]
    subprocess.run(check, check=True, capture_output=True)


def test_what_is_unmapped_reads_as_zeros(scenario: Scenario) -> None:
    guest, disk = scenario.guest, scenario.names["disk"]
    before = scenario.image("disk").stat().st_blocks
    guest.run(f"sg_unmap --lba=0 --num={4 * MiB // 512} --force {disk} 2>&1")
    left = guest.run(f"dd if={disk} bs=1M count=4 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c")
    assert str(left) == "0"
    assert scenario.image("disk").stat().st_blocks <= before - 4 * MiB // 512


def test_linux_has_nothing_to_complain_of(scenario: Scenario) -> None:
    log = scenario.guest.dmesg()
    about = [line for line in log.splitlines() if re.search(r"sym|scsi|sd |sr |sg |I/O", line)]
    complaint = r"timed? ?out|error|fail|abort|invalid|warn|unable|missing|unexpected|reset"
    complaints = [line for line in about if re.search(complaint, line, re.IGNORECASE)]
    # The driver resets the bus as it begins, and hears from each unit that power came on.
    said = [re.sub(r"^\[.*?\] ", "", line) for line in complaints]
    power_on = "Power-on or device reset occurred"
    expected = ["sym0: SCSI BUS has been reset.", *(f"sd 0:0:{number}:0: {power_on}" for number in (0, 1))]
    assert sorted(said) == sorted([*expected, f"sr 0:0:4:0: {power_on}"]), "\n".join(about)
    assert "Call Trace" not in log
    # Of what comes with the level of a warning, or a worse one, there is what the driver prints without any level.
    raw = re.findall(r"^<(\d+)>\[.*?\] (sym.*)$", str(scenario.guest.run("dmesg -r")), re.MULTILINE)
    warnings = [line for level, line in raw if int(level) & 7 <= 4]
    assert warnings == ["sym0: No NVRAM, ID 7, Fast-40, LVD, parity checking"]

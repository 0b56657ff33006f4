"""The same commands, sent by the same program to QEMU's own lsi53c895a and to ours, in one guest.

What differs is in ``scsi_differences``, with reasons; nothing else does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guest.iso9660 import make_iso9660
from tests.guest.scsi_differences import DIFFERENCES
from tests.guest.scsi_lists import BLOCKS, DISC, DISK, LARGE_BLOCKS, READ_ONLY
from tests.guest.scsi_transcript import Answer, Habit, commands_file, compare, read_transcript
from tests.guest.support import VmFactory
from vfio_user import Server
from vfio_user.backends import Backend, open_backend
from vfio_user.devices.lsi53c8xx.controller import Lsi53c895a
from vfio_user.devices.scsi import CdRom, Disk, Target
from vfio_user.hardware.scsi.inquiry import VpdPage
from vfio_user.vm import Guest, GuestKit, VfioUserDevice, compile_guest_program

pytestmark = [pytest.mark.guest]

PROGRAM = Path(__file__).parent / "programs" / "scsi_commands.c"

#: What each target is, by SCSI id, and what it is asked.
TARGETS = {0: ("disk", DISK), 1: ("disk", READ_ONLY), 2: ("disk", LARGE_BLOCKS), 4: ("disc", DISC)}

#: The kernel tells of every step in which it looks for logical units.
SCAN_LOGGING = 7 << 6


class Images:
    """The same contents for both, in files of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for owner in ("theirs", "ours"):
            for number, (kind, _) in TARGETS.items():
                content = bytes(range(256)) * (BLOCKS * 2) if kind == "disk" else make_iso9660("A.TXT", b"text")
                self.path(owner, number).write_bytes(content)

    def path(self, owner: str, number: int) -> Path:
        return self.folder / f"{owner}{number}.img"


def our_controller(images: Images, stack: ExitStack) -> Lsi53c895a:
    def image(number: int) -> Backend:
        return stack.enter_context(open_backend(str(images.path("ours", number))))

    units = {
        0: Disk(image(0), serial="S0"),
        1: Disk(image(1), serial="S1", read_only=True),
        2: Disk(image(2), serial="S2", block_size=4096),
        4: CdRom(image(4), serial="S4"),
    }
    return Lsi53c895a(targets={number: Target({0: unit}) for number, unit in units.items()})


def their_controller(images: Images, ours: Lsi53c895a) -> tuple[list[str], list[str]]:
    """QEMU's devices and drives, set to what ours says of itself as far as there are properties for it."""
    devices, drives = ["lsi53c895a,id=theirs"], []
    for number, (kind, _) in TARGETS.items():
        unit = ours.bus.targets[number].luns[0]
        assert isinstance(unit, Disk | CdRom)
        # The last of its names is the NAA.
        wwn = int.from_bytes(unit.vpd_pages()[VpdPage.DEVICE_IDENTIFICATION][-8:], "big")
        options = (
            f"bus=theirs.0,scsi-id={number},drive=d{number},serial={unit.serial},vendor={unit.vendor},"
            f"product={unit.product},ver={unit.revision:4},wwn={wwn:#x},scsi_version=6"
        )
        drive = f"if=none,id=d{number},file={images.path('theirs', number)},format=raw,discard=unmap"
        if kind == "disk":
            size = unit.block_size
            options += f",rotation_rate=1,logical_block_size={size},physical_block_size={size}"
        if unit.is_read_only:
            drive += ",readonly=on"
        devices.append(f"scsi-{'hd' if kind == 'disk' else 'cd'},{options}")
        drives += ["-drive", drive]
    return devices, drives


def scan(guest: Guest, host: int, target: int, lun: int) -> list[str]:
    """What the kernel tells of a look for a logical unit."""
    guest.run(f"dmesg -c >/dev/null; echo '0 {target} {lun}' >/sys/class/scsi_host/host{host}/scan")
    lines = [re.sub(r"^\[.*?\] ", "", line) for line in guest.dmesg().splitlines()]
    return [line.rpartition("scsi scan: ")[2].replace(f"scsi host{host}: ", "") for line in lines if "scan" in line]


@pytest.fixture(scope="module")
def machine(guest_kit: GuestKit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guest, dict[str, int]]]:
    """A guest with both controllers, and the numbers of their hosts."""
    folder = tmp_path_factory.mktemp("lsi")
    images = Images(folder)
    with ExitStack() as stack:
        ours = our_controller(images, stack)
        stack.callback(ours.close)
        devices, drives = their_controller(images, ours)
        stack.enter_context(Server(ours, folder / "lsi.sock", strict=True).start())
        factory = stack.enter_context(VmFactory(guest_kit, folder))
        lists = {f"/tmp/list{number}": commands_file(commands) for number, (_, commands) in TARGETS.items()}
        guest = factory(
            "pc",
            devices=[*devices, VfioUserDevice(folder / "lsi.sock")],
            extra=tuple(drives),
            load=["sd_mod", "sr_mod", "sg", "sym53c8xx settle=0"],
            files={"/bin/scsi_commands": compile_guest_program(PROGRAM), **lists},
        ).guest
        wanted = 2 * len(TARGETS)
        guest.wait_until(f"[ $(ls -d /sys/bus/scsi/devices/*:0:*:0/scsi_generic/sg* | wc -l) = {wanted} ]")
        # In the order of their slots.
        found = [
            int(number) for number in re.findall(r"/host(\d+)", str(guest.run("ls -d /sys/bus/pci/devices/*/host*")))
        ]
        yield guest, dict(zip(("theirs", "ours"), found, strict=True))


@pytest.fixture(scope="module")
def answers(machine: tuple[Guest, dict[str, int]]) -> dict[tuple[str, int], dict[str, Answer]]:
    """By owner and target."""
    guest, hosts = machine
    said = {}
    for owner, host in hosts.items():
        for number in TARGETS:
            node = str(guest.run(f"ls /sys/bus/scsi/devices/{host}:0:{number}:0/scsi_generic"))
            command = shlex.join(["scsi_commands", f"/dev/{node}"])
            said[owner, number] = read_transcript(guest.run(f"{command} </tmp/list{number}", timeout=120).stdout)
    return said


KNOWN = {(each.kind, name): (each.theirs, each.ours) for each in DIFFERENCES for name in each.commands}


def test_the_same_transcript(answers: dict[tuple[str, int], dict[str, Answer]]) -> None:
    assert len(KNOWN) == sum(len(each.commands) for each in DIFFERENCES), "a command is told of twice"
    found, habits = {}, set()
    for number, (kind, commands) in TARGETS.items():
        theirs, ours = answers["theirs", number], answers["ours", number]
        assert list(ours) == list(theirs) == [command.name for command in commands]
        for command in commands:
            they_say, we_say, seen = compare(command, theirs[command.name], ours[command.name])
            habits |= seen
            if they_say or we_say:
                found[kind, command.name] = they_say, we_say
    known = {key: words for key, words in KNOWN.items() if key[0] != "scan"}
    changed = {key for key in {*found, *known} if found.get(key) != known.get(key)}
    assert not changed, "\n".join(f"{key}: {found.get(key)}" for key in sorted(changed))
    assert habits == set(Habit)


def test_units_that_are_not_there(machine: tuple[Guest, dict[str, int]]) -> None:
    guest, hosts = machine
    guest.run(f"echo {SCAN_LOGGING} >/proc/sys/dev/scsi/logging_level")
    theirs, ours = (scan(guest, hosts[owner], 0, 5) for owner in ("theirs", "ours"))
    words = [", ".join(line for line in one if line not in other) for one, other in ((theirs, ours), (ours, theirs))]
    assert tuple(words) == KNOWN["scan", "a logical unit that is not there"]
    assert ours[-1] == theirs[-1] == "peripheral qualifier of 3, device not added"
    # No target at all is told by the bus.
    theirs, ours = (scan(guest, hosts[owner], 3, 0) for owner in ("theirs", "ours"))
    assert theirs == ours
    assert theirs

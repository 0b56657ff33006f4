"""The NVMe controller under Linux: the kernel's own driver, its file systems, and nvme-cli."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guest.support import VmFactory
from tests.support.fds import no_leaks
from vfio_user import Server
from vfio_user.devices.nvme import Nvme
from vfio_user.vm import Guest, GuestKit, VfioUserDevice

pytestmark = [pytest.mark.guest]

SIZE = 64 << 20


class Scenario:
    """A running guest with two controllers: namespace 1 of the first is a file, that of the second is memory."""

    def __init__(self, guest: Guest, image: Path) -> None:
        self.guest = guest
        self.image = image


@pytest.fixture(scope="module")
def scenario(guest_kit: GuestKit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp("nvme")
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    with no_leaks(), ExitStack() as servers:
        devices = [Nvme(image=str(image), serial="file"), Nvme(image="memory:64M", serial="memory", lba_size=4096)]
        sockets = []
        for number, device in enumerate(devices):
            servers.callback(device.close)
            sockets.append(folder / f"{number}.sock")
            servers.enter_context(Server(device, sockets[-1], strict=True).start())
        with VmFactory(guest_kit, folder) as factory:
            vm = factory(
                "q35",
                devices=[VfioUserDevice(socket) for socket in sockets],
                modules=["nvme", "ext4"],
                packages=["nvme-cli", "e2fsprogs"],
            )
            vm.guest.load_module("nvme")
            vm.guest.run("for n in $(seq 50); do [ -b /dev/nvme0n1 ] && [ -b /dev/nvme1n1 ] && break; sleep 0.1; done")
            yield Scenario(vm.guest, image)


def disk(scenario: Scenario, serial: str) -> str:
    found = str(scenario.guest.run(f"grep -l '^{serial}' /sys/class/nvme/nvme*/serial"))
    return found.split("/")[4]


def test_the_driver_binds_and_sees_the_namespaces(scenario: Scenario) -> None:
    guest = scenario.guest
    for serial, block in (("file", "512"), ("memory", "4096")):
        name = disk(scenario, serial)
        assert str(guest.run(f"cat /sys/class/nvme/{name}/state")) == "live"
        assert str(guest.run(f"cat /sys/block/{name}n1/queue/logical_block_size")) == block
        assert str(guest.run(f"cat /sys/block/{name}n1/size")) == str(SIZE // 512)
        assert str(guest.run(f"cat /sys/block/{name}n1/queue/write_cache")) == "write back"


@pytest.mark.parametrize("serial", ["file", "memory"])
def test_what_was_written_is_read(scenario: Scenario, serial: str) -> None:
    guest, name = scenario.guest, disk(scenario, serial)
    guest.run("head -c 8M /dev/urandom >/tmp/data 2>/dev/null || dd if=/dev/urandom of=/tmp/data bs=1M count=8")
    guest.run(f"dd if=/tmp/data of=/dev/{name}n1 bs=1M conv=fsync 2>/dev/null")
    guest.run("echo 3 >/proc/sys/vm/drop_caches")
    written, read = (
        str(guest.run(f"dd if={path} bs=64k count=128 2>/dev/null | md5sum"))
        for path in ("/tmp/data", f"/dev/{name}n1")
    )
    assert written == read


@pytest.mark.parametrize("serial", ["file", "memory"])
def test_a_file_system(scenario: Scenario, serial: str) -> None:
    guest, name = scenario.guest, disk(scenario, serial)
    guest.load_module("ext4")
    guest.run(f"mkfs.ext4 -q -F /dev/{name}n1 && mkdir -p /mnt && mount -t ext4 -o discard /dev/{name}n1 /mnt")
    guest.run("cp /bin/busybox /mnt/a && sync && rm /mnt/a && cp /bin/busybox /mnt/b && sync && umount /mnt")
    guest.run(f"e2fsck -f -n /dev/{name}n1 && mount -t ext4 /dev/{name}n1 /mnt")
    assert str(guest.run("cmp /bin/busybox /mnt/b && echo same")) == "same"
    guest.run("umount /mnt")


def test_nvme_cli(scenario: Scenario) -> None:
    guest, name = scenario.guest, disk(scenario, "memory")
    assert "vfio-user NVMe controller" in str(guest.run(f"nvme id-ctrl /dev/{name}"))
    assert "critical_warning" in str(guest.run(f"nvme smart-log /dev/{name}"))
    assert "afi" in str(guest.run(f"nvme fw-log /dev/{name}"))
    guest.run(f"nvme format /dev/{name}n1 --lbaf=0 --force")
    assert "lbads:9" in str(guest.run(f"nvme id-ns /dev/{name}n1 | grep 'in use'"))
    guest.run(f"nvme reset /dev/{name} && dd if=/dev/{name}n1 of=/dev/null bs=64k count=16 2>/dev/null")


def test_linux_has_nothing_to_complain_of(scenario: Scenario) -> None:
    log = str(scenario.guest.run("dmesg | grep -i nvme"))
    print(log)
    for word in ("timeout", "error", "fail", "abort", "I/O 0"):
        assert word not in log.lower(), log

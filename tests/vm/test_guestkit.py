from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.vm.elves import elf_file
from vfio_user.errors import VmUnavailableError
from vfio_user.vm import guestkit
from vfio_user.vm.architecture import architecture_for
from vfio_user.vm.cache import Cache
from vfio_user.vm.guestkit import ESSENTIAL_MODULES, GuestKit, HostKernel, find_host_kernel
from vfio_user.vm.progress import Progress
from vfio_user.vm.qemu_version import Qemu, QemuVersion

_PLACES = {
    "gpio-pci-idio-16": "drivers/gpio/gpio-pci-idio-16.ko",
    "nvme": "drivers/nvme/host/nvme.ko",
    "sym53c8xx": "drivers/scsi/sym53c8xx_2/sym53c8xx.ko",
    "sd_mod": "drivers/scsi/sd_mod.ko",
    "uio_pci_generic": "drivers/uio/uio_pci_generic.ko",
    "vfio-pci": "drivers/vfio/pci/vfio-pci.ko",
    "ext4": "fs/ext4/ext4.ko",
}


def _put_kernel(root: Path, version: str, *, without: str = "") -> None:
    modules = root / "lib/modules" / version
    for name, place in _PLACES.items():
        if name != without:
            (modules / "kernel" / place).parent.mkdir(parents=True, exist_ok=True)
            (modules / "kernel" / place).write_bytes(b"\0depends=\0")
    (modules / "modules.builtin").write_text("kernel/drivers/tty/serial/8250/8250_pci.ko\n")
    (root / "boot").mkdir(exist_ok=True)
    (root / f"boot/vmlinuz-{version}").write_bytes(b"a kernel " + version.encode())


def _find(root: Path) -> HostKernel | None:
    return find_host_kernel(root / "boot", root / "lib/modules")


def test_the_tests_know_all_essential_modules() -> None:
    assert {*_PLACES, "8250_pci"} == set(ESSENTIAL_MODULES)


def test_newest_kernel_that_serves(tmp_path: Path) -> None:
    assert _find(tmp_path) is None
    _put_kernel(tmp_path, "6.9.1-generic")
    _put_kernel(tmp_path, "6.10.0-generic")
    _put_kernel(tmp_path, "7.0.0-cloud", without="sym53c8xx")
    assert _find(tmp_path) == HostKernel(
        "6.10.0-generic", tmp_path / "boot/vmlinuz-6.10.0-generic", tmp_path / "lib/modules/6.10.0-generic"
    )
    (tmp_path / "boot/vmlinuz-6.10.0-generic").rename(tmp_path / "lib/modules/6.10.0-generic/vmlinuz")
    found = _find(tmp_path)
    assert found is not None
    assert found.image == tmp_path / "lib/modules/6.10.0-generic/vmlinuz"


def test_kernel_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _put_kernel(tmp_path, "6.1.0")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert _find(tmp_path) is None


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No Debian, no QEMU to find; whoever asks for packages fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("packages were asked for")

    qemu = Qemu(Path("qemu"), QemuVersion(10, 1), has_vfio_user=True)
    monkeypatch.setattr(guestkit, "ensure_qemu", lambda *_: qemu)
    monkeypatch.setattr(guestkit, "DebianArchive", refuse)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return tmp_path


def test_kit_of_this_machines_parts_needs_no_network(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _put_kernel(offline, "6.1.0")
    (offline / "bin").mkdir()
    busybox = offline / "bin/busybox"
    busybox.write_bytes(elf_file())
    busybox.chmod(0o755)
    monkeypatch.setenv("PATH", str(offline / "bin"))
    monkeypatch.setattr(guestkit, "find_host_kernel", lambda: _find(offline))
    kit = GuestKit.provision(cache=Cache(offline / "cache"), progress=Progress.silent())
    assert kit.kernel.read_bytes() == b"a kernel 6.1.0"
    assert kit.kernel_version == "6.1.0"
    assert kit.busybox.read_bytes() == elf_file()
    assert kit.applets == ()  # this one does not run
    assert [module.name for module in kit.modules.in_load_order(["nvme", "8250-pci"])] == ["nvme"]
    again = GuestKit.provision(cache=Cache(offline / "cache"), progress=Progress.silent())
    assert again.kernel == kit.kernel
    # Another kernel in the same place is another kit.
    (offline / "boot/vmlinuz-6.1.0").write_bytes(b"a newer kernel")
    newer = GuestKit.provision(cache=Cache(offline / "cache"), progress=Progress.silent())
    assert newer.kernel.read_bytes() == b"a newer kernel"


def test_kernel_that_is_damaged(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _put_kernel(offline, "6.1.0")
    image = bytearray(0x400)
    image[0x202:0x206] = b"HdrS"
    (offline / "boot/vmlinuz-6.1.0").write_bytes(image)
    monkeypatch.setattr(guestkit, "find_host_kernel", lambda: _find(offline))
    monkeypatch.setattr(guestkit, "_host_busybox", lambda _: Path("/bin/sh"))
    with pytest.raises(VmUnavailableError, match=r"vmlinuz-6\.1\.0 cannot be used: compressed with something unknown"):
        GuestKit.provision(cache=Cache(offline / "cache"), progress=Progress.silent())


def test_kit_from_debian(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Archive:
        def __init__(self, folder: Path, architecture: str, suites: Sequence[str]) -> None:
            asked.append(f"{architecture} {' '.join(suites)}")

        def dependencies(self, package: str) -> list[str]:
            asked.append(f"dependencies {package}")
            return ["initramfs-tools", "linux-image-6.1.0-9-arm64", "linux-image-other"]

        def download(self, packages: Sequence[str]) -> list[Path]:
            asked.append(f"download {' '.join(packages)}")
            return [Path("a.deb")]

    def unpack(package: Path, folder: Path, wanted: object) -> int:
        _put_kernel(folder, "6.1.0-9-arm64")
        (folder / "bin").mkdir()
        (folder / "bin/busybox").write_bytes(elf_file())
        return 0

    monkeypatch.setattr(guestkit, "DebianArchive", Archive)
    monkeypatch.setattr(guestkit, "unpack_deb", unpack)
    kit = GuestKit.provision("aarch64", cache=Cache(offline / "cache"), progress=Progress.silent())
    assert asked == [
        "arm64 bookworm",
        "dependencies linux-image-arm64",
        "download busybox-static linux-image-6.1.0-9-arm64",
    ]
    assert kit.kernel_version == "6.1.0-9-arm64"
    assert sorted(path.name for path in kit.kernel.parent.iterdir()) == [
        "about.json",
        "busybox",
        "kernel",
        "manifest.json",
        "modules",
    ]


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("boot/vmlinuz-6.1.0", True),
        ("boot/config-6.1.0", False),
        ("bin/busybox", True),
        ("usr/share/doc/x", False),
        ("lib/modules/6.1.0/modules.builtin", True),
        ("lib/modules/6.1.0/kernel/drivers/nvme/host/nvme.ko", True),
        ("lib/modules/6.1.0/kernel/drivers/gpu/drm/drm.ko", False),
        ("lib/modules/6.1.0/kernel/net/core/failover.ko", True),
        ("lib/modules/6.1.0/kernel/net/ipv6/ipv6.ko", False),
        ("lib/modules/6.1.0/kernel/drivers/net/virtio_net.ko", True),
    ],
)
def test_what_is_unpacked(path: str, part: bool) -> None:
    assert guestkit._is_part_of_guest(path) is part


def test_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(VmUnavailableError, match="no guests of architecture 'vax'; those there are: x86_64, aarch64"):
        GuestKit.provision("vax", cache=Cache(tmp_path))


def test_busybox_with_libraries_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = architecture_for("x86_64")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert guestkit._host_busybox(architecture) is None
    busybox = tmp_path / "busybox"
    busybox.touch(0o755)
    for content, taken in (
        (elf_file(interpreter="/lib/ld.so"), None),
        (gzip.compress(b""), None),
        (elf_file(), busybox),
    ):
        busybox.write_bytes(content)
        assert guestkit._host_busybox(architecture) == taken
    assert guestkit._host_busybox(architecture_for("arm64")) is None

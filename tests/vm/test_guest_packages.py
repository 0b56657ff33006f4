from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.vm.elves import elf_file
from vfio_user.errors import VmUnavailableError
from vfio_user.vm import guest_packages
from vfio_user.vm.architecture import ARCHITECTURES
from vfio_user.vm.cache import Cache
from vfio_user.vm.guest_packages import GUEST_PACKAGES, GuestPackage, ensure_package
from vfio_user.vm.progress import Progress

_X86 = ARCHITECTURES["x86_64"]
_LIB = "usr/lib/x86_64-linux-gnu"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes | str]:
    """A package named ``tool``: the files its packages unpack to, which a test may change. Text is a link's target."""
    package = GuestPackage("tool", ("tool",), data=("usr/share/tool/*",))
    monkeypatch.setitem(GUEST_PACKAGES, "tool", package)
    files: dict[str, bytes | str] = {
        "usr/bin/tool": elf_file(interpreter=_X86.loader, needed=["liba.so.1", "libc.so.6"]),
        "usr/bin/unwanted": elf_file(needed=["libunwanted.so"]),
        f"{_LIB}/liba.so.1": "liba.so.1.2",
        f"{_LIB}/liba.so.1.2": elf_file(needed=["libb.so", "libc.so.6"], padding=8),
        f"{_LIB}/libb.so": elf_file(),
        f"{_LIB}/libunwanted.so": elf_file(),
        "lib/x86_64-linux-gnu/libc.so.6": elf_file(needed=["ld-linux-x86-64.so.2"]),
        "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": elf_file(padding=4),
        "lib64/ld-linux-x86-64.so.2": "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "usr/share/tool/table": b"data",
    }

    class Archive:
        def __init__(self, folder: Path, architecture: str, suites: Sequence[str]) -> None:
            assert (architecture, list(suites)) == ("amd64", ["bookworm"])
            folder.mkdir()

        def download_with_dependencies(self, packages: Sequence[str]) -> list[Path]:
            return [Path(packages[0])]

    def unpack(package: Path, folder: Path, wanted: object) -> int:
        assert package == Path("tool")
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.symlink_to(content)
            else:
                path.write_bytes(content)
        return 0

    monkeypatch.setattr(guest_packages, "DebianArchive", Archive)
    monkeypatch.setattr(guest_packages, "unpack_deb", unpack)
    return files


def _ensure(tmp_path: Path) -> Path:
    return ensure_package("tool", _X86, Cache(tmp_path), Progress.silent())


def test_programs_come_with_what_they_need_and_no_more(tool: dict[str, bytes | str], tmp_path: Path) -> None:
    root = _ensure(tmp_path)
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert files == {
        "usr/bin/tool": tool["usr/bin/tool"],
        f"{_LIB}/liba.so.1": tool[f"{_LIB}/liba.so.1.2"],
        f"{_LIB}/libb.so": tool[f"{_LIB}/libb.so"],
        "lib/x86_64-linux-gnu/libc.so.6": tool["lib/x86_64-linux-gnu/libc.so.6"],
        "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": tool["lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"],
        "lib64/ld-linux-x86-64.so.2": tool["lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"],
        "usr/share/tool/table": b"data",
    }
    assert not any(path.is_symlink() for path in root.rglob("*"))
    assert sorted(path.name for path in root.parent.iterdir()) == ["manifest.json", "root"]


def test_missing_library(tool: dict[str, bytes | str], tmp_path: Path) -> None:
    del tool[f"{_LIB}/libb.so"]
    with pytest.raises(VmUnavailableError, match=r"package tool needs libb\.so, which none of its dependencies has"):
        _ensure(tmp_path)


def test_missing_program(tool: dict[str, bytes | str], tmp_path: Path) -> None:
    del tool["usr/bin/tool"]
    with pytest.raises(VmUnavailableError, match="package tool of bookworm has no program tool"):
        _ensure(tmp_path)


def test_unknown_package(tmp_path: Path) -> None:
    with pytest.raises(VmUnavailableError, match="no guest package 'emacs': those there are: pciutils, nvme-cli"):
        ensure_package("emacs", _X86, Cache(tmp_path), Progress.silent())

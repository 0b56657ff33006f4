from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.kernel_modules import KernelModule, KernelModules, collect_modules, module_name


def _module(*said: str) -> bytes:
    return b"\x7fELF code \0" + b"".join(line.encode() + b"\0" for line in said) + b" more code"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "6.1.0"
    modules = {
        "drivers/nvme/host/nvme.ko": _module("alias=pci:v*d*sv*sd*bc01sc08i02*", "depends=nvme-core", "license=GPL"),
        "drivers/nvme/host/nvme-core.ko": _module("depends=t10-pi,crc_hash"),
        "lib/t10-pi.ko.xz": lzma.compress(_module("depends=crc_hash")),
        "lib/crc_hash.ko": _module("depends="),
        "fs/big.ko": _module("softdep=pre: crypto-crc32c absent post: later", "depends=", "alias=fs-big"),
        "crypto/crc32c_soft.ko": _module("depends=", "alias=crypto-crc32c"),
        "drivers/unwanted.ko": _module("depends="),
        "drivers/broken.ko": _module("depends=nowhere"),
    }
    for name, content in modules.items():
        path = folder / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "modules.builtin").write_text("kernel/drivers/built-in.ko\n")
    return folder


def _collect(source: Path, *wanted: str) -> KernelModules:
    return collect_modules(source, source.parent / "kept", lambda path: path.startswith(wanted))


def test_what_is_wanted_comes_with_what_it_needs(source: Path) -> None:
    modules = _collect(source, "drivers/nvme/host/nvme.ko", "fs/big.ko", "crypto/")
    assert sorted(modules) == ["big", "crc32c_soft", "crc_hash", "nvme", "nvme_core", "t10_pi"]
    assert modules.read("t10-pi") == _module("depends=crc_hash")  # unpacked
    assert "nvme-core" in modules
    assert "unwanted" not in modules


def test_load_order(source: Path) -> None:
    modules = _collect(source, "drivers/nvme/host/nvme.ko", "fs/big.ko", "crypto/")
    assert [module.name for module in modules.in_load_order(["nvme", "built_in", "crc-hash"])] == [
        "crc_hash",
        "t10_pi",
        "nvme_core",
        "nvme",
    ]
    # A soft dependency is found through an alias, and one that does not exist is done without.
    assert [module.name for module in modules.in_load_order(["big"])] == ["crc32c_soft", "big"]


def test_the_index_is_read_again(source: Path) -> None:
    made = _collect(source, "fs/")
    again = KernelModules(made.folder)
    assert again.in_load_order(["big"]) == made.in_load_order(["big"])
    assert again.in_load_order(["built-in"]) == []


def test_unknown_module_is_named_with_the_nearest(source: Path) -> None:
    modules = _collect(source, "drivers/nvme/host/nvme.ko")
    with pytest.raises(VmUnavailableError, match=r"no module 'nvmee' \(wanted by the caller\); did you mean nvme\?"):
        modules.in_load_order(["nvmee"])


def test_missing_dependency(source: Path) -> None:
    with pytest.raises(VmUnavailableError, match="incomplete: nowhere is needed and missing"):
        _collect(source, "drivers/broken.ko")


def test_parse() -> None:
    module = KernelModule.parse("a", _module("depends=b-c,d", "softdep=pre: x y", "alias=one", "alias=two"))
    assert module == KernelModule("a", needs=("b_c", "d"), wants=("x", "y"), aliases=("one", "two"))
    assert KernelModule.parse("a", _module("softdep=post: z")).wants == ()


@pytest.mark.parametrize("text", ["a-b", "a_b.ko", "x/y/a-b.ko.xz", "a_b.ko.zst", "a-b.ko.gz"])
def test_name(text: str) -> None:
    assert module_name(text) == "a_b"

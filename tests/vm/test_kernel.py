from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess

import pytest

from tests.vm.elves import elf_file
from vfio_user.errors import VmUnavailableError
from vfio_user.vm.kernel import bootable_kernel, decompress, unpack_bzimage

_KERNEL = elf_file(notes=[(b"Xen\0", 18, b"\0\0\0\x01")], padding=5000)


def _bzimage(payload: bytes, setup_sectors: int = 3) -> bytes:
    setup = bytearray((setup_sectors or 4) * 512 + 512)
    setup[0x1F1] = setup_sectors
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 64, len(payload))
    return bytes(setup) + bytes(64) + payload + b"tail of the image"


@pytest.mark.parametrize(
    "pack", [gzip.compress, lzma.compress, bz2.compress, lambda data: lzma.compress(data, lzma.FORMAT_ALONE)]
)
def test_each_packing(pack: object) -> None:
    assert callable(pack)
    packed = pack(_KERNEL)
    assert decompress(packed + b"what follows") == _KERNEL
    assert unpack_bzimage(_bzimage(packed)) == _KERNEL
    assert bootable_kernel(_bzimage(packed, setup_sectors=0)) == _KERNEL


@pytest.mark.parametrize("program", ["zstd", "lz4"])
def test_packings_that_need_a_program(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} on the PATH")
    packed = subprocess.run([program, "-c"], input=_KERNEL, capture_output=True, check=True).stdout
    assert decompress(packed) == _KERNEL


def test_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(VmUnavailableError, match="packed with zstd, which is missing: install zstd"):
        decompress(b"\x28\xb5\x2f\xfd")


@pytest.mark.parametrize("damaged", [b"\x1f\x8bnonsense", b"\xfd7zXZ\0nonsense", b"BZhnonsense", b"what is this"])
def test_damaged_data(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"damaged|unknown: begins 77686174"):
        decompress(damaged)


def test_a_kernel_without_the_direct_entry_stays_packed() -> None:
    image = _bzimage(gzip.compress(elf_file()))
    assert bootable_kernel(image) is image


def test_what_is_no_bzimage() -> None:
    arm64_image = b"MZ" + bytes(1000)
    assert bootable_kernel(arm64_image) is arm64_image
    with pytest.raises(ValueError, match="no boot header"):
        unpack_bzimage(arm64_image)
    with pytest.raises(ValueError, match="no 64-bit ELF kernel: begins 68656c6c6f"):
        unpack_bzimage(_bzimage(gzip.compress(b"hello")))

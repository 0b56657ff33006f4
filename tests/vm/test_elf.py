from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.vm.elves import elf_file
from vfio_user.vm.elf import ElfFile, is_elf


def test_a_program_with_libraries() -> None:
    file = ElfFile(elf_file(interpreter="/lib64/loader.so", needed=["libc.so.6", "libm.so.6"]))
    assert file.needed == ["libc.so.6", "libm.so.6"]
    assert file.interpreter == "/lib64/loader.so"
    assert not file.is_static
    assert not file.has_pvh_entry


def test_a_static_program() -> None:
    file = ElfFile(elf_file())
    assert (file.needed, file.interpreter, file.is_static) == ([], None, True)


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ([(b"Linux\0", 18, b"abc"), (b"Xen\0", 6, b"linux"), (b"Xen\0", 18, bytes(8))], True),
        ([(b"Linux\0", 18, b"abc"), (b"Xen\0", 6, b"linux")], False),
    ],
)
def test_direct_entry_of_a_kernel(notes: list[tuple[bytes, int, bytes]], expected: bool) -> None:
    assert ElfFile(elf_file(notes=notes)).has_pvh_entry is expected


def test_a_real_program() -> None:
    content = Path(sys.executable).read_bytes()
    assert is_elf(content)
    assert any(name.startswith("libc.so") for name in ElfFile(content).needed)


def test_what_is_none() -> None:
    with pytest.raises(ValueError, match="begins 23212f62696e"):
        ElfFile(b"#!/bin/sh\n")
    with pytest.raises(ValueError, match="cut short"):
        ElfFile(elf_file()[:40])
    with pytest.raises(ValueError, match="cut short"):
        ElfFile(elf_file()[:100])

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vfio_user.errors import VmError, VmUnavailableError
from vfio_user.vm.cache import Cache
from vfio_user.vm.elf import ElfFile
from vfio_user.vm.guestprogram import compile_guest_program


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc on the PATH")
def test_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    source = tmp_path / "answer.c"
    source.write_text("int main(void) { return ANSWER; }")
    cache = Cache(tmp_path / "cache")
    program = compile_guest_program(source, options=("-DANSWER=42",), cache=cache)
    assert program.name == "answer"
    assert ElfFile(program.read_bytes()).is_static
    assert subprocess.run([program], check=False).returncode == 42
    made = program.stat().st_mtime_ns
    assert compile_guest_program(source, options=("-DANSWER=42",), cache=cache).stat().st_mtime_ns == made
    assert compile_guest_program(source, options=("-DANSWER=43",), cache=cache) != program
    with pytest.raises(VmError, match=r"(?s)gcc -static -O1 -Wall .* failed:.*ANSWER"):
        compile_guest_program(source, cache=cache)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.c"
    source.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(VmUnavailableError, match=r"no C compiler for x86_64 guests .*apt install gcc libc6-dev"):
        compile_guest_program(source, cache=Cache(tmp_path))
    with pytest.raises(VmUnavailableError, match=r"no C compiler for aarch64 guests"):
        compile_guest_program(source, arch="arm64", cache=Cache(tmp_path))
    monkeypatch.setenv("CC", "/nowhere/cc -m64")
    with pytest.raises(VmUnavailableError, match=r"the compiler /nowhere/cc -m64 does not run: No such file"):
        compile_guest_program(source, cache=Cache(tmp_path))


def test_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "true")
    with pytest.raises(VmUnavailableError, match=r"b\.c cannot be compiled for the guest: No such file"):
        compile_guest_program(tmp_path / "b.c", cache=Cache(tmp_path))

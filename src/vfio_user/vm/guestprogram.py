"""Compiles small C programs for guests: static, so that they run on any guest of the same architecture."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from vfio_user.errors import VmError, VmUnavailableError
from vfio_user.vm.architecture import architecture_for
from vfio_user.vm.cache import Cache

__all__ = ["compile_guest_program"]

_OPTIONS = ("-static", "-O1", "-Wall")

#: Seconds a compilation may take.
_TIMEOUT = 120.0


def compile_guest_program(
    source: Path, *, arch: str = "x86_64", options: tuple[str, ...] = (), cache: Cache | None = None
) -> Path:
    """Compiles a C file into a static program, once for each content; put it into a guest with ``files``.

    Args:
        source: the C file. Only its own content decides whether it is compiled again, not that of headers.
        arch: the guest's architecture. The compiler is ``$CC``, or gcc for that architecture.
        options: further compiler options.
        cache: where to keep it; the default cache when left out.

    Returns:
        The program.

    Raises:
        VmUnavailableError: there is no compiler, or the source cannot be read.
        VmError: it does not compile; the text is the compiler's.
    """
    compiler = _find_compiler(arch)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise VmUnavailableError(f"{source} cannot be compiled for the guest: {error.strerror}") from error
    recipe = {
        "source": hashlib.sha256(content).hexdigest(),
        "compiler": _describe(compiler),
        "options": [*_OPTIONS, *options],
    }

    def build(folder: Path) -> None:
        command = [*compiler, *_OPTIONS, *options, "-o", str(folder / source.stem), str(source)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
        if outcome.returncode != 0:
            hint = ""
            if "cannot find -lc" in outcome.stderr:
                hint = "\nThe static C library is missing: apt install libc6-dev"
            raise VmError(f"{shlex.join(command)} failed:\n{outcome.stderr.strip()}{hint}")

    return (cache or Cache()).ensure(f"program-{source.stem}", recipe, build) / source.stem


def _find_compiler(arch: str) -> list[str]:
    architecture = architecture_for(arch)
    if named := os.environ.get("CC"):
        return shlex.split(named)
    candidates = [f"{architecture.name}-linux-gnu-gcc"]
    if os.uname().machine == architecture.name:
        candidates += ["gcc", "cc"]
    for name in candidates:
        if shutil.which(name):
            return [name]
    raise VmUnavailableError(
        f"there is no C compiler for {architecture.name} guests ({', '.join(candidates)}): apt install gcc libc6-dev, "
        "or name one in CC"
    )


def _describe(compiler: list[str]) -> str:
    """What tells one compiler from another: its name and the first line of its version."""
    try:
        outcome = subprocess.run(
            [*compiler, "--version"], capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
    except OSError as error:
        raise VmUnavailableError(f"the compiler {shlex.join(compiler)} does not run: {error.strerror}") from error
    return f"{shlex.join(compiler)}: {outcome.stdout.partition(chr(10))[0]}"

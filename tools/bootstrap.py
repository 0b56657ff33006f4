"""Makes the virtual environment the Makefile uses, from a bare clone; where it cannot go on, says what is missing.

The standard library alone, since nothing is there yet when this runs. A Debian system may have Python without pip and
without ``ensurepip`` (its package python3-venv), so pip is looked for in this order: what ``venv`` brings, the one
outside the environment, ``uv``, and at last Debian's package of pip's wheel, which is fetched without being root.

    python3 tools/bootstrap.py                the package alone, as a user has it
    python3 tools/bootstrap.py --group dev    and what the tests and checks need

pip learnt to read ``[dependency-groups]`` in 25.1 only, so the group is read here.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Debian's package of pip's wheel, which can be run as it is, and the release it is taken from.
PIP_PACKAGE, PIP_RELEASE = "python3-pip-whl", "bookworm"


class BootstrapError(Exception):
    """It cannot go on; the text says why, and what to do."""


def requirements(pyproject: Path, group: str) -> list[str]:
    """The requirements of a dependency group.

    Raises:
        BootstrapError: there is no such group, or an entry of it is no requirement.
    """
    groups = tomllib.loads(pyproject.read_text()).get("dependency-groups", {})
    if group not in groups:
        raise BootstrapError(
            f"{pyproject.name} has no dependency group {group!r}; it has {', '.join(groups) or 'none'}"
        )
    entries = groups[group]
    for entry in entries:
        if not isinstance(entry, str):
            raise BootstrapError(f"dependency group {group!r} holds {entry!r}; only plain requirements are read here")
    return list(entries)


def is_usable(python: Path) -> bool:
    """The environment's interpreter runs. One made by a Python that has since been upgraded or removed does not."""
    return python.exists() and subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0


def create(environment: Path) -> None:
    """Makes an environment, with pip in it where this Python can do that by itself."""
    print(f"making {environment.name} with Python {sys.version.split()[0]}", flush=True)
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    try:
        venv.create(environment, clear=True, symlinks=True, with_pip=has_ensurepip)
    except subprocess.CalledProcessError:
        # Debian's ensurepip can be there and refuse to work.
        venv.create(environment, clear=True, symlinks=True, with_pip=False)


def installer(python: Path) -> list[str]:
    """The command that installs into the environment: append what to install.

    Raises:
        BootstrapError: there is none, and none can be fetched.
    """
    pip_options = ["install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location"]
    inside = [str(python), "-m", "pip"]
    outside = [sys.executable, "-m", "pip", "--python", str(python)]
    for command in (inside, outside):
        if subprocess.run([*command, "--version"], check=False, capture_output=True).returncode == 0:
            return [*command, *pip_options]
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--quiet", "--python", str(python)]
    print(f"no pip on this system: fetching Debian's {PIP_PACKAGE}", flush=True)
    return [str(python), f"{fetch_wheel(python.parent.parent / 'pip')}/pip", *pip_options]


def fetch_wheel(folder: Path) -> Path:
    """Fetches pip's wheel into a folder, from the mirror apt is configured with, whose signatures apt checks.

    Raises:
        BootstrapError: this is no Debian, or the package cannot be fetched.
    """
    sys.path.insert(0, str(ROOT / "src"))
    try:
        from vfio_user.errors import VmUnavailableError
        from vfio_user.vm.debian import DebianArchive, unpack_deb
    finally:
        sys.path.remove(str(ROOT / "src"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for package in DebianArchive(folder / "apt", "amd64", [PIP_RELEASE]).download([PIP_PACKAGE]):
            unpack_deb(package, folder)
        return next(folder.glob("usr/share/python-wheels/pip-*.whl"))
    except (VmUnavailableError, OSError, StopIteration) as exc:
        raise BootstrapError(f"pip cannot be fetched: {exc}\nInstall it first: apt install python3-venv") from exc


def install(command: Sequence[str], wanted: Sequence[str]) -> None:
    """Installs the package in place, and what else is wanted.

    Raises:
        BootstrapError: the installer failed; its own words are in the text.
    """
    names = [re.split(r"[<>=!~ \[;]", requirement, maxsplit=1)[0] for requirement in wanted]
    print(f"installing {', '.join(['vfio-user', *names])}", flush=True)
    done = subprocess.run(
        [*command, "--editable", ".", *wanted],
        check=False,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise BootstrapError(
            f"{done.stdout.strip()}\n\nThe installation failed, for the reason above. If that is the network: "
            "packages come from PyPI, and PIP_INDEX_URL names another index."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Make the virtual environment this project runs in.")
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv", help="where (default: .venv)")
    parser.add_argument("--group", action="append", default=[], help="a dependency group to install as well")
    options = parser.parse_args(arguments)
    python = options.environment.absolute() / "bin" / "python"
    try:
        wanted = [entry for group in options.group for entry in requirements(ROOT / "pyproject.toml", group)]
        if not is_usable(python):
            create(python.parent.parent)
        install(installer(python), wanted)
    except BootstrapError as exc:
        print(f"\n{exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes the virtual environment the Makefile uses, from a bare clone; where it cannot go on, says what is missing.

The standard library alone, since nothing is there yet when this runs. A Debian system may have Python without pip and
without ``ensurepip`` (its package python3-venv), so pip is looked for in this order: what ``venv`` brings, the one
outside the environment, ``uv``, and at last pip's own wheel from the package index, whose checksum is pinned here.

    python3 tools/bootstrap.py                the package alone, as a user has it
    python3 tools/bootstrap.py --group dev    and what the tests and checks need

pip learnt to read ``[dependency-groups]`` in 25.1 only, so the group is read here.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.parse
import urllib.request
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: The release that is fetched where there is no pip at all: a wheel can be run as it is.
PIP_WHEEL = "pip-25.0.1-py3-none-any.whl"
PIP_SHA256 = "c46efd13b6aa8279f33f2864459c8ce587ea6a1a59ee20de055868d8f7688f7f"

#: Seconds until a package index that does not answer is given up.
FETCH_TIMEOUT = 30


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
    print(f"no pip on this system: fetching {PIP_WHEEL}", flush=True)
    wheel = python.parent.parent / PIP_WHEEL
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
    try:
        wheel.write_bytes(fetch_wheel(index, PIP_WHEEL, PIP_SHA256))
    except BootstrapError as exc:
        raise BootstrapError(f"{exc}\nOr install pip first: apt install python3-venv") from exc
    return [str(python), f"{wheel}/pip", *pip_options]


def fetch_wheel(index: str, name: str, sha256: str) -> bytes:
    """A file of a project on a package index, which has that checksum.

    Args:
        index: the index's address, as pip's ``--index-url`` has it.
        name: the file; the project's name is what stands before its first hyphen.
        sha256: in hexadecimal.

    Raises:
        BootstrapError: it cannot be fetched, is not there, or is not what it should be.
    """
    page = f"{index.rstrip('/')}/{name.split('-', 1)[0]}/"
    try:
        with urllib.request.urlopen(page, timeout=FETCH_TIMEOUT) as reply:
            found = re.search(rf'href="([^"]*/{re.escape(name)})[#"]', reply.read().decode())
            if found is None:
                raise BootstrapError(f"{page} does not offer {name}")
            address = urllib.parse.urljoin(reply.url, found[1])
        with urllib.request.urlopen(address, timeout=FETCH_TIMEOUT) as reply:
            content: bytes = reply.read()
    except (urllib.error.URLError, OSError) as exc:
        raise BootstrapError(
            f"cannot fetch {name} from {page}: {exc}\nIs there a network? PIP_INDEX_URL names another package index."
        ) from exc
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BootstrapError(f"{name} from {page} has another checksum than the one pinned in {__file__}")
    return content


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

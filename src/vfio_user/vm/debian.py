"""Fetches and unpacks Debian packages without root, and without touching the machine's own package state.

`DebianArchive` is apt with folders of its own: its lists, its cache and an empty status file. The mirror is the one
apt is configured with here (or ``$DEBIAN_MIRROR``), so a machine behind a mirror of its own keeps using it.

Spec: sources.list(5), deb822(5), apt.conf(5).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from vfio_user.errors import VmUnavailableError

__all__ = ["DebianArchive", "PackagesMissingError", "configured_mirror", "find_mirror", "missing_tools", "unpack_deb"]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_APT_FOLDER = Path("/etc/apt")
_TOOLS = ("apt-get", "apt-cache", "dpkg-deb")

#: Seconds any one apt or dpkg-deb run may take. A download of 40 MB on a slow line fits; a dead proxy does not hang us.
_TIMEOUT = 600.0

#: Longest part of apt's complaint that an error message repeats, in lines.
_COMPLAINT_LINES = 6


class PackagesMissingError(VmUnavailableError):
    """apt could not find, or fetch, the packages asked for."""


def missing_tools() -> list[str]:
    """What this machine lacks to fetch Debian packages, by name; empty when it lacks nothing."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if not _KEYRING.exists():
        missing.append("debian-archive-keyring")
    return missing


def find_mirror(texts: Iterable[tuple[str, str]]) -> str | None:
    """Finds the Debian mirror among the contents of apt's sources files.

    Args:
        texts: pairs of a file's name and its content; ``*.sources`` holds deb822 stanzas, anything else one-line
            entries.

    Returns:
        The first http(s) URI whose path ends in ``/debian``, without a slash at its end; the security archive and
        other vendors' archives are passed over, as they hold no whole release.
    """
    for name, text in texts:
        uris = _deb822_uris(text) if name.endswith(".sources") else _one_line_uris(text)
        for uri in uris:
            if re.fullmatch(r"https?://\S+/debian/?", uri):
                return uri.rstrip("/")
    return None


def _deb822_uris(text: str) -> Iterator[str]:
    """The URIs of the stanzas that are enabled and of type deb. A field continues on lines that begin with a blank."""
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        current = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t"):
                if current:
                    fields[current] += " " + line.strip()
            elif ":" in line:
                current, _, value = line.partition(":")
                current = current.strip().lower()
                fields[current] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in ("no", "false"):
            yield from fields.get("uris", "").split()


def _one_line_uris(text: str) -> Iterator[str]:
    """The URIs of ``deb [options] uri suite component...`` lines."""
    for line in text.splitlines():
        if found := re.match(r"\s*deb\s+(?:\[[^\]]*\]\s*)?(\S+)", line):
            yield found[1]


def configured_mirror() -> str:
    """The Debian mirror of this machine: ``$DEBIAN_MIRROR``, or else the one apt is configured with.

    Raises:
        VmUnavailableError: there is none.
    """
    if named := os.environ.get("DEBIAN_MIRROR"):
        return named.rstrip("/")
    parts = _APT_FOLDER / "sources.list.d"
    files = [_APT_FOLDER / "sources.list", *sorted(parts.glob("*.sources")), *sorted(parts.glob("*.list"))]
    texts = []
    for file in files:
        try:
            texts.append((file.name, file.read_text(errors="replace")))
        except OSError:
            continue
    if mirror := find_mirror(texts):
        return mirror
    raise VmUnavailableError(
        f"no Debian mirror among the sources of apt in {_APT_FOLDER}: "
        "set DEBIAN_MIRROR to the address of one (it ends in /debian)"
    )


class DebianArchive:
    """Some suites of the Debian archive, seen through an apt of their own.

    Args:
        folder: where apt's lists and packages go; empty or missing.
        architecture: Debian's name of the packages' architecture.
        suites: the suites, for instance ``trixie`` and ``trixie-backports``.

    Raises:
        VmUnavailableError: apt, the archive's keys or a mirror is missing here, or the mirror does not answer.
    """

    def __init__(self, folder: Path, architecture: str, suites: Sequence[str]) -> None:
        if missing := missing_tools():
            raise VmUnavailableError(
                f"packages cannot be fetched: {', '.join(missing)} missing. On Debian or a relative of it: "
                "apt install apt dpkg debian-archive-keyring. Elsewhere install QEMU >= 10.1, busybox-static and a "
                "kernel with its modules from your distribution"
            )
        self._folder = folder
        self._suites = tuple(suites)
        self._archives = folder / "archives"
        for name in ("parts", "lists/partial", "archives/partial", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        mirror = configured_mirror()
        lines = [f"deb [signed-by={_KEYRING} arch={architecture}] {mirror} {suite} main\n" for suite in suites]
        (folder / "sources.list").write_text("".join(lines))
        (folder / "apt.conf").write_text(_apt_configuration(folder, architecture))
        self._apt("apt-get", "update")

    def download(self, packages: Sequence[str], *, target: str | None = None) -> list[Path]:
        """Fetches exactly these packages, without what they depend on.

        Args:
            packages: their names.
            target: the suite to prefer.

        Returns:
            The package files.

        Raises:
            PackagesMissingError: one of them has no such name, or cannot be fetched.
        """
        return self._fetch(["download", *packages], target, "the packages cannot be fetched")

    def download_with_dependencies(self, packages: Sequence[str], *, target: str | None = None) -> list[Path]:
        """Fetches these packages and all they depend on, as apt's solver sees it for an empty system.

        Raises:
            PackagesMissingError: apt finds no solution, or cannot fetch it.
        """
        arguments = ["install", "--yes", "--download-only", *packages]
        return self._fetch(arguments, target, f"{' '.join(packages)} cannot be fetched")

    def dependencies(self, package: str) -> list[str]:
        """The names a package depends on, alternatives and versions left out."""
        text = self._apt("apt-cache", "show", "--no-all-versions", package)
        depends = re.search(r"^Depends: *(.*)$", text, re.MULTILINE)
        return [re.split(r"[ (|:]", name.strip())[0] for name in depends[1].split(",")] if depends else []

    def _fetch(self, arguments: Sequence[str], target: str | None, complaint: str) -> list[Path]:
        before = set(self._archives.glob("*.deb"))
        options = ["-t", target] if target else []
        try:
            self._apt("apt-get", *options, *arguments)
        except VmUnavailableError as error:
            raise PackagesMissingError(f"{complaint} from {' and '.join(self._suites)}: {error}") from error
        return sorted(set(self._archives.glob("*.deb")) - before)

    def _apt(self, program: str, *arguments: str) -> str:
        command = [program, "-c", str(self._folder / "apt.conf"), *arguments]
        # `apt-get download` writes into the current folder.
        outcome = _run(command, self._archives)
        if outcome.returncode != 0:
            complaint = "\n".join(outcome.stderr.strip().splitlines()[-_COMPLAINT_LINES:])
            raise VmUnavailableError(
                f"{program} {arguments[0]} failed (status {outcome.returncode}):\n{complaint}\n"
                "Check that this machine reaches its Debian mirror, or set DEBIAN_MIRROR to one it reaches"
            )
        return outcome.stdout


def _apt_configuration(folder: Path, architecture: str) -> str:
    """Settings of apt for folders of our own, read after the machine's own, whose proxy settings stay."""
    settings = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": folder / "parts",
        "Dir::Etc::Preferences": folder / "preferences",
        "Dir::Etc::PreferencesParts": folder / "parts",
        "Dir::State": folder,
        "Dir::State::status": folder / "status",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "Dir::Log": folder / "log",
        "APT::Architecture": architecture,
        "APT::Sandbox::User": "",  # as root, apt would drop to a user who cannot read these folders
        "APT::Install-Recommends": "false",
        "APT::Keep-Downloaded-Packages": "true",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "quiet": "2",
    }
    # Hooks belong to the machine's own package state, and would run (or fail) here for nothing.
    clear = ["APT::Architectures", "APT::Update::Pre-Invoke", "APT::Update::Post-Invoke"]
    clear += ["APT::Update::Post-Invoke-Success", "DPkg::Pre-Install-Pkgs", "DPkg::Pre-Invoke", "DPkg::Post-Invoke"]
    lines = [f"#clear {name};" for name in clear]
    lines += [f'{name} "{value}";' for name, value in settings.items()]
    lines.append(f'APT::Architectures {{ "{architecture}"; }};')
    return "\n".join(lines) + "\n"


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise VmUnavailableError(
            f"{command[0]} did not finish in {_TIMEOUT:.0f} s: check that this machine reaches its Debian mirror, "
            "or set DEBIAN_MIRROR to one it reaches"
        ) from error


def unpack_deb(package: Path, folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> int:
    """Unpacks the files of a package, as an ordinary user.

    Args:
        package: the ``.deb`` file.
        folder: where its root goes.
        wanted: told the path of each file and link (relative, no leading ``./``); False leaves it out. Folders
            come into being with what is in them.

    Returns:
        The bytes written.

    Raises:
        VmUnavailableError: the package is damaged.
    """
    written = 0
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=1 << 20) as unpacker:
        assert unpacker.stdout is not None
        assert unpacker.stderr is not None
        try:
            with tarfile.open(fileobj=unpacker.stdout, mode="r|", bufsize=1 << 20) as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    if path.is_absolute() or ".." in path.parts:
                        raise tarfile.TarError(f"{member.name} lies outside the package")
                    if not member.isdir() and wanted(str(path)):
                        written += _write_member(archive, member, folder, path)
        except tarfile.TarError as error:
            unpacker.kill()
            raise VmUnavailableError(f"{package.name} is damaged ({error}): try again, it is fetched anew") from error
        complaint = unpacker.stderr.read().decode(errors="replace").strip()
    if unpacker.returncode != 0:
        raise VmUnavailableError(f"{package.name} is damaged ({complaint}): try again, it is fetched anew")
    return written


def _write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, path: PurePosixPath) -> int:
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    if member.issym():
        place.symlink_to(member.linkname)
        return 0
    if member.islnk():
        source = folder / member.linkname
        if source.exists():  # the file it shares its content with may not have been wanted
            place.hardlink_to(source)
        return 0
    content = archive.extractfile(member)
    if content is None:
        return 0  # device nodes and pipes: no package we unpack has any worth keeping
    with content, place.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    place.chmod(0o755 if member.mode & 0o111 else 0o644)
    return member.size

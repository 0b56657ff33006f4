from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vfio_user.errors import VmUnavailableError
from vfio_user.vm import debian
from vfio_user.vm.debian import DebianArchive, PackagesMissingError, configured_mirror, find_mirror, unpack_deb

_DEB822 = """\
# a comment
Types: deb
URIs: http://mirror.example/security
Suites: stable-security

Types: deb-src
URIs: http://sources.example/debian

Types: deb
Enabled: no
URIs: http://disabled.example/debian

Types: deb deb-src
# a comment inside
URIs: http://other.example/ubuntu
 https://mirror.example/debian/
Suites: stable
"""


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("debian.sources", _DEB822, "https://mirror.example/debian"),
        ("debian.sources", "Types: deb\nURIs: http://a.example/debian-security", None),
        ("debian.sources", " continuation of nothing\nTypes: deb\nURIs:", None),
        ("sources.list", "deb http://a.example/debian stable main", "http://a.example/debian"),
        ("sources.list", "# deb http://a.example/debian stable main", None),
        ("sources.list", "deb-src http://a.example/debian stable main", None),
        (
            "sources.list",
            "deb http://s.example/debian-security x\ndeb\t[arch=amd64 signed-by=/a] http://b.example/x/debian/ y main",
            "http://b.example/x/debian",
        ),
        ("sources.list", "deb cdrom:[Debian]/ stable main\ndeb file:/srv/debian stable main", None),
        ("sources.list", "", None),
    ],
)
def test_mirror(name: str, text: str, expected: str | None) -> None:
    assert find_mirror([(name, text)]) == expected


def test_first_file_wins() -> None:
    entry = "deb http://{}.example/debian stable main"
    assert find_mirror([("a.list", "nothing"), ("b.list", entry.format("b")), ("c.list", entry.format("c"))]) == (
        "http://b.example/debian"
    )


@pytest.fixture
def apt_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DEBIAN_MIRROR", raising=False)
    folder = tmp_path / "etc-apt"
    (folder / "sources.list.d").mkdir(parents=True)
    monkeypatch.setattr(debian, "_APT_FOLDER", folder)
    return folder


def test_configured_mirror(apt_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VmUnavailableError, match=r"no Debian mirror among the sources of apt.*set DEBIAN_MIRROR"):
        configured_mirror()
    (apt_folder / "sources.list.d/x.list.disabled").write_text("deb http://no.example/debian a main")
    (apt_folder / "sources.list.d/debian.sources").write_text(_DEB822)
    assert configured_mirror() == "https://mirror.example/debian"
    (apt_folder / "sources.list").write_text("deb http://list.example/debian a main")
    assert configured_mirror() == "http://list.example/debian"
    monkeypatch.setenv("DEBIAN_MIRROR", "http://named.example/debian/")
    assert configured_mirror() == "http://named.example/debian"


def _fake_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts an apt-get and an apt-cache of our own first on the PATH."""
    folder.mkdir()
    for name in ("apt-get", "apt-cache", "dpkg-deb"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    (folder / "keyring").touch()
    monkeypatch.setattr(debian, "_KEYRING", folder / "keyring")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("DEBIAN_MIRROR", "http://mirror.example/debian")


def test_archive_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"""echo "${{0##*/}} $*" >>{tmp_path}/log
    case "$3-$5" in
      download-*|*-download) touch one_1.deb two_2.deb ;;
      install-*|*-install) touch three_3.deb ;;
      show-*) printf 'Package: a\\nDepends: one (>= 2), two:any | three, linux-image-6.1.0-9-amd64 (= 6.1)\\n' ;;
    esac"""
    _fake_tools(tmp_path / "bin", monkeypatch, script)
    archive = DebianArchive(tmp_path / "apt", "amd64", ["trixie", "trixie-backports"])
    assert [path.name for path in archive.download(["one", "two"], target="trixie-backports")] == [
        "one_1.deb",
        "two_2.deb",
    ]
    # Only what this call brought.
    assert [path.name for path in archive.download_with_dependencies(["three"])] == ["three_3.deb"]
    assert archive.dependencies("a") == ["one", "two", "linux-image-6.1.0-9-amd64"]
    conf = f"-c {tmp_path}/apt/apt.conf"
    assert (tmp_path / "log").read_text().splitlines() == [
        f"apt-get {conf} update",
        f"apt-get {conf} -t trixie-backports download one two",
        f"apt-get {conf} install --yes --download-only three",
        f"apt-cache {conf} show --no-all-versions a",
    ]
    keyring = tmp_path / "bin/keyring"
    assert (tmp_path / "apt/sources.list").read_text() == (
        f"deb [signed-by={keyring} arch=amd64] http://mirror.example/debian trixie main\n"
        f"deb [signed-by={keyring} arch=amd64] http://mirror.example/debian trixie-backports main\n"
    )


def test_archive_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_tools(tmp_path / "bin", monkeypatch, "case $3 in update) ;; *) echo 'E: no package x' >&2; exit 100;; esac")
    archive = DebianArchive(tmp_path / "apt", "amd64", ["trixie"])
    with pytest.raises(PackagesMissingError, match=r"(?s)fetched from trixie: apt-get download .*E: no package x"):
        archive.download(["x"])
    with pytest.raises(PackagesMissingError, match="x y cannot be fetched from trixie"):
        archive.download_with_dependencies(["x", "y"])
    with pytest.raises(VmUnavailableError, match=r"apt-cache show failed \(status 100\)"):
        archive.dependencies("x")


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_tools(tmp_path / "bin", monkeypatch, "echo 'E: Could not resolve host' >&2; exit 100")
    with pytest.raises(VmUnavailableError, match=r"(?s)Could not resolve host.*or set DEBIAN_MIRROR"):
        DebianArchive(tmp_path / "apt", "amd64", ["trixie"])


def test_apt_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_tools(tmp_path / "bin", monkeypatch, "exec sleep 60")
    monkeypatch.setattr(debian, "_TIMEOUT", 0.05)
    with pytest.raises(VmUnavailableError, match="apt-get did not finish"):
        DebianArchive(tmp_path / "apt", "amd64", ["trixie"])


def test_missing_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(debian, "_KEYRING", tmp_path / "nothing")
    with pytest.raises(VmUnavailableError, match="apt-get, apt-cache, dpkg-deb, debian-archive-keyring missing"):
        DebianArchive(tmp_path / "apt", "amd64", ["trixie"])


@pytest.fixture
def package(tmp_path: Path) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb on the PATH")
    root = tmp_path / "source"
    for name, content in {"usr/bin/tool": "tool", "usr/share/doc/x": "text", "etc/conf": "conf"}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "usr/bin/tool").chmod(0o4755)
    (root / "usr/bin/alias").symlink_to("tool")
    (root / "usr/bin/twin").hardlink_to(root / "usr/bin/tool")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text("Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n")
    deb = tmp_path / "x.deb"
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", str(root), str(deb)], check=True, capture_output=True)
    return deb


def test_unpack(package: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    written = unpack_deb(package, root, lambda path: not path.startswith("usr/share/"))
    assert written == len("tool") + len("conf")
    assert (root / "usr/bin/tool").read_text() == "tool"
    assert (root / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (root / "etc/conf").stat().st_mode & 0o7777 == 0o644
    assert (root / "usr/bin/alias").readlink() == Path("tool")
    assert (root / "usr/bin/twin").read_text() == "tool"
    assert not (root / "usr/share").exists()
    unpack_deb(package, root)  # over what is there
    assert (root / "usr/share/doc/x").read_text() == "text"


def test_unpack_without_the_file_a_link_shares(package: Path, tmp_path: Path) -> None:
    unpack_deb(package, tmp_path / "root", lambda path: path.endswith(("alias", "conf")))
    assert sorted(path.name for path in (tmp_path / "root").rglob("*") if not path.is_dir()) == ["alias", "conf"]


def test_damaged_package(package: Path, tmp_path: Path) -> None:
    package.write_bytes(package.read_bytes()[:-60])
    with pytest.raises(VmUnavailableError, match=r"x\.deb is damaged"):
        unpack_deb(package, tmp_path / "root")
    package.write_bytes(b"nonsense")
    with pytest.raises(VmUnavailableError, match=r"x\.deb is damaged"):
        unpack_deb(package, tmp_path / "root")


def test_package_that_climbs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = tmp_path / "evil.tar"
    (tmp_path / "evil").touch()
    subprocess.run(
        ["tar", "-C", str(tmp_path), "-cPf", str(tar), "--transform", "s,^,../,", "evil"],
        check=True,
        capture_output=True,
    )
    _fake_tools(tmp_path / "bin", monkeypatch, f"cat {tar}")
    with pytest.raises(VmUnavailableError, match=r"\.\./evil lies outside the package"):
        unpack_deb(tmp_path / "x.deb", tmp_path / "root")

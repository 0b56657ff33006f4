"""Makes the file system a guest boots from: busybox, an init, and what was asked for, nothing else.

A small image is a fast boot: busybox alone is 2 MB, and each module or package adds what it needs and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.cpio import CpioArchive
from vfio_user.vm.elf import is_elf
from vfio_user.vm.guestkit import GuestKit
from vfio_user.vm.kernel_modules import KernelModule

__all__ = ["INIT_SCRIPT", "build_initramfs", "initramfs_archive"]

#: The init of our guests; see the comment at its top for how it talks to the host.
INIT_SCRIPT = resources.files(__package__ or "vfio_user.vm").joinpath("guest_init.sh").read_text()

_FOLDERS = ("bin", "dev", "etc", "lib", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin")


def initramfs_archive(
    kit: GuestKit,
    *,
    modules: Iterable[str] = (),
    load: Iterable[str] = (),
    packages: Iterable[str] = (),
    files: Mapping[str, bytes | str | Path] | None = None,
    main: str | None = None,
    init: str = INIT_SCRIPT,
) -> CpioArchive:
    """Puts an initramfs together; see `build_initramfs` for the arguments."""
    archive = CpioArchive()
    for folder in _FOLDERS:
        archive.folder(folder)
    # The kernel opens it as init's standard input and output, before init can mount anything.
    archive.device("dev/console", 5, 1)
    for package in packages:
        root = kit.package(package)
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.file(str(file.relative_to(root)), file.read_bytes(), file.stat().st_mode & 0o777)
    archive.file("bin/busybox", kit.busybox.read_bytes(), 0o755)
    for applet in kit.applets:
        if not any(f"{folder}/{applet}" in archive for folder in ("bin", "sbin", "usr/bin", "usr/sbin")):
            archive.link(f"bin/{applet}", "busybox")
    archive.link("sbin/modprobe", "/bin/busybox")  # where the kernel looks when it wants a module itself
    loaded = [line.split() for line in load]
    ordered = kit.modules.in_load_order([*modules, *(words[0] for words in loaded)])
    _add_modules(archive, kit, ordered)
    archive.file("etc/vfio-user/load", "".join(f"{' '.join(words)}\n" for words in loaded).encode())
    if main is not None:
        archive.file("etc/vfio-user/main", f"{main}\n".encode(), 0o755)
    archive.file("init", init.encode(), 0o755)
    for path, source in (files or {}).items():
        content, mode = _file(source)
        archive.file(path, content, mode)
    return archive


def build_initramfs(
    kit: GuestKit,
    *,
    modules: Iterable[str] = (),
    load: Iterable[str] = (),
    packages: Iterable[str] = (),
    files: Mapping[str, bytes | str | Path] | None = None,
    main: str | None = None,
    init: str = INIT_SCRIPT,
) -> Path:
    """Makes an initramfs and returns its file; the same content is the same file, made once.

    Args:
        kit: what to make it of.
        modules: kernel modules to put in, with all they need, for ``modprobe`` to find.
        load: modules to load at boot, in this order, each with its parameters (``"sym53c8xx settle=0"``); they are
            put in by that.
        packages: names of `GUEST_PACKAGES` to put in.
        files: further files, path in the guest to content. A path of this machine is read, and keeps whether it may
            be executed; of bytes and text, programs and scripts that begin with ``#!`` may.
        main: a shell command to run on the guest's console instead of waiting for commands; when it ends, its exit
            status is reported and the guest powers off. ``/bin/sh`` is an interactive shell.
        init: the first program, for a guest that does everything its own way.

    Raises:
        VmUnavailableError: a module or package does not exist, or a file cannot be read.
    """
    archive = initramfs_archive(kit, modules=modules, load=load, packages=packages, files=files, main=main, init=init)
    return kit.cache.store("initramfs", ".cpio", archive.to_bytes())


def _add_modules(archive: CpioArchive, kit: GuestKit, modules: list[KernelModule]) -> None:
    """Adds modules, and the tables by which modprobe finds them; spec: modules.dep(5), modules.alias in depmod(8)."""
    folder = f"lib/modules/{kit.kernel_version}"
    archive.folder(folder)
    dependencies = []
    aliases = []
    for module in modules:
        archive.file(f"{folder}/{module.name}.ko", kit.modules.read(module.name))
        # All that it needs, nearest first: modprobe loads the list from its end.
        needed = [other.name for other in kit.modules.in_load_order([module.name]) if other.name != module.name]
        dependencies.append(f"{module.name}.ko:" + "".join(f" {name}.ko" for name in reversed(needed)))
        aliases += [f"alias {alias} {module.name}" for alias in module.aliases]
    for name, lines in (("dep", dependencies), ("alias", aliases), ("softdep", []), ("symbols", [])):
        archive.file(f"{folder}/modules.{name}", "".join(f"{line}\n" for line in lines).encode())


def _file(source: bytes | str | Path) -> tuple[bytes, int]:
    if isinstance(source, Path):
        try:
            return source.read_bytes(), 0o755 if source.stat().st_mode & 0o111 else 0o644
        except OSError as error:
            raise VmUnavailableError(f"{source} cannot be put into the guest: {error.strerror}") from error
    content = source.encode() if isinstance(source, str) else source
    return content, 0o755 if content.startswith(b"#!") or is_elf(content) else 0o644

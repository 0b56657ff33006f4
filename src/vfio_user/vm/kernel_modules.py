"""Loadable kernel modules: which there are, what each needs, and a small set that holds all it needs.

A module says about itself, in its ``.modinfo`` section, what it depends on and which devices it drives. That is read
from the modules themselves, so neither ``depmod`` nor ``kmod`` is needed on this machine.

Spec: Linux ``include/linux/module.h`` MODULE_INFO, ``MODULE_SOFTDEP``; modules.dep(5) for the form the guest reads.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.kernel import decompress

__all__ = ["KernelModule", "KernelModules", "collect_modules", "module_name"]

_INDEX = "index.json"
_SUFFIX = re.compile(r"\.ko(\.xz|\.zst|\.gz)?$")


def module_name(text: str) -> str:
    """The name the kernel uses for a module: a path's last part without its suffix, dashes as underscores."""
    return _SUFFIX.sub("", text.rsplit("/", 1)[-1]).replace("-", "_")


@dataclass(frozen=True)
class KernelModule:
    """What one module says about itself.

    Attributes:
        name: with underscores, as in ``/proc/modules``.
        needs: names of the modules that must be loaded before it.
        wants: names (or aliases) of those it asks to be loaded before it, when they exist.
        aliases: the patterns of devices and services it is for.
    """

    name: str
    needs: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str, content: bytes) -> KernelModule:
        """Reads the ``.modinfo`` of an unpacked module."""
        needs: list[str] = []
        wants: list[str] = []
        aliases: list[str] = []
        for key, value in re.findall(rb"(?:^|\0)(depends|softdep|alias)=([^\0]*)", content):
            text = value.decode(errors="replace")
            if key == b"depends":
                needs += [module_name(part) for part in text.split(",") if part]
            elif key == b"alias":
                aliases.append(text)
            elif found := re.search(r"pre:\s*(.*?)\s*(?:post:|$)", text):
                wants += found[1].split()
        return cls(name, tuple(needs), tuple(wants), tuple(aliases))


class KernelModules:
    """A folder of unpacked modules of one kernel, all in one place, with an index of what they say.

    Args:
        folder: made by `collect_modules`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = json.loads((folder / _INDEX).read_text())
        self._modules = {entry["name"]: _from_index(entry) for entry in content["modules"]}
        self._builtin = frozenset(content["builtin"])

    def __contains__(self, name: str) -> bool:
        return module_name(name) in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def read(self, name: str) -> bytes:
        """The bytes of one module."""
        return (self.folder / f"{module_name(name)}.ko").read_bytes()

    def in_load_order(self, names: Iterable[str]) -> list[KernelModule]:
        """The modules of these names and all they need, each after what it needs; built-in ones need no loading.

        Raises:
            VmUnavailableError: the kernel has no module of such a name.
        """
        return _in_load_order(names, self._modules, self._builtin, self._exact_aliases)

    @cached_property
    def _exact_aliases(self) -> dict[str, str]:
        return _exact_aliases(self._modules)


def _from_index(entry: dict[str, Any]) -> KernelModule:
    return KernelModule(entry["name"], tuple(entry["needs"]), tuple(entry["wants"]), tuple(entry["aliases"]))


def _exact_aliases(modules: dict[str, KernelModule]) -> dict[str, str]:
    """Which module has an alias, of those that are no patterns."""
    found: dict[str, str] = {}
    for module in modules.values():
        for alias in module.aliases:
            found.setdefault(module_name(alias), module.name)
    return found


def _in_load_order(
    names: Iterable[str], modules: dict[str, KernelModule], builtin: frozenset[str], exact_aliases: dict[str, str]
) -> list[KernelModule]:
    ordered: dict[str, KernelModule] = {}

    def visit(name: str, asked_by: str) -> None:
        name = module_name(name)
        if name in ordered or name in builtin:
            return
        if name not in modules:
            near = difflib.get_close_matches(name, [*modules, *builtin], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise VmUnavailableError(f"the guest kernel has no module {name!r} (wanted by {asked_by}){hint}")
        module = modules[name]
        for wanted in module.wants:  # a soft dependency may be an alias, and may be missing
            known = module_name(wanted) if module_name(wanted) in modules else exact_aliases.get(module_name(wanted))
            if known is not None and known != name:
                visit(known, name)
        for needed in module.needs:
            visit(needed, name)
        ordered[name] = module

    for name in names:
        visit(name, "the caller")
    return list(ordered.values())


def collect_modules(source: Path, destination: Path, wanted: Callable[[str], bool]) -> KernelModules:
    """Copies modules, and all that these need, unpacked, into one flat folder with an index.

    Args:
        source: a kernel's ``/lib/modules/VERSION``.
        destination: the folder to make.
        wanted: told each module's path below ``source/kernel``, without compression suffix.

    Raises:
        VmUnavailableError: a module needs one that is nowhere in ``source``.
    """
    builtin_list = source / "modules.builtin"
    builtin = frozenset(map(module_name, builtin_list.read_text().split())) if builtin_list.exists() else frozenset()
    files = {}
    roots = []
    kernel = source / "kernel"
    for path in sorted(kernel.rglob("*.ko*")):
        if _SUFFIX.search(path.name):
            files[module_name(path.name)] = path
            if wanted(_SUFFIX.sub(".ko", str(path.relative_to(kernel)))):
                roots.append(module_name(path.name))
    contents: dict[str, bytes] = {}
    modules: dict[str, KernelModule] = {}

    def visit(name: str) -> None:
        if name in modules or name in builtin:
            return
        if name not in files:
            raise VmUnavailableError(f"kernel modules in {source} are incomplete: {name} is needed and missing")
        content = files[name].read_bytes()
        if files[name].suffix != ".ko":
            content = decompress(content)
        contents[name] = content
        modules[name] = KernelModule.parse(name, content)
        for needed in modules[name].needs:
            visit(needed)

    for root in roots:
        visit(root)
    destination.mkdir(parents=True)
    for name, content in contents.items():
        (destination / f"{name}.ko").write_bytes(content)
    index = {"modules": [asdict(modules[name]) for name in sorted(modules)], "builtin": sorted(builtin)}
    (destination / _INDEX).write_text(json.dumps(index))
    return KernelModules(destination)

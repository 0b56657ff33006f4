"""Finds device classes: by the name they ship or are installed under, or by where the class is written.

A *name* is an entry point of the group ``vfio_user.devices``; a package that brings devices registers them there. A
*place* is ``module:Class``, ``path/to/file.py:Class``, or ``path/to/file.py`` when the file defines just one device.

Our own devices are listed here too, since asking every installed distribution for its entry points costs more than
all the rest of starting a server.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from vfio_user.devices.user_code import describe_failure
from vfio_user.errors import DefinitionError, DeviceNotFoundError
from vfio_user.server.device import Device

__all__ = ["ENTRY_POINT_GROUP", "SHIPPED", "DeviceEntry", "find_device", "known_devices"]

ENTRY_POINT_GROUP = "vfio_user.devices"

#: What this package ships: the same table as in ``pyproject.toml``.
SHIPPED = {
    "edu": "vfio_user.devices.edu:Edu",
    "gpio-pci-idio-16": "vfio_user.devices.gpio_pci_idio_16:GpioPciIdio16",
    "lsi53c810": "vfio_user.devices.lsi53c8xx.controller:Lsi53c810",
    "lsi53c895a": "vfio_user.devices.lsi53c8xx.controller:Lsi53c895a",
    "nvme": "vfio_user.devices.nvme:Nvme",
}


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """A device that has a name.

    Attributes:
        name: what it goes by.
        place: ``module:Class``.
        distribution: the installed package it comes from.
    """

    name: str
    place: str
    distribution: str

    def load(self) -> type[Device]:
        """Imports the class.

        Raises:
            DeviceNotFoundError: the module or the class does not exist, or the class is no device.
            DefinitionError: the module raised while it was imported.
        """
        return _load_place(self.place, self.name)


def known_devices() -> list[DeviceEntry]:
    """Every device that has a name, those we ship first. Nothing of theirs is imported."""
    shipped = [DeviceEntry(name, place, "vfio-user") for name, place in SHIPPED.items()]
    return shipped + sorted(_installed(), key=lambda entry: entry.name)


def find_device(text: str) -> type[Device]:
    """Finds a device class.

    Args:
        text: a name or a place; see the module.

    Raises:
        DeviceNotFoundError: there is none; the text says what there is, and what comes nearest.
        DefinitionError: the module raised while it was imported; its traceback is a note of the error.

    A place makes the folder of its file, or for a module the current folder, importable: a device may be written in
    several files.
    """
    if text in SHIPPED:
        return _load_place(SHIPPED[text], text)
    if ":" in text or text.endswith(".py") or os.sep in text:
        return _load_place(text, text)
    installed = {entry.name: entry for entry in _installed()}
    if text in installed:
        return installed[text].load()
    names = [*SHIPPED, *sorted(installed)]
    near = difflib.get_close_matches(text.lower().replace("_", "-"), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise DeviceNotFoundError(
        f"there is no device {text!r}{hint} Known here: {', '.join(names)}. "
        f"A class of your own is given as file.py:Class or module:Class"
    )


def _installed() -> Iterator[DeviceEntry]:
    """Devices of other installed packages."""
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name not in SHIPPED:
            yield DeviceEntry(point.name, point.value, point.dist.name if point.dist is not None else "")


def _load_place(place: str, name: str) -> type[Device]:
    """Imports the class of a place; ``name`` is what was asked for, for errors."""
    where, _, class_name = place.rpartition(":") if not place.endswith(".py") else (place, "", "")
    try:
        if where.endswith(".py"):
            module = _import_file(Path(where))
        else:
            _make_importable(Path.cwd())
            module = importlib.import_module(where)
    except (DeviceNotFoundError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as exc:
        if exc.name is not None and (where == exc.name or where.startswith(f"{exc.name}.")):
            raise DeviceNotFoundError(
                f"{name}: there is no module {exc.name!r}. It is looked for in the current folder and in what is "
                f"installed for {sys.executable}"
            ) from exc
        raise describe_failure(exc, f"{where} could not be imported", DefinitionError) from exc
    except (Exception, SystemExit) as exc:
        raise describe_failure(exc, f"{where} could not be imported", DefinitionError) from exc
    return _class_of(module, class_name, where)


def _import_file(path: Path) -> ModuleType:
    """Imports a file, once, whatever its name is."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DeviceNotFoundError(
            f"{path} {what}: a device is given as the path of a Python file, path/to/file.py:Class"
        )
    path = path.resolve()
    # Its own name could be that of a module that exists (socket.py), so it gets one nobody can import.
    module_name = f"device file {path}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _make_importable(path.parent)
    sys.modules[module_name] = module  # dataclasses and typing look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _class_of(module: ModuleType, class_name: str, where: str) -> type[Device]:
    """The device class of that name in a module, or its only one."""
    here = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Device) and value.__module__ == module.__name__
    }
    if not class_name:
        if len(here) == 1:
            return next(iter(here.values()))
        if not here:
            raise DeviceNotFoundError(
                f"{where} defines no device: a device is a class derived from PciDevice (or Device)"
            )
        raise DeviceNotFoundError(
            f"{where} defines {len(here)} devices, so name one: {' or '.join(f'{where}:{name}' for name in here)}"
        )
    try:
        found = getattr(module, class_name)
    except AttributeError:
        near = difflib.get_close_matches(class_name, vars(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        listed = f"Devices in it: {', '.join(here)}" if here else "There is no device in it"
        raise DeviceNotFoundError(f"{where} has no class {class_name!r}{hint} {listed}") from None
    if not (isinstance(found, type) and issubclass(found, Device)):
        what = "a class, but not a device" if isinstance(found, type) else f"a {type(found).__name__}, not a class"
        raise DeviceNotFoundError(f"{where}:{class_name} is {what}: derive it from PciDevice (or Device)")
    return found

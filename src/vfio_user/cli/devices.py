"""``vfio-user devices``: what can be served, with PCI ids and options; or its descriptors, written to files."""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vfio_user.cli.common import pci_id
from vfio_user.cli.output import Style, columns, complain, wrap
from vfio_user.devices.descriptors import describe, linux_drivers, write_descriptor
from vfio_user.devices.options import DeviceOption, device_options
from vfio_user.devices.registry import DeviceEntry, find_device, known_devices
from vfio_user.errors import VfioUserError

__all__ = ["add_arguments", "run"]

_INDENT = "    "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``devices``."""
    parser.add_argument(
        "devices",
        nargs="*",
        metavar="DEVICE",
        help="show these, and what their options mean (default: list all by name)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument(
        "--write",
        type=Path,
        metavar="FOLDER",
        help="write a descriptor of each to FOLDER, for programs that look in /usr/share/vfio-user",
    )


@dataclass(frozen=True)
class _Listed:
    """One line of the list, and what is below it."""

    entry: DeviceEntry
    pci_id: str = ""
    summary: str = ""
    options: tuple[DeviceOption, ...] = ()
    linux_modules: tuple[str, ...] = ()
    descriptor: Mapping[str, object] = field(default_factory=dict)
    error: str = ""


def run(arguments: argparse.Namespace) -> int:
    """Prints the list, or writes the files."""
    named = [_entry(text) for text in arguments.devices]
    if arguments.write is not None:
        return _write(arguments.write, named or known_devices())
    listed = [_look_at(entry) for entry in named or known_devices()]
    if arguments.json:
        print(json.dumps([_as_json(each) for each in listed], indent=2))
        return 0
    style = Style()
    print("\n\n".join("\n".join(_as_text(each, style, explained=bool(named))) for each in listed))
    serve = "serve one with: vfio-user serve DEVICE --set OPTION=VALUE"
    explain = "what its options mean: vfio-user devices DEVICE"
    print(f"\n{style.dim(serve if named else explain)}")
    return 0


def _entry(text: str) -> DeviceEntry:
    """A device by its name, or by where its class is written.

    Raises:
        VfioUserError: there is none, or it cannot be imported.
    """
    for entry in known_devices():
        if entry.name == text:
            return entry
    find_device(text)
    return DeviceEntry(text, text, "")


def _write(folder: Path, entries: Iterable[DeviceEntry]) -> int:
    try:
        for entry in entries:
            print(write_descriptor(entry, entry.load(), folder))
    except OSError as exc:
        complain(f"no descriptors were written to {folder}: {exc.strerror}")
        return 1
    return 0


def _look_at(entry: DeviceEntry) -> _Listed:
    """Imports a device and describes it; one that cannot be imported does not hide the others."""
    try:
        cls = entry.load()
        options = tuple(device_options(cls))
    except VfioUserError as exc:
        return _Listed(entry, error=str(exc))
    doc = inspect.getdoc(cls) or ""
    summary, modules = doc.partition("\n\n")[0].replace("\n", " "), tuple(linux_drivers(cls))
    return _Listed(entry, pci_id(cls), summary, options, modules, describe(entry, cls))


def _as_text(each: _Listed, style: Style, *, explained: bool) -> list[str]:
    heading = style.bold(each.entry.name)
    if each.pci_id:
        heading += f"  {each.pci_id}"
    if each.entry.distribution not in ("", "vfio-user"):
        heading += f"  (from {each.entry.distribution})"
    if each.error:
        return [heading, style.bad(wrap(f"cannot be loaded: {each.error}", _INDENT))]
    lines = [heading]
    if each.summary:
        lines.append(wrap(each.summary, _INDENT))
    if each.linux_modules:
        lines.append(wrap(f"Linux driver: {', '.join(each.linux_modules)}", _INDENT))
    series = _series(each.options)
    rows = [
        (name, option.type_text, "required" if option.required else f"default {option.default_text}")
        for name, option in series.items()
    ]
    for option, line in zip(series.values(), columns(rows, _INDENT), strict=True):
        lines.append(line)
        if explained and option.doc:
            lines.append(wrap(option.doc, 2 * _INDENT))
    return lines


def _series(options: Sequence[DeviceOption]) -> dict[str, DeviceOption]:
    """The options by what they are listed as: those that differ in nothing but a number at the end are one line."""
    listed: dict[str, DeviceOption] = {}

    def kind(option: DeviceOption) -> tuple[object, ...]:
        return option.name.rstrip(string.digits), option.type, option.required, option.default

    for _, group in itertools.groupby(options, kind):
        first, *others = group
        listed[f"{first.name} to {others[-1].name}" if others else first.name] = first
    return listed


def _as_json(each: _Listed) -> dict[str, object]:
    about: dict[str, object] = {
        "name": each.entry.name,
        "class": each.entry.place,
        "distribution": each.entry.distribution,
    }
    if each.error:
        return {**about, "error": each.error}
    return {
        **about,
        **each.descriptor,
        "pci_id": each.pci_id or None,
        "summary": each.summary,
        "linux_modules": list(each.linux_modules),
        "options": [
            {
                "name": option.name,
                "type": option.type_text,
                "required": option.required,
                "default": None if option.required else option.default_text,
                "description": option.doc,
            }
            for option in each.options
        ],
    }

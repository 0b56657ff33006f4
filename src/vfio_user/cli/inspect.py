"""``vfio-user inspect``: connects to a server as a client, and says what its device is."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable
from typing import Any

from vfio_user.cli.common import seconds
from vfio_user.cli.output import WIDTH, Style, columns, complain, wrap
from vfio_user.client.device import VfioUserClient
from vfio_user.client.survey import DeviceSurvey, IrqSurvey, RegionSurvey, survey_device
from vfio_user.errors import CommandTimeoutError
from vfio_user.pci.decode import CapabilityInWords, ConfigInWords, FieldInWords, RegisterInWords, decode_config
from vfio_user.pci.dump import format_lspci
from vfio_user.protocol.constants import RegionFlags
from vfio_user.protocol.region_io_fds import IoEventFd
from vfio_user.protocol.version import VersionMessage
from vfio_user.trace.names import irq_name, region_name
from vfio_user.trace.text import elide, escape, flag_names, span

__all__ = ["add_arguments", "run"]

_INDENT = "  "

#: Mappable areas and ioeventfds of a region that are printed; JSON has them all.
_SHOWN = 8

#: Characters of one of the peer's JSON values that are printed; JSON has them all.
_SHOWN_JSON = 400

#: Bytes of a vendor's contents that are printed.
_SHOWN_CONTENTS = 64

#: Registers of the header that say something together, in the lines before it.
_SAID_BEFORE = {
    "vendor_id",
    "device_id",
    "revision",
    "programming_interface",
    "subclass",
    "base_class",
    "subsystem_vendor_id",
    "subsystem_id",
    "rom_bar",
    "capabilities_pointer",
}

_EPILOG = """\
Nothing of the device is changed: no register of a BAR is read, nothing written.
A server with one client at a time cannot be inspected while a machine has its
device.

ADDRESS is as for 'serve --address': a socket's path, tcp:HOST:PORT, ..."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``inspect``."""
    parser.epilog = _EPILOG
    parser.add_argument("address", metavar="ADDRESS", help="where its server listens")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--lspci", action="store_true", help="print configuration space for 'lspci -vvv -F FILE'")
    parser.add_argument(
        "--timeout", type=seconds, default=10.0, metavar="SECONDS", help="for all of it (default 10, at most 3600)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints what the device is; 1 when not all of it could be asked for."""
    try:
        client = VfioUserClient.connect(arguments.address, timeout=min(5.0, arguments.timeout), map_regions=False)
    except CommandTimeoutError as exc:
        exc.add_note("A server has one client at a time: is a virtual machine using the device?")
        raise
    with client:
        survey = survey_device(client, seconds=arguments.timeout)
        version = client.connection.server_version
    config = decode_config(survey.config) if survey.config else None
    if arguments.json:
        print(json.dumps(_as_json(arguments.address, version, survey, config), indent=2))
    elif arguments.lspci:
        print(format_lspci(survey.config), end="")
    else:
        print("\n".join(_as_text(version, survey, config, Style())))
    if survey.ended:
        complain(f"not everything could be asked for: {escape(survey.ended)}")
        return 1
    return 0


# Text.


def _as_text(version: VersionMessage, survey: DeviceSurvey, config: ConfigInWords | None, style: Style) -> list[str]:
    lines = [*_version_lines(version, style), "", style.bold("device")]
    if survey.info is not None:
        regions, irqs = survey.info.num_regions, survey.info.num_irqs
        lines.append(f"{_INDENT}{flag_names(survey.info.flags)}; {regions} regions, {irqs} kinds of interrupt")
    lines += _feature_lines(survey)
    lines += ["", style.bold("regions"), *_region_lines(survey.regions, style)]
    lines += ["", style.bold("interrupts"), *_irq_lines(survey.irqs, style)]
    if survey.config_fault:
        lines += ["", style.bad(wrap(f"configuration space cannot be read: {escape(survey.config_fault)}"))]
    if config is not None:
        lines += ["", style.bold(f"configuration space, {config.size} bytes"), *_config_lines(config, style)]
    return lines


def _version_lines(version: VersionMessage, style: Style) -> list[str]:
    lines = [style.bold(f"version {version.major}.{version.minor}")]
    for name, value in (version.capabilities or {}).items():
        text = f"{elide(escape(name), 40)} {elide(escape(_json(value)), _SHOWN_JSON)}"
        lines += _folded(text, _INDENT)
    return lines


def _json(value: object) -> str:
    try:
        return json.dumps(value)
    except (ValueError, RecursionError):
        return "(too deep to show)"


def _folded(text: str, indent: str, *, first: str | None = None) -> list[str]:
    """Lines of at most WIDTH columns, whatever is in the text."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _feature_lines(survey: DeviceSurvey) -> list[str]:
    parts = []
    if survey.migration is not None:
        parts.append(f"migration: {flag_names(survey.migration.flags)}")
    if survey.migration_state is not None:
        parts.append(f"migration state: {survey.migration_state.state.name}")
    names = [feature.name for feature in survey.features]
    parts.append(f"features: {', '.join(names) or 'none'}")
    if survey.optional_ended:
        parts.append(f"not known what else: {escape(survey.optional_ended)}")
    return [line for part in parts for line in _folded(part, _INDENT * 2, first=_INDENT)]


def _region_lines(regions: Iterable[RegionSurvey], style: Style) -> list[str]:
    lines = []
    for region in regions:
        name = f"{_INDENT}{region_name(region.index):<10}"
        info = region.info
        if info is None:
            lines.append(style.bad("\n".join(_folded(escape(region.fault), _INDENT * 6, first=name))))
            continue
        if info.size == 0:
            continue
        text = f"{info.size:#x} bytes, {flag_names(info.flags & ~RegionFlags.CAPS)}, {_reached(region)}"
        lines += _folded(text, _INDENT * 6, first=name)
        if info.region_type is not None:
            lines.append(f"{_INDENT * 6}type {info.region_type[0]:#x}, subtype {info.region_type[1]:#x}")
        areas = [f"mappable {span(area.offset, area.size)}" for area in info.areas]
        lines += _some(areas, "areas")
        if region.io_fds is not None:
            lines += _some([_io_fd(entry) for entry in region.io_fds.entries], "entries")
        if region.fault:
            lines.append(style.bad("\n".join(_folded(escape(region.fault), _INDENT * 6))))
    return lines or [f"{_INDENT}none"]


def _reached(region: RegionSurvey) -> str:
    """How a client gets at it."""
    assert region.info is not None
    if region.mapped == region.info.size:
        return "mapped"
    if region.mapped:
        return f"{region.mapped:#x} bytes mapped, the rest by message"
    return "by message (offered for mapping, but cannot be)" if region.info.flags & RegionFlags.MMAP else "by message"


def _io_fd(entry: Any) -> str:
    kind = "ioeventfd" if isinstance(entry, IoEventFd) else "ioregionfd"
    text = f"{kind} {span(entry.offset, entry.size)}" if entry.size else f"{kind} at {entry.offset:#x}"
    if isinstance(entry, IoEventFd) and entry.flags & 1:
        text += f", of the value {entry.datamatch:#x}"
    return f"{text}, with a shadow" if isinstance(entry, IoEventFd) and entry.shadow is not None else text


def _some(texts: list[str], what: str) -> list[str]:
    shown = [f"{_INDENT * 6}{text}" for text in texts[:_SHOWN]]
    if len(texts) > _SHOWN:
        shown.append(f"{_INDENT * 6}... {len(texts) - _SHOWN} {what} more")
    return shown


def _irq_lines(irqs: Iterable[IrqSurvey], style: Style) -> list[str]:
    rows, lines = [], []
    for irq in irqs:
        if irq.info is None:
            first = f"{_INDENT}{irq_name(irq.index):<10}"
            lines.append(style.bad("\n".join(_folded(escape(irq.fault), _INDENT * 6, first=first))))
        elif irq.info.count:
            vectors = f"{irq.info.count} vector{'s' if irq.info.count != 1 else ''}"
            rows.append((irq_name(irq.index).ljust(8), vectors, flag_names(irq.info.flags)))
    return [*columns(rows, _INDENT), *lines] or [f"{_INDENT}none"]


def _config_lines(config: ConfigInWords, style: Style) -> list[str]:
    header = {register.name: register for register in config.header}
    lines = _identity_lines({name: register.value for name, register in header.items()})
    lines += _bar_lines([header[name].value for number in range(6) if (name := f"bars[{number}]") in header])
    for name, register in header.items():
        if name not in _SAID_BEFORE and not name.startswith("bars["):
            lines += _register_lines(register)
    for fault in config.faults:
        lines.append(style.bad("\n".join(_folded(fault, _INDENT * 2, first=_INDENT))))
    for capability in config.capabilities:
        lines += _capability_lines(capability, style)
    return lines


def _identity_lines(header: dict[str, int]) -> list[str]:
    if "base_class" not in header:
        return []
    kind = header["base_class"] << 16 | header["subclass"] << 8 | header["programming_interface"]
    text = f"{header['vendor_id']:04x}:{header['device_id']:04x}, class {kind:06x}, revision {header['revision']:02x}"
    if "subsystem_id" in header:
        text += f", subsystem {header['subsystem_vendor_id']:04x}:{header['subsystem_id']:04x}"
    return [f"{_INDENT}{text}"]


def _bar_lines(bars: list[int]) -> list[str]:
    """What the base address registers hold, as lspci says it. Spec: PCI 3.0 6.2.5.1."""
    lines, numbers = [], iter(range(len(bars)))
    for number in numbers:
        value = bars[number]
        if value & 1:
            lines.append(f"{_INDENT}BAR{number}: I/O ports at {value & ~3:#x}")
        elif value:
            address, wide = value & ~0xF, value & 6 == 4 and number + 1 < len(bars)
            if wide:
                address |= bars[next(numbers)] << 32
            kind = f"{64 if wide else 32} bits, {'' if value & 8 else 'not '}prefetchable"
            lines.append(f"{_INDENT}BAR{number}: memory at {address:#x} ({kind})")
    return lines


def _capability_lines(capability: CapabilityInWords, style: Style) -> list[str]:
    version = f" v{capability.version}" if capability.extended else ""
    name = capability.name or f"unknown, id {capability.cap_id:#x}"
    lines = [f"{_INDENT}[{capability.offset:03x}{version}] {style.bold(name)}"]
    for register in capability.registers:
        lines += _register_lines(register)
    if capability.contents:
        shown = capability.contents[:_SHOWN_CONTENTS].hex(" ")
        more = len(capability.contents) - _SHOWN_CONTENTS
        lines += _folded(f"contents {shown}{f' ... {more} bytes more' if more > 0 else ''}", " " * 8, first=_INDENT * 2)
    return lines


def _register_lines(register: RegisterInWords) -> list[str]:
    """A register: none for what has no fields and is 0, which is most of what an endpoint does not use."""
    if not register.value and not register.fields:
        return []
    text = f"{register.name} {register.value:#0{2 + 2 * register.size}x}"
    if register.fields:
        text += f": {' '.join(map(_field, register.fields))}"
    return _folded(text, " " * 8, first=_INDENT * 2)


def _field(field: FieldInWords) -> str:
    if field.width == 1:
        return f"{field.name}{'+' if field.value else '-'}"
    return f"{field.name}={field.meaning or (field.value if field.value < 10 else f'{field.value:#x}')}"


# JSON.


def _as_json(
    address: str, version: VersionMessage, survey: DeviceSurvey, config: ConfigInWords | None
) -> dict[str, object]:
    info = survey.info
    return {
        "address": address,
        "version": f"{version.major}.{version.minor}",
        "capabilities": _plain(version.capabilities),
        "flags": [] if info is None else flag_names(info.flags).split("|") if info.flags else [],
        "regions": [_region_json(region) for region in survey.regions],
        "irqs": [_irq_json(irq) for irq in survey.irqs],
        "features": [feature.name for feature in survey.features],
        "migration": survey.migration and flag_names(survey.migration.flags).split("|"),
        "migration_state": survey.migration_state and survey.migration_state.state.name,
        "config": config and _config_json(config, survey.config),
        "config_fault": survey.config_fault or None,
        "ended": survey.ended or survey.optional_ended or None,
    }


def _plain(value: object) -> object:
    """The peer's JSON; a text where it is nested too deep to be written again."""
    try:
        json.dumps(value, indent=2)
    except (ValueError, RecursionError):
        return "(too deep to show)"
    return value


def _region_json(region: RegionSurvey) -> dict[str, object]:
    about: dict[str, object] = {"index": region.index, "name": region_name(region.index)}
    info = region.info
    if info is not None:
        about |= {
            "size": info.size,
            "flags": flag_names(info.flags).split("|") if info.flags else [],
            "fd_offset": info.fd_offset,
            "areas": [{"offset": area.offset, "size": area.size} for area in info.areas],
            "type": info.region_type,
            "mapped": region.mapped,
            "io_fds": [_io_fd(entry) for entry in region.io_fds.entries] if region.io_fds else [],
        }
    return {**about, "fault": region.fault or None}


def _irq_json(irq: IrqSurvey) -> dict[str, object]:
    about: dict[str, object] = {"index": irq.index, "name": irq_name(irq.index)}
    if irq.info is not None:
        about |= {"count": irq.info.count, "flags": flag_names(irq.info.flags).split("|") if irq.info.flags else []}
    return {**about, "fault": irq.fault or None}


def _config_json(config: ConfigInWords, raw: bytes) -> dict[str, object]:
    return {
        "bytes": raw.hex(),
        "header": [_register_json(register) for register in config.header],
        "capabilities": [
            {
                "name": each.name or None,
                "id": each.cap_id,
                "offset": each.offset,
                "extended": each.extended,
                "version": each.version,
                "registers": [_register_json(register) for register in each.registers],
                "contents": each.contents.hex(),
            }
            for each in config.capabilities
        ],
        "faults": list(config.faults),
    }


def _register_json(register: RegisterInWords) -> dict[str, object]:
    return {
        "name": register.name,
        "offset": register.offset,
        "value": register.value,
        "fields": {field.name: field.value for field in register.fields},
    }

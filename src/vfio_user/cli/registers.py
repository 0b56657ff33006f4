"""``vfio-user registers DEVICE|FILE``: a register map, read from a device or a file, written in another form."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_user.cli.output import complain

if TYPE_CHECKING:
    from vfio_user.pci.registers import RegisterBlock
    from vfio_user.pci.registers.interchange import Exported, Note

__all__ = ["add_arguments", "run"]

_FORMATS = ("text", "markdown", "html", "json", "c", "python")

#: What the files we read end in.
_SYSTEMRDL, _SVD = (".rdl",), (".svd", ".xml")

_EPILOG = """\
What a format has no words for is said on standard error.

examples:
  vfio-user registers edu
  vfio-user registers my_device.py --config --format=markdown --output map.md
  vfio-user registers block.rdl --format=python --output block.py
  vfio-user registers chip.svd --block TIMER0 --format=c
"""


@dataclass(frozen=True)
class _Map:
    """One block, and where it was found.

    Attributes:
        place: where in a device; "" in a file.
        offset: of the block there, bytes.
        block: the class.
    """

    place: str
    offset: int
    block: type[RegisterBlock]

    @property
    def title(self) -> str:
        """Its name, and where it stands."""
        return f"{self.place}: {self.block.__name__}" if self.place else self.block.__name__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``registers``."""
    from vfio_user.cli.common import setting

    parser.epilog = _EPILOG
    parser.add_argument("source", metavar="DEVICE|FILE", help="a device, or a file: SystemRDL (.rdl), CMSIS-SVD (.svd)")
    parser.add_argument("--format", choices=_FORMATS, default="text", help="what to write (default text)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write it (default standard output)")
    parser.add_argument("--strict", action="store_true", help="exit status 1 when something cannot be said")
    device = parser.add_argument_group("of a device")
    device.add_argument("--config", action="store_true", help="configuration space, too")
    device.add_argument(
        "--set",
        dest="settings",
        action="append",
        type=setting,
        default=[],
        metavar="NAME=VALUE",
        help="an option of the device; may be repeated",
    )
    file = parser.add_argument_group("of a file")
    file.add_argument("--block", metavar="NAME", help="the address map (SystemRDL) or peripheral (SVD) to take")
    file.add_argument(
        "--include",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="where SystemRDL's `include looks; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the map, and what it does not say."""
    maps, notes = _read(arguments)
    text, more = _write(maps, arguments.format, arguments.source)
    notes += more
    if arguments.output is None:
        print(text, end="")
    else:
        try:
            arguments.output.write_text(text)
        except OSError as exc:
            complain(f"{arguments.output}: {exc.strerror}")
            return 1
    for note in notes:
        complain(f"note: {note}")
    if notes and arguments.strict:
        complain(f"{len(notes)} {'note' if len(notes) == 1 else 'notes'}, and --strict")
        return 1
    return 0


def _read(arguments: argparse.Namespace) -> tuple[list[_Map], list[Note]]:
    """The blocks, and what of their description they do not say."""
    suffix = Path(arguments.source).suffix.lower()
    if suffix not in (*_SYSTEMRDL, *_SVD):
        return _read_device(arguments), []
    from vfio_user.errors import DeviceNotFoundError
    from vfio_user.pci.registers.interchange import from_svd, from_systemrdl, svd_peripherals

    path = Path(arguments.source)
    if not path.is_file():
        raise DeviceNotFoundError(f"there is no file {path}")
    if suffix in _SYSTEMRDL:
        found = [from_systemrdl(path, arguments.block, include=arguments.include)]
    else:
        names = [arguments.block] if arguments.block else svd_peripherals(path)
        found = [from_svd(path, name) for name in names]
    maps = [_Map("", 0, imported.block) for imported in found]
    return maps, [note for imported in found for note in imported.notes]


def _read_device(arguments: argparse.Namespace) -> list[_Map]:
    from vfio_user.cli.common import make_named_device
    from vfio_user.devices.register_maps import register_maps
    from vfio_user.errors import DeviceNotFoundError

    named = make_named_device(arguments.source, dict(arguments.settings))
    found = [_Map(each.place, each.offset, each.block) for each in register_maps(named.device, config=arguments.config)]
    if not found:
        raise DeviceNotFoundError(
            f"{named.name} has no register blocks: declare one with MemoryBar(registers=...); "
            "--config shows configuration space"
        )
    return found


def _write(maps: Sequence[_Map], form: str, source: str) -> tuple[str, list[Note]]:
    """All of them in one text, and what it does not say."""
    from vfio_user.pci.registers import interchange

    if form == "python":
        made = interchange.to_python(*dict.fromkeys(each.block for each in maps))
        return made.text, list(made.notes)
    if form == "json":
        parts = [interchange.to_json(each.block) for each in maps]
        blocks = [
            {"place": each.place or None, "offset": each.offset, **json.loads(part.text)}
            for each, part in zip(maps, parts, strict=True)
        ]
        return json.dumps({"source": source, "blocks": blocks}, indent=2) + "\n", _notes(parts)
    if form == "html":
        page = interchange.to_html(*(each.block for each in maps), titles=[each.title for each in maps])
        return page.text, list(page.notes)
    if form == "text":
        parts = [interchange.to_text(each.block, base=each.offset, title=each.title) for each in maps]
    elif form == "markdown":
        parts = [interchange.to_markdown(each.block, title=each.title) for each in maps]
    else:
        parts = [interchange.to_c_header(block) for block in dict.fromkeys(each.block for each in maps)]
    return "\n".join(part.text for part in parts), _notes(parts)


def _notes(parts: Sequence[Exported]) -> list[Note]:
    return [note for part in parts for note in part.notes]

"""Importing CMSIS-SVD: the peripherals of a microcontroller, one block class each.

What SVD can say and registers here cannot - write-once, constraints on written values, protection, alternate registers
without a selector - becomes notes.

Spec: CMSIS-SVD 1.3, "System View Description Format".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from vfio_user.errors import RegisterDefinitionError
from vfio_user.pci.registers._text import Location, nearest
from vfio_user.pci.registers.block import RegisterBlock
from vfio_user.pci.registers.fields import Field
from vfio_user.pci.registers.interchange.builder import BlockBuilder, field_name, fitting_width, unique_fields
from vfio_user.pci.registers.interchange.notes import Imported, Note
from vfio_user.pci.registers.policies import Access, ReadEffect, WriteEffect, named_access
from vfio_user.pci.registers.register import Register
from vfio_user.pci.registers.views import RegisterFile

__all__ = ["from_svd", "svd_peripherals"]

_WRITES = {
    "oneToClear": WriteEffect.ONE_CLEARS,
    "oneToSet": WriteEffect.ONE_SETS,
    "oneToToggle": WriteEffect.ONE_TOGGLES,
    "zeroToClear": WriteEffect.ZERO_CLEARS,
    "zeroToSet": WriteEffect.ZERO_SETS,
    "zeroToToggle": WriteEffect.ZERO_TOGGLES,
    "clear": WriteEffect.CLEARS,
    "set": WriteEffect.SETS,
    "modify": WriteEffect.STORES,
}
_READS = {"clear": ReadEffect.CLEARS, "set": ReadEffect.SETS}


def svd_peripherals(path: str | Path) -> list[str]:
    """The names of the peripherals in an SVD file."""
    device = _Tree(Path(path))
    return [_text(peripheral, "name") for peripheral in device.root.iter("peripheral")]


def from_svd(path: str | Path, peripheral: str | None = None) -> Imported:
    """Makes a block class of one peripheral of an SVD file.

    Args:
        path: the file.
        peripheral: its name; may be left out when there is only one.

    Raises:
        OSError: the file cannot be read.
        RegisterDefinitionError: it is no SVD file, the peripheral is not in it, or what it says cannot be.
    """
    tree = _Tree(Path(path))
    peripherals = {_text(element, "name"): element for element in tree.root.iter("peripheral")}
    if peripheral is None and len(peripherals) == 1:
        peripheral = next(iter(peripherals))
    if peripheral is None:
        raise RegisterDefinitionError(f"{path}: say which peripheral: {', '.join(peripherals)}")
    if peripheral not in peripherals:
        raise RegisterDefinitionError(f"{path}: no peripheral {peripheral!r}: {nearest(peripheral, peripherals)}")
    reader = _Reader(tree, peripherals)
    element = reader.derived(peripherals[peripheral], peripherals.get)
    defaults = _Defaults().updated(tree.root).updated(element)
    for interrupt in element.iterfind("interrupt"):
        reader.note(interrupt, f"interrupt {_text(interrupt, 'name')}: not a register, left out")
    block = reader.block(element, element.find("registers"), defaults, _size(element))
    return Imported(block, tuple(reader.notes))


def _size(peripheral: Element) -> int | None:
    ends = [
        _number(_text(area, "offset")) + _number(_text(area, "size"))
        for area in peripheral.iterfind("addressBlock")
        if _text(area, "usage") == "registers"
    ]
    return max(ends, default=None)


@dataclass(frozen=True)
class _Defaults:
    """The properties elements inherit from those around them."""

    size: int = 32
    access: str = "read-write"
    reset: int = 0

    def updated(self, element: Element) -> _Defaults:
        size, access, reset = (element.findtext(tag) for tag in ("size", "access", "resetValue"))
        return replace(
            self,
            size=self.size if size is None else _number(size),
            access=self.access if access is None else access.strip(),
            reset=self.reset if reset is None else _number(reset),
        )


class _Reader:
    """Turns elements into declarations."""

    def __init__(self, tree: _Tree, peripherals: dict[str, Element]) -> None:
        self._tree = tree
        self._peripherals = peripherals
        self.notes: list[Note] = []

    def note(self, element: Element, what: str) -> None:
        self.notes.append(Note(str(self._tree.location(element)), what))

    def derived(self, element: Element, find: Callable[[str], Element | None]) -> Element:
        """The element with what it takes over from the one it is ``derivedFrom``."""
        source = element.get("derivedFrom")
        if source is None:
            return element
        base = find(source.rpartition(".")[2])
        if base is None or base is element:
            raise RegisterDefinitionError(f"{self._tree.location(element)}: derivedFrom={source!r} leads nowhere")
        base = self.derived(base, find)
        merged = Element(element.tag, element.attrib)
        own = {child.tag for child in element}
        merged.extend([*element, *(child for child in base if child.tag not in own)])
        self._tree.lines[merged] = self._tree.lines[element]
        return merged

    def block(
        self, element: Element, registers: Element | None, defaults: _Defaults, size: int | None
    ) -> type[RegisterBlock]:
        """A class of what stands in ``registers``."""
        name = _text(element, "name").replace("[%s]", "").replace("%s", "")
        builder = BlockBuilder(name, _prose(element), self.notes)
        children = [] if registers is None else [child for child in registers if child.tag in ("register", "cluster")]
        siblings = {_text(child, "name"): child for child in children}
        for child in children:
            child = self.derived(child, siblings.get)
            for child_name, count, stride, offset in self._repeated(child):
                if child.tag == "cluster":
                    self._add_cluster(builder, child, child_name, count, stride, offset, defaults.updated(child))
                else:
                    self._add_register(builder, child, child_name, count, stride, offset, defaults.updated(child))
        made = builder.build()
        if size is not None and size > made.size:
            builder.attribute("size", size)
            made = builder.build()
        return made

    def _repeated(self, element: Element) -> Iterator[tuple[str, int | None, int | None, int]]:
        """(name, count, stride, offset): one for an array, several for a list of names."""
        name = _text(element, "name")
        offset = _number(_text(element, "addressOffset"))
        dim = element.findtext("dim")
        if dim is None:
            yield name, None, None, offset
            return
        count, stride = _number(dim), _number(_text(element, "dimIncrement"))
        indexes = _indexes(element.findtext("dimIndex"), count)
        if "[%s]" in name or indexes == [str(index) for index in range(count)]:
            yield name.replace("[%s]", "").replace("%s", "").strip("_"), count, stride, offset
            return
        for position, index in enumerate(indexes):
            yield name.replace("%s", index), None, None, offset + position * stride

    def _add_cluster(
        self,
        builder: BlockBuilder,
        element: Element,
        name: str,
        count: int | None,
        stride: int | None,
        offset: int,
        defaults: _Defaults,
    ) -> None:
        inner = self.block(element, element, defaults, None)
        file: RegisterFile[Any]
        if count is None:
            file = RegisterFile(inner, offset, doc=_prose(element))
        else:
            file = RegisterFile(inner, offset, count=count, stride=stride, doc=_prose(element))
        builder.add(name, file, self._tree.location(element))

    def _add_register(
        self,
        builder: BlockBuilder,
        element: Element,
        name: str,
        count: int | None,
        stride: int | None,
        offset: int,
        defaults: _Defaults,
    ) -> None:
        self._note_unsaid(element, name)
        try:
            width = fitting_width(defaults.size)
        except ValueError as error:
            self.note(element, f"{name} left out: {error}")
            return
        if width != defaults.size:
            self.note(element, f"{name}: {defaults.size} bits, made {width}")
        access = self._access(element, defaults.access, name)
        reset = defaults.reset & (1 << width) - 1
        fields = self._fields(element, name, defaults.access)
        location = self._tree.location(element)
        try:
            register: Register[Any]
            if count is None:
                register = Register(offset, width=width, access=access, reset=reset, fields=fields, doc=_prose(element))
            else:
                register = Register(
                    offset,
                    width=width,
                    access=access,
                    reset=reset,
                    fields=fields,
                    count=count,
                    stride=stride,
                    doc=_prose(element),
                )
        except RegisterDefinitionError as error:
            self.note(element, f"{name} left out: {str(error).partition('): ')[2]}")  # its line is one of ours
            return
        builder.add(name, register, location)

    def _fields(self, element: Element, where: str, access: str) -> list[Field]:
        container = element.find("fields")
        made: list[tuple[str, Field]] = []
        children = [] if container is None else container.findall("field")
        siblings = {_text(child, "name"): child for child in children}
        for child in children:
            child = self.derived(child, siblings.get)
            lsb, msb = _bits(child)
            count = _number(child.findtext("dim", "1"))
            stride = _number(child.findtext("dimIncrement", "0"))
            indexes = _indexes(child.findtext("dimIndex"), count)
            for position in range(count):
                name = _text(child, "name").replace("[%s]", "%s").replace("%s", indexes[position])
                full = f"{where}.{name}"
                self._note_unsaid(child, full)
                python = field_name(name, [field for _, field in made])
                bits = msb + position * stride, lsb + position * stride
                inherited = child.findtext("access", access).strip()
                new = Field(
                    python,
                    bits,
                    access=self._access(child, inherited, full),
                    values=self._values(child, full, bits[0] - bits[1] + 1),
                    doc=_prose(child),
                )
                new.location = self._tree.location(child)
                made.append((name, new))
        return unique_fields(made, where, self.notes)

    def _values(self, element: Element, where: str, width: int) -> dict[int, str]:
        values: dict[int, str] = {}
        for container in element.iterfind("enumeratedValues"):
            if container.get("derivedFrom"):
                self.note(
                    container, f"{where}: enumerated values derived from {container.get('derivedFrom')}, left out"
                )
            for entry in container.iterfind("enumeratedValue"):
                text = entry.findtext("value", "").strip()
                if entry.find("isDefault") is not None or not text:
                    self.note(entry, f"{where}: the name of all other values, {_text(entry, 'name')}, left out")
                elif re.search(r"(?<!0)x", text.lower()):
                    self.note(entry, f"{where}: {_text(entry, 'name')} = {text} stands for several values, left out")
                elif _number(text) >= 1 << width:
                    self.note(entry, f"{where}: {_text(entry, 'name')} = {text} does not fit {width} bits, left out")
                else:
                    values.setdefault(_number(text), _text(entry, "name"))
        return values

    def _access(self, element: Element, access: str, where: str) -> Access:
        if "nce" in access:  # writeOnce, read-writeOnce
            self.note(element, f"{where}: {access}: later writes are not refused here; add a before_write hook")
        write = WriteEffect.IGNORED if access == "read-only" else WriteEffect.STORES
        modified = element.findtext("modifiedWriteValues")
        if modified is not None and write is not WriteEffect.IGNORED:
            write = _WRITES[modified.strip()]
        read = ReadEffect.HIDDEN if access.startswith("write") else ReadEffect.NONE
        action = element.findtext("readAction")
        if action is not None:
            if action.strip() in _READS:
                read = _READS[action.strip()]
            else:
                self.note(element, f"{where}: readAction {action.strip()}: add an on_read hook")
        return named_access(write, read)

    def _note_unsaid(self, element: Element, where: str) -> None:
        for tag, way_out in (
            ("writeConstraint", "any value can be written; add a before_write hook"),
            ("protection", "every client may access it"),
            ("alternateRegister", "another register in its place"),
            ("alternateGroup", "another register in its place"),
            ("resetMask", "bits without a defined reset value are 0"),
        ):
            found = element.find(tag)
            if found is not None and not (tag == "resetMask" and _all_ones(found.text)):
                self.note(found, f"{where}: {tag}: {way_out}")


class _Tree:
    """A parsed file that knows the line of each element."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Element, int] = {}
        builder = TreeBuilder()
        parser = expat.ParserCreate()

        def start(tag: str, attributes: dict[str, str]) -> None:
            self.lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

        parser.StartElementHandler = start
        parser.EndElementHandler = builder.end
        parser.CharacterDataHandler = builder.data
        # Entities of the file's own making can blow up to gigabytes; SVD has none.
        parser.EntityDeclHandler = self._refuse_entities
        try:
            parser.Parse(path.read_bytes(), True)
        except expat.ExpatError as error:
            raise RegisterDefinitionError(f"{path}: not XML: {error}") from error
        self.root = builder.close()
        if self.root.tag != "device":
            raise RegisterDefinitionError(f"{path}: not CMSIS-SVD: its root is <{self.root.tag}>, not <device>")

    def _refuse_entities(self, name: str, *_: object) -> None:
        raise RegisterDefinitionError(f"{self.path}: it declares the XML entity {name!r}; CMSIS-SVD has none")

    def location(self, element: Element) -> Location:
        return Location(str(self.path), self.lines.get(element, 0))


def _text(element: Element, tag: str) -> str:
    return " ".join(element.findtext(tag, "").split())


def _prose(element: Element) -> str:
    return _text(element, "description").replace("\\n", " ")


def _number(text: str) -> int:
    """Spec: scaledNonNegativeInteger: decimal, 0x, # or 0b binary, and a scale of k, m, g or t."""
    match = re.fullmatch(r"\+?(0x[0-9a-f]+|#[01]+|0b[01]+|[0-9]+)([kmgt]?)", text.strip().lower())
    if match is None:
        raise RegisterDefinitionError(f"{text!r} is no number of CMSIS-SVD")
    digits, scale = match.groups()
    if digits.startswith("#"):
        value = int(digits[1:], 2)
    elif digits.startswith(("0x", "0b")):
        value = int(digits, 0)
    else:
        value = int(digits)
    return value << (10 * " kmgt".index(scale) if scale else 0)


def _bits(element: Element) -> tuple[int, int]:
    """(lsb, msb) from any of the three ways to write them."""
    pattern = element.findtext("bitRange")
    if pattern is not None:
        msb, _, lsb = pattern.strip().strip("[]").partition(":")
        return int(lsb), int(msb)
    if element.find("lsb") is not None:
        return _number(_text(element, "lsb")), _number(_text(element, "msb"))
    lsb_ = _number(_text(element, "bitOffset"))
    return lsb_, lsb_ + _number(element.findtext("bitWidth", "1")) - 1


def _indexes(text: str | None, count: int) -> list[str]:
    if text is None:
        return [str(index) for index in range(count)]
    match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text)
    if match:
        return [str(index) for index in range(int(match[1]), int(match[2]) + 1)]
    letters = re.fullmatch(r"\s*([A-Z])\s*-\s*([A-Z])\s*", text)
    if letters:
        return [chr(code) for code in range(ord(letters[1]), ord(letters[2]) + 1)]
    return [index.strip() for index in text.split(",")]


def _all_ones(text: str | None) -> bool:
    value = _number(text or "0")
    return value & (value + 1) == 0 and value.bit_length() % 8 == 0 and value > 0

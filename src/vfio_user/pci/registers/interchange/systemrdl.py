"""Importing SystemRDL 2.0, by way of systemrdl-compiler: an address map becomes a block class.

The compiler reads and checks the language; this module turns what it elaborated into declarations. What an RDL
description asks of hardware - counters that count, bits that hardware sets - is for device code to do; what registers
here have no words for becomes notes.

Needs ``pip install 'vfio-user[rdl]'``; nothing else of the package does.

Spec: SystemRDL 2.0.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vfio_user.errors import RegisterDefinitionError
from vfio_user.pci.registers._text import Location
from vfio_user.pci.registers.block import RegisterBlock
from vfio_user.pci.registers.fields import Field
from vfio_user.pci.registers.interchange.builder import BlockBuilder, field_name
from vfio_user.pci.registers.interchange.notes import Imported, Note
from vfio_user.pci.registers.policies import RSVDP, Access, ReadEffect, WriteEffect, named_access
from vfio_user.pci.registers.register import Register
from vfio_user.pci.registers.views import Alias, RegisterFile

__all__ = ["from_systemrdl"]

_WRITES = {
    "woset": WriteEffect.ONE_SETS,
    "woclr": WriteEffect.ONE_CLEARS,
    "wot": WriteEffect.ONE_TOGGLES,
    "wzs": WriteEffect.ZERO_SETS,
    "wzc": WriteEffect.ZERO_CLEARS,
    "wzt": WriteEffect.ZERO_TOGGLES,
    "wclr": WriteEffect.CLEARS,
    "wset": WriteEffect.SETS,
}
_READS = {"rclr": ReadEffect.CLEARS, "rset": ReadEffect.SETS}

#: Properties of a field that ask something of hardware, and what does it here.
_HARDWARE = {
    "intr": "set its bits from device code, and raise the interrupt there",
    "hwset": "set it from device code",
    "hwclr": "clear it from device code",
    "swmod": "add an on_write hook",
    "swacc": "add on_read and on_write hooks",
    "we": "store it from device code",
    "wel": "store it from device code",
    "next": "store it from device code",
    "paritycheck": "nothing checks parity",
    "anded": "compute it in device code",
    "ored": "compute it in device code",
    "xored": "compute it in device code",
}


def from_systemrdl(
    path: str | Path | Iterable[str | Path], top: str | None = None, *, include: Iterable[str | Path] = ()
) -> Imported:
    """Makes a block class of a SystemRDL address map.

    Args:
        path: the file, or several, in order.
        top: the address map's name; the last one defined when not given.
        include: folders for ``include`` directives.

    Raises:
        RegisterDefinitionError: systemrdl-compiler is not installed, or finds the description wrong: the text has its
            complaints with their lines.
    """
    compiler, errors = _compiler()
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    try:
        for file in paths:
            compiler.compile_file(str(file), incl_search_paths=[str(folder) for folder in include])
        root = compiler.elaborate(top_def_name=top)
    except compiler_error() as error:
        raise RegisterDefinitionError("\n".join(errors) or str(error)) from error
    reader = _Reader()
    return Imported(reader.block(root.top), tuple(reader.notes))


def compiler_error() -> type[Exception]:
    """What systemrdl-compiler raises for a wrong description."""
    error: type[Exception] = importlib.import_module("systemrdl").RDLCompileError
    return error


def _compiler() -> tuple[Any, list[str]]:
    """A compiler, and the list its complaints will be in."""
    try:
        systemrdl = importlib.import_module("systemrdl")
        messages = importlib.import_module("systemrdl.messages")
    except ImportError as error:
        raise RegisterDefinitionError(
            "reading SystemRDL needs systemrdl-compiler: pip install 'vfio-user[rdl]'"
        ) from error
    complaints: list[str] = []

    class Collector(messages.MessagePrinter):  # type: ignore[misc,name-defined]
        """Keeps errors for the exception, instead of printing them."""

        def print_message(self, severity: Any, text: str, src_ref: Any) -> None:
            if severity >= messages.Severity.ERROR:
                complaints.append(f"{_location(src_ref)}: {text}" if src_ref is not None else text)

    return systemrdl.RDLCompiler(message_printer=Collector()), complaints


class _Reader:
    """Turns the nodes of an elaborated description into declarations."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def block(self, node: Any) -> type[RegisterBlock]:
        """A class of an address map or a register file."""
        builder = BlockBuilder(node.type_name or node.inst_name, _doc(node), self.notes)
        if node.get_property("bigendian", default=False):
            builder.attribute("byteorder", "big")
        registers: dict[str, Register[Any]] = {}
        children = sorted(node.children(unroll=False), key=lambda child: bool(getattr(child, "is_alias", False)))
        for child in children:
            where = child.get_path(empty_array_suffix="[]")
            if child.component_type_name == "reg":
                self._add_register(builder, child, where, registers)
            elif child.component_type_name in ("addrmap", "regfile"):
                self._add_file(builder, child, where)
            else:
                self._note(
                    where, f"a {child.component_type_name}: place a MemoryRegion at {child.raw_address_offset:#x}"
                )
        builder.attribute("size", node.size)
        return builder.build()

    def _note(self, where: str, what: str) -> None:
        note = Note(where, what)
        if note not in self.notes:
            self.notes.append(note)

    def _place(self, node: Any, where: str) -> tuple[int, int | None, int | None]:
        """(offset, count, stride); an array of several dimensions becomes one row."""
        offset: int = node.raw_address_offset
        if not node.is_array:
            return offset, None, None
        count = 1
        for length in node.array_dimensions:
            count *= length
        if len(node.array_dimensions) > 1:
            shape = " by ".join(map(str, node.array_dimensions))
            self._note(where, f"an array of {shape} is one row of {count} here, the last index running fastest")
        return offset, count, node.array_stride

    def _add_file(self, builder: BlockBuilder, node: Any, where: str) -> None:
        inner = self.block(node)
        offset, count, stride = self._place(node, where)
        file: RegisterFile[Any]
        if count is None:
            file = RegisterFile(inner, offset, doc=_doc(node))
        else:
            file = RegisterFile(inner, offset, count=count, stride=stride, doc=_doc(node))
        builder.add(node.inst_name, file, _location(node.inst_src_ref))

    def _add_register(self, builder: BlockBuilder, node: Any, where: str, registers: dict[str, Register[Any]]) -> None:
        offset, count, stride = self._place(node, where)
        location = _location(node.inst_src_ref)
        width = node.get_property("regwidth")  # a power of two, at least 8
        if width > 64:
            self._note(where, f"left out: {width} bits are more than the 64 of a register")
            return
        if node.is_alias and node.alias_primary.inst_name in registers:
            self._add_alias(builder, node, where, offset, registers)
            return
        if node.get_property("shared", default=False):
            self._note(where, "shared: each map has a register of its own here")
        fields: list[Field] = []
        for child in node.fields():
            field = self._field(child, fields, f"{where}.{child.inst_name}")
            fields.append(field)
        accesswidth = node.get_property("accesswidth")
        if accesswidth != width:
            self._note(where, f"accesswidth {accesswidth}: accesses of any size are taken; set sizes= to refuse some")
        register: Register[Any]
        if count is None:
            register = Register(offset, width=width, fields=fields, reserved=RSVDP, doc=_doc(node))
        else:
            register = Register(
                offset, width=width, fields=fields, reserved=RSVDP, count=count, stride=stride, doc=_doc(node)
            )
        if builder.add(node.inst_name, register, location):
            registers[node.inst_name] = register

    def _add_alias(
        self, builder: BlockBuilder, node: Any, where: str, offset: int, registers: dict[str, Register[Any]]
    ) -> None:
        """An alias has one policy for all its bits here; fields with different ones are noted."""
        target = registers[node.alias_primary.inst_name]
        policies = {self._access(child, f"{where}.{child.inst_name}") for child in node.fields()}
        policy = next(iter(policies)) if len(policies) == 1 else None
        if policy is None:
            self._note(where, "an alias whose fields differ in access: it has that of its register here")
        builder.add(node.inst_name, Alias(target, offset, access=policy, doc=_doc(node)), _location(node.inst_src_ref))

    def _field(self, node: Any, taken: list[Field], where: str) -> Field:
        for name, way_out in _HARDWARE.items():
            if node.get_property(name, default=None) not in (None, False):
                self._note(where, f"{name}: {way_out}")
        reset = node.get_property("reset", default=None)
        if reset is not None and not isinstance(reset, int):
            self._note(where, "its reset value is another component's: 0 here; set it from device code")
            reset = None
        encode = node.get_property("encode", default=None)
        values = {} if encode is None else {int(member.value): member.name for member in encode.members.values()}
        field = Field(
            field_name(node.inst_name, taken),
            (node.high, node.low),
            access=self._access(node, where),
            reset=reset,
            values=values,
            doc=_doc(node),
        )
        field.location = _location(node.inst_src_ref)
        return field

    def _access(self, node: Any, where: str) -> Access:
        software = node.get_property("sw").name
        write, read = WriteEffect.STORES, ReadEffect.NONE
        if software in ("rw1", "w1"):
            self._note(where, f"sw={software}: later writes are not refused here; add a before_write hook")
        if software in ("r", "na"):
            write = WriteEffect.IGNORED
        if software in ("w", "w1", "na"):
            read = ReadEffect.HIDDEN
        on_write, on_read = node.get_property("onwrite"), node.get_property("onread")
        if on_write is not None and write is not WriteEffect.IGNORED:
            if on_write.name in _WRITES:
                write = _WRITES[on_write.name]
            else:
                self._note(where, "onwrite=wuser: add a before_write hook")
        if on_read is not None and read is not ReadEffect.HIDDEN:
            if on_read.name in _READS:
                read = _READS[on_read.name]
            else:
                self._note(where, "onread=ruser: add an on_read hook")
        if node.get_property("singlepulse", default=False):
            write = WriteEffect.PULSES
        if not node.get_property("counter", default=False):
            return named_access(write, read)
        saturates = node.get_property("incrsaturate", default=False) not in (None, False)
        if node.is_down_counter:
            self._note(where, "counts down: store the new value from device code")
        return named_access(write, read, "saturate" if saturates else "wrap")


def _location(src_ref: Any) -> Location:
    """Where a component stands, if the compiler knows."""
    if src_ref is None:
        return Location("SystemRDL", 0)
    return Location(str(getattr(src_ref, "filename", "SystemRDL")), int(getattr(src_ref, "line", 0) or 0))


def _doc(node: Any) -> str:
    name = node.get_property("name", default=None)
    description = node.get_property("desc", default=None)
    parts = [] if name in (None, node.inst_name) else [name]
    return ": ".join([*parts, *([" ".join(description.split())] if description else [])])

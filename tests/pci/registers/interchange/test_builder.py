"""Names from elsewhere, made fit for Python."""

from __future__ import annotations

import pytest

from vfio_user.pci.registers import RO, WO, Field, Register, RegisterBlock, RegisterFile
from vfio_user.pci.registers._text import Location
from vfio_user.pci.registers.interchange import Note
from vfio_user.pci.registers.interchange.builder import (
    BlockBuilder,
    class_name,
    field_name,
    fitting_width,
    python_name,
    unique_fields,
)

HERE = Location("chip.svd", 7)


class Inner(RegisterBlock):
    a = Register(0x0)


@pytest.mark.parametrize(
    ("given", "made"),
    [("CTRL", "ctrl"), ("a-b c", "a_b_c"), ("2nd", "n2nd"), ("class", "class_"), ("size", "size_"), ("__", "unnamed")],
)
def test_names_of_registers(given: str, made: str) -> None:
    assert python_name(given, frozenset(dir(RegisterBlock))) == made


@pytest.mark.parametrize(
    ("given", "made"), [("uart_16550", "Uart16550"), ("TIMER0", "TIMER0"), ("8254x", "Block8254x"), ("", "Block")]
)
def test_names_of_classes(given: str, made: str) -> None:
    assert class_name(given) == made


def test_names_of_fields_are_unlike_each_other() -> None:
    fields = [Field("a", 0), Field("a_2", 1)]
    assert field_name("A", fields) == "a_2_2"
    assert field_name("real", fields) == "real_"


def test_widths() -> None:
    assert [fitting_width(bits) for bits in (1, 8, 9, 24, 33, 64)] == [8, 8, 16, 32, 64, 64]
    with pytest.raises(ValueError, match="65 bits are more than the 64 of a register"):
        fitting_width(65)


def test_registers_that_share_bytes_are_kept_by_direction_only() -> None:
    notes: list[Note] = []
    builder = BlockBuilder("uart", "", notes)
    assert builder.add("RBR", Register(0, width=8, access=RO), HERE)
    assert builder.add("THR", Register(0, width=8, access=WO), HERE)
    assert not builder.add("DLL", Register(0, width=8), HERE)
    assert not builder.add("wide", Register(0, access=WO), HERE)
    assert not builder.add("inner", RegisterFile(Inner, 0), HERE)
    assert builder.add("rows", Register(0x10, count=2, stride=8), HERE)
    assert builder.add("columns", Register(0x14, count=2, stride=8), HERE)
    block = builder.build()
    assert list(block.layout.declarations) == ["rbr", "thr", "rows", "columns"]
    assert block.__doc__ == "uart, imported."
    assert [str(note).partition(": ")[0] for note in notes] == [
        f"{name} (chip.svd:7)" for name in ("DLL", "wide", "inner")
    ]
    assert notes[0].what == "left out: rbr [0x0, 0x1) (chip.svd:7) has these bytes; declare the bank (when=) by hand"


def test_fields_that_share_bits_are_noted() -> None:
    notes: list[Note] = []
    fields = unique_fields([("A", Field("a", (3, 0))), ("B", Field("b", 3)), ("C", Field("c", 4))], "CR", notes)
    assert [field.name for field in fields] == ["a", "c"]
    assert list(map(str, notes)) == ["CR.B: left out: another field has bits 3"]

"""The C header: compiled by gcc, and every offset, mask and value in it compared with the description."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vfio_user.pci.registers import RO, RW1C, RW1S, Alias, Field, Register, RegisterBlock, RegisterFile, ResetKind
from vfio_user.pci.registers.interchange import to_c_header


class Channel(RegisterBlock):
    control = Register(0x0, fields=[Field("mode", (5, 4), values={0: "off", 2: "on/fast"}, doc="how */ it runs")])
    data = Register(0x8, width=16, count=3, stride=4, reset=7)


class Example(RegisterBlock):
    """A block with everything in it."""

    long = Register(0x0, width=64, reset=1 << 40, fields=[Field("high", (63, 32)), Field("low", 0, access=RO)])
    status = Register(0x8, access=RW1C, doc="what happened,\n   and when")
    status_set = Alias(status, 0xC, access=RW1S)
    page = Register(0x10, width=8, reset={ResetKind.POWER_ON: 1, ResetKind.FLR: 2})
    one = Register(0x14, when={"page": 1})
    channels = RegisterFile(Channel, 0x100, count=4, stride=0x20)


class Clashing(RegisterBlock):
    byteorder = "big"
    a = Register(0x0, fields=[Field("reset_", 0), Field("b_mask", 1)])
    a_reset = Register(0x4)


def check(tmp_path: Path, block: type[RegisterBlock], *extra: str) -> None:
    """Compiles the header with one assertion for each register, array element and field."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    prefix = block.__name__.upper()
    (tmp_path / "registers.h").write_text(to_c_header(block).text)
    facts = [*extra, f"{prefix}_SIZE == {block.size}"]
    for item in block.describe():
        name = "_".join([prefix, *(part.name.upper() for part in item.parts)])
        arrays = [part.elements for part in item.parts if part.count is not None]
        for full, offset in item.elements():
            indexes = [piece.split("]")[0] for piece in full.split("[")[1:]]
            facts.append(f"{name}{'(' + ', '.join(indexes) + ')' if arrays else ''} == {offset}")
        facts.append(f"{name}_RESET == {item.register.reset}ull")
        for field in item.register.fields:
            facts.append(f"{name}_{field.name.upper()}_MASK == {field.mask}ull")
            facts.append(f"{name}_{field.name.upper()}_SHIFT == {field.lsb}")
    asserts = [f'_Static_assert({fact}, "{number}");' for number, fact in enumerate(facts)]
    source = tmp_path / "check.c"
    source.write_text("\n".join(['#include "registers.h"', '#include "registers.h"', *asserts, "int unused;"]))
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Wundef", "-pedantic", "-Werror", "-fsyntax-only", str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_gcc_agrees_with_every_number(tmp_path: Path) -> None:
    check(
        tmp_path,
        Example,
        "EXAMPLE_CHANNELS_CONTROL_MODE_ON_FAST == 2",
        "EXAMPLE_CHANNELS_CONTROL(3) == 0x160",
        "EXAMPLE_CHANNELS_DATA(1, 2) == 0x130",
        "EXAMPLE_CHANNELS_DATA_COUNT_I0 == 4",
        "EXAMPLE_CHANNELS_DATA_COUNT_I1 == 3",
        "EXAMPLE_CHANNELS_CONTROL_COUNT == 4",
    )


def test_gcc_agrees_with_an_imported_controller_of_many_registers(tmp_path: Path) -> None:
    pytest.importorskip("systemrdl")
    from vfio_user.pci.registers.interchange import from_systemrdl

    rdl = Path(__file__).parents[4] / "examples" / "registers" / "e1000.rdl"
    check(tmp_path, from_systemrdl(rdl).block, "E1000_GPRC == 0x4074", "E1000_RA_HIGH(15) == 0x547C")


def test_what_macros_cannot_say_is_a_comment_and_a_note() -> None:
    header = to_c_header(Example)
    assert "/* status: 32 bits, RW1C, what happened, and when */\n#define EXAMPLE_STATUS 0x8\n" in header.text
    assert "/* status_set: 32 bits, RW1S, alias of status, what happened" not in header.text
    assert "/* status_set: 32 bits, RW1S, alias of status */" in header.text
    assert "/* how * / it runs */" in header.text
    assert [str(note) for note in header.notes] == [
        "page: its reset value depends on the kind of reset: the header has power-on's",
        "one: its bank (page) is a comment: select it before an access",
    ]
    assert str(header) == header.text


def test_names_that_clash_as_macros_are_noted(tmp_path: Path) -> None:
    header = to_c_header(Clashing, "c")
    assert [str(note) for note in header.notes] == [
        "a: its byte order is a comment: swap the bytes of each access",
        "a_reset: its byte order is a comment: swap the bytes of each access",
        "a_reset: no macro C_A_RESET: a has it already",
    ]
    assert "/* a: 32 bits, RW, big-endian */" in header.text

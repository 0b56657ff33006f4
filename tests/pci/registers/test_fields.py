"""Fields: their bits, values, and what cannot be declared."""

from __future__ import annotations

import enum
from collections.abc import Callable

import pytest

from vfio_user.errors import RegisterDefinitionError
from vfio_user.pci.registers import RW1C, Field, Register, RegisterBlock, ResetKind


class Speed(enum.IntEnum):
    SLOW = 1
    FAST = 2


def test_bits_are_a_number_or_msb_and_lsb() -> None:
    single, several = Field("ready", 3), Field("speed", (7, 4), values=Speed)
    assert (single.lsb, single.msb, single.width, single.mask, single.bits) == (3, 3, 1, 0x08, "3")
    assert (several.lsb, several.msb, several.width, several.mask, several.bits) == (4, 7, 4, 0xF0, "7:4")
    assert several.extract(0xA5) == 0xA
    assert several.insert(0xFFF, 0x2) == 0xF2F
    assert several.values == {1: "SLOW", 2: "FAST"}
    assert repr(several) == "Field('speed', 7:4, the access of its register)"
    assert repr(Field("done", 0, access=RW1C)) == "Field('done', 0, RW1C)"


def test_a_value_of_the_enumeration_is_a_member_and_any_other_a_number() -> None:
    field = Field("speed", (7, 4), values=Speed)
    assert field.extract(0x20) is Speed.FAST
    assert field.extract(0x70) == 7
    assert type(field.extract(0x70)) is int


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Field("a b", 0), "its name is not a Python identifier: `block.register.name` could not be written"),
        (lambda: Field("real", 0), "that name is taken by int or private: call it 'real_'"),
        (lambda: Field("_x", 0), "that name is taken by int or private: call it 'x_'"),
        (lambda: Field("mode", (4, 7)), "bits 4:7 are not a range: give one bit number, or (msb, lsb)"),
        (lambda: Field("mode", -1), "bits -1:-1 are not a range: give one bit number, or (msb, lsb)"),
        (lambda: Field("mode", (1, 0), reset=4), "reset = 0x4 does not fit its 2 bits"),
        (lambda: Field("mode", 0, values=Speed), "FAST = 0x2 does not fit its 1 bits"),
        (lambda: Field("mode", 0, values={3: "three"}), "three = 0x3 does not fit its 1 bits"),
        (lambda: Field("mode", 0, sticky=[ResetKind.POWER_ON]), "nothing is sticky over POWER_ON"),
    ],
)
def test_rejected_fields(make: Callable[[], Field], text: str) -> None:
    with pytest.raises(RegisterDefinitionError) as caught:
        make()
    message = str(caught.value)
    assert message.startswith("field '")
    assert "test_fields.py:" in message
    assert text in message


class Block(RegisterBlock):
    control = Register(
        0x0,
        fields=[
            Field("enable", 0),
            Field("speed", (7, 4), values=Speed, reset=1),
            Field("mode", (9, 8), values={0: "off", 3: "on"}),
            Field("count", (31, 16)),
        ],
    )
    scratch = Register(0x4)


def test_a_register_value_has_its_fields_as_attributes() -> None:
    block = Block()
    assert block.control == 0x10
    assert block.control.speed is Speed.SLOW
    block.control.enable = 1
    block.control.speed = Speed.FAST
    block.control.count = 0xABC
    assert block.control == 0x0ABC_0021
    assert (block.control.enable, block.control.count) == (1, 0xABC)
    assert type(block._values[0]) is int


def test_a_register_of_the_class_knows_its_fields() -> None:
    assert Block.control.field("speed").bits == "7:4"
    assert [field.name for field in Block.control.bits] == ["enable", "speed", "mode", "count"]
    with pytest.raises(KeyError):
        Block.control.field("enabel")


def test_a_register_value_is_what_it_was_when_it_was_read() -> None:
    block = Block()
    before = block.control
    before.enable = 1
    assert before.enable == 0
    assert block.control.enable == 1


def test_a_register_value_prints_its_fields_by_name() -> None:
    block = Block()
    block.control = 0x0ABC_0321
    assert str(block.control) == "0xabc0321 (enable=1 speed=FAST mode=on count=0xabc)"
    assert f"{block.control}" == repr(block.control) == str(block.control)
    assert f"{block.control:#010x}" == "0x0abc0321"
    assert str(block.scratch) == "0x0"
    assert block.scratch + 1 == 1


def test_wrong_field_names_and_values_are_told_apart() -> None:
    block = Block()
    with pytest.raises(AttributeError, match=r"register 'control' has no field 'enabel': did you mean 'enable'\?"):
        _ = block.control.enabel
    with pytest.raises(AttributeError, match=r"register 'control' has no field 'enabel': did you mean 'enable'\?"):
        block.control.enabel = 1
    with pytest.raises(AttributeError, match="register 'scratch' has no fields, so no 'enable'"):
        _ = block.scratch.enable
    with pytest.raises(ValueError, match=r"control.speed = 0x10 does not fit 4 bits: mask it, `& 0xf`"):
        block.control.speed = 16
    assert block.control == 0x10

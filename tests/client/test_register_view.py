"""Registers by name, from the driver's side."""

from __future__ import annotations

from typing import Any

import pytest

from vfio_user.client.register_view import view_registers
from vfio_user.pci.registers import (
    RO,
    RW1C,
    RW1S,
    W0C,
    W1P,
    Field,
    Register,
    RegisterBlock,
    RegisterFile,
)
from vfio_user.regions import MemoryRegion


class Channel(RegisterBlock):
    """One of a row."""

    control = Register(0, width=16)
    count = Register(2, width=16)


class Card(RegisterBlock):
    """A bit of everything."""

    identity = Register(0x00, width=8, access=RO)
    status = Register(
        0x04,
        fields=[
            Field("mode", (1, 0)),
            Field("overrun", 8, access=RW1C),
            Field("underrun", 9, access=RW1C),
            Field("go", 16, access=W1P),
            Field("set_only", 17, access=RW1S),
            Field("parity", 24, access=W0C),
        ],
    )
    wide = Register(0x08, width=64)
    levels = Register(0x10, width=16, count=3, stride=4)
    channels = RegisterFile(Channel, 0x20, count=2)
    one = RegisterFile(Channel, 0x30)
    class_ = Register(0x40, width=8)


class Big(RegisterBlock):
    """Registers with their most significant byte first."""

    byteorder = "big"
    word = Register(0)


class Recorder(MemoryRegion):
    """Memory that tells what was done to it."""

    def __init__(self) -> None:
        super().__init__(0x200)
        self.log: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("read", offset, size))
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((f"write {value:#x}", offset, size))
        super().write(offset, size, value)


@pytest.fixture
def memory() -> Recorder:
    return Recorder()


@pytest.fixture
def card(memory: Recorder) -> Card:
    return view_registers(Card, memory, 0x100)


def test_each_attribute_is_one_access_of_its_width(card: Card, memory: Recorder) -> None:
    card.wide = 0x1122_3344_5566_7788
    assert card.wide == 0x1122_3344_5566_7788
    card.levels[1] = 7
    card.channels[1].count = 9
    card.one.control = 3
    card.class_ = 5
    assert (card.levels[1], card.channels[1].count, card.one.control, card.identity) == (7, 9, 3, 0)
    assert memory.log == [
        ("write 0x1122334455667788", 0x108, 8),
        ("read", 0x108, 8),
        ("write 0x7", 0x114, 2),
        ("write 0x9", 0x126, 2),
        ("write 0x3", 0x130, 2),
        ("write 0x5", 0x140, 1),
        ("read", 0x114, 2),
        ("read", 0x126, 2),
        ("read", 0x130, 2),
        ("read", 0x100, 1),
    ]


def test_fields(card: Card, memory: Recorder) -> None:
    memory.memory[0x104:0x108] = (0x0103_0302).to_bytes(4, "little")
    status = card.status
    assert (status.mode, status.overrun, status.parity) == (2, 1, 1)
    assert len(memory.log) == 1, "one read serves all its fields"
    assert "mode=2" in str(status)
    status.mode = 1
    assert memory.log[-1] == ("write 0x1000001", 0x104, 4), "events are neither cleared nor set by the way"
    memory.memory[0x104:0x108] = (0x0003_0302).to_bytes(4, "little")
    card.status.overrun = 1
    assert memory.log[-1] == ("write 0x1000102", 0x104, 4)


def test_arrays(card: Card, memory: Recorder) -> None:
    levels: Any = card.levels
    assert (len(levels), list(levels), levels[0:2], levels[-1]) == (3, [0, 0, 0], [0, 0], 0)
    for index in (3, -4):
        with pytest.raises(IndexError, match=r"levels\[-?\d\]: the array has 3"):
            levels[index]
        with pytest.raises(IndexError):
            levels[index] = 0
    levels[-1] = 8
    assert memory.memory[0x118] == 8
    channels: Any = card.channels
    with pytest.raises(TypeError, match="are blocks"):
        channels[0] = 1
    assert [channel.control for channel in channels] == [0, 0]


def test_bytes_the_other_way_round(memory: Recorder) -> None:
    big = view_registers(Big, memory)
    big.word = 0x1122_3344
    assert memory.memory[:4] == b"\x11\x22\x33\x44"
    assert big.word == 0x1122_3344


def test_names_that_are_none(card: Any) -> None:
    with pytest.raises(AttributeError, match="Card has no register 'nonsense'"):
        card.nonsense  # noqa: B018
    with pytest.raises(AttributeError, match="Card has no register 'nonsense'"):
        card.nonsense = 1
    with pytest.raises(AttributeError, match="no register 'size'"):
        card.size = 1
    with pytest.raises(AttributeError, match="has no field 'mod'"):
        card.status.mod = 1
    with pytest.raises(AttributeError, match="is several registers"):
        card.levels = 1
    with pytest.raises(AttributeError, match="is several registers"):
        card.one = 1
    assert dir(card) == sorted(["identity", "status", "wide", "levels", "channels", "one", "class_"])
    assert repr(card) == "<Card at 0x100>"


def test_values_that_do_not_fit(card: Any, memory: Recorder) -> None:
    for name, value in (("wide", 1 << 64), ("identity", -1), ("status", 1 << 32)):
        with pytest.raises(ValueError, match=f"{name} = .* does not fit"):
            setattr(card, name, value)
    with pytest.raises(ValueError, match=r"status\.mode = 0x4 does not fit 2 bits"):
        card.status.mode = 4
    assert [entry for entry in memory.log if entry[0] != "read"] == []

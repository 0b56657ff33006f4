"""Walking a class, finding a register by offset, and putting accesses into words."""

from __future__ import annotations

from vfio_user.pci.registers import (
    RO,
    RW1S,
    WO,
    Alias,
    Field,
    Register,
    RegisterBlock,
    RegisterFile,
    describe_access,
    locate,
)


class Channel(RegisterBlock):
    control = Register(0x0, fields=[Field("enable", 0)], doc="starts it")
    data = Register(0x8, count=2, width=16)


class Block(RegisterBlock):
    status = Register(0x4, fields=[Field("computing", 0), Field("raise_irq", 7)])
    version = Register(0x0, access=RO, reset=3)
    status_set = Alias(status, 0x8, access=RW1S)
    rbr = Register(0x10, width=8, access=RO)
    thr = Register(0x10, width=8, access=WO)
    channels = RegisterFile(Channel, 0x20, count=2, stride=0x20)
    paged = RegisterFile(Channel, 0x60, when={"version": 3})


class Big(RegisterBlock):
    byteorder = "big"
    word = Register(0x0, fields=[Field("low", (7, 0))])


def test_a_walk_meets_every_register_in_order_of_offset() -> None:
    walked = Block.describe()
    assert [(d.offset, d.name) for d in walked] == [
        (0x0, "version"),
        (0x4, "status"),
        (0x8, "status_set"),
        (0x10, "rbr"),
        (0x10, "thr"),
        (0x20, "channels[2].control"),
        (0x28, "channels[2].data[2]"),
        (0x60, "paged.control"),
        (0x68, "paged.data[2]"),
    ]
    control, data = walked[5], walked[6]
    assert (control.block, control.register.doc) == (Channel, "starts it")
    assert (control.dimensions, data.dimensions) == (((2, 0x20),), ((2, 0x20), (2, 2)))
    assert list(data.elements()) == [
        ("channels[0].data[0]", 0x28),
        ("channels[0].data[1]", 0x2A),
        ("channels[1].data[0]", 0x48),
        ("channels[1].data[1]", 0x4A),
    ]
    assert walked[2].alias_of == "status"
    assert control.alias_of is None
    assert walked[7].when == (("version", frozenset({3})),)


def test_an_offset_is_located() -> None:
    assert [(found.name, found.first, found.at, found.size) for found in locate(Block, 0x4A, 1)] == [
        ("channels[1].data[1]", 0, 0, 1)
    ]
    assert [found.name for found in locate(Block, 0x2, 4)] == ["version", "status"]
    assert [found.name for found in locate(Block, 0x10)] == ["rbr", "thr"]
    assert [found.name for found in locate(Block, 0x10, writing=True)] == ["thr"]
    assert [found.name for found in locate(Block, 0x10, writing=False)] == ["rbr"]
    assert [found.name for found in locate(Block, 0xC, 4)] == []


def test_accesses_in_words() -> None:
    assert describe_access(Block, 0x4, 4, 0x81) == "status = 0x81 (computing=1 raise_irq=1)"
    assert describe_access(Block, 0x5, 1, 0x1) == "status[15:8] = 0x1"
    assert describe_access(Block, 0x0, 8, 0x1_0000_0003) == "version = 0x3, status = 0x1 (computing=1 raise_irq=0)"
    assert describe_access(Block, 0x42, 4, 0x1234_5678) == "channels[1].control[31:16] = 0x5678"
    assert describe_access(Block, 0x1E, 4, 0x5678_0000) == "channels[0].control[15:0] = 0x5678"
    assert describe_access(Block, 0x10, 1, 5, writing=True) == "thr = 0x5"
    assert describe_access(Block, 0x14, 4, 5) == "0x14 = 0x5"
    assert describe_access(Big, 0x0, 4, 0x4433_2211) == "word = 0x11223344 (low=0x44)"
    assert describe_access(Big, 0x3, 1, 0x44) == "word[7:0] = 0x44"
    assert describe_access(Big, 0x0, 2, 0x2211) == "word[31:16] = 0x1122"

"""A client's accesses, the device's side, nesting, placing and reset."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user.errors import InvalidAccess, RegisterDefinitionError
from vfio_user.pci.registers import (
    CONST,
    COUNTER,
    COUNTER_RC,
    COUNTER_WRAP,
    RC,
    REJECT,
    RO,
    RSVDZ,
    RW,
    RW1C,
    RW1S,
    W1P,
    WO,
    Alias,
    Field,
    Register,
    RegisterBlock,
    RegisterFile,
    ResetKind,
)
from vfio_user.regions import MemoryRegion, Region


class Timer(RegisterBlock):
    control = Register(0x0, fields=[Field("enable", 0), Field("start", 1, access=W1P)])
    count = Register(0x4, access=RO)


class Block(RegisterBlock):
    identification = Register(0x0, access=RO, reset=0x0100_00ED)
    scratch = Register(0x4)
    status = Register(0x8, access=RW1C, reset=0xFF)
    command = Register(0xC, access=WO)
    long = Register(0x10, width=64)
    byte = Register(0x18, width=8)
    half = Register(0x1A, width=16)
    events = Register(0x1C, access=RC)
    outputs = Register(0x20, count=4, stride=8)
    timers = RegisterFile(Timer, 0x40, count=2, stride=0x10)
    timer = RegisterFile(Timer, 0x60)


def test_each_policy_from_the_clients_side() -> None:
    block = Block()
    for offset in range(0, 0x10, 4):
        block.write(offset, 4, 0x0F)
    assert [block.read(offset, 4) for offset in range(0, 0x10, 4)] == [0x0100_00ED, 0x0F, 0xF0, 0]
    assert block.command == 0x0F
    block.events = 5
    assert [block.read(0x1C, 4), block.read(0x1C, 4)] == [5, 0]


def test_the_device_stores_whatever_the_policy() -> None:
    block = Block()
    block.identification = 1
    block.status = 0x1234
    block.outputs[2] = 7
    block.outputs[-1] = 8
    block.timers[1].count = 9
    block.timer.control.enable = 1
    assert (block.read(0x0, 4), block.read(0x8, 4), block.read(0x54, 4), block.read(0x60, 4)) == (1, 0x1234, 9, 1)
    assert [block.read(0x20 + 8 * i, 4) for i in range(4)] == [0, 0, 7, 8]
    assert list(block.outputs) == [0, 0, 7, 8]
    assert block.outputs[1:3] == [0, 7]
    assert len(block.outputs) == 4
    assert repr(block.outputs) == "[0x0, 0x0, 0x7, 0x8]"
    assert type(block._values[block.layout.registers["outputs"].slot + 2]) is int


def test_stores_that_cannot_be_are_told_apart() -> None:
    block = Block()
    with pytest.raises(ValueError, match=r"scratch = 0x100000000 does not fit 32 bits: mask it, `& 0xffffffff`"):
        block.scratch = 1 << 32
    with pytest.raises(ValueError, match=r"scratch = -0x1 does not fit 32 bits: mask it"):
        block.scratch = -1
    with pytest.raises(ValueError, match=r"outputs = 0x100000000 does not fit 32 bits"):
        block.outputs[0] = 1 << 32
    with pytest.raises(IndexError, match=r"outputs\[4\]: the array has 4 registers"):
        block.outputs[4] = 1
    with pytest.raises(IndexError, match=r"outputs\[-5\]: the array has 4 registers"):
        _ = block.outputs[-5]
    with pytest.raises(TypeError, match=r"outputs is an array of 4 registers: store to one, outputs\[0\] = 5"):
        block.outputs = 5  # type: ignore[misc]
    with pytest.raises(TypeError, match="timer is a register file: store to a register in it"):
        block.timer = 5  # type: ignore[assignment]
    with pytest.raises(AttributeError, match=r"Block has no register 'scrach': did you mean 'scratch'\? \(A new att"):
        block.scrach = 5  # type: ignore[attr-defined]


def test_a_block_may_have_attributes_of_its_own() -> None:
    class Fifo(RegisterBlock):
        data = Register(0x0)

        def __init__(self) -> None:
            super().__init__()
            self.queue: list[int] = []
            self.dat = 1

    fifo = Fifo()
    fifo.queue = [1]
    fifo.dat = 2
    fifo.colour = "red"  # type: ignore[attr-defined]
    assert (fifo.queue, fifo.dat) == ([1], 2)


def test_constants_are_not_even_the_devices_to_change() -> None:
    class Fixed(RegisterBlock):
        version = Register(0x0, access=CONST, reset=3)
        mixed = Register(0x4, fields=[Field("fixed", (7, 4), access=CONST, reset=2), Field("free", (3, 0))])

    block = Fixed()
    block.version = 3
    block.mixed = 0x25
    with pytest.raises(AttributeError, match=r"version \(.*test_block.py:\d+\) is CONST at 0x3: declare it RO if the"):
        block.version = 4
    with pytest.raises(AttributeError, match=r"mixed \(.*\) is CONST at 0x25"):
        block.mixed.fixed = 3
    with pytest.raises(ValueError, match="version = 0x100000000 does not fit 32 bits"):
        block.version = 1 << 32
    assert (block.version, block.mixed) == (3, 0x25)


def test_an_alias_of_a_constant_is_no_way_around_it() -> None:
    class Fixed(RegisterBlock):
        version = Register(0x0, access=CONST, reset=3, fields=[Field("major", (3, 0))])
        again = Alias(version, 0x4, access=RW)

    block = Fixed()
    with pytest.raises(AttributeError, match=r"version .* is CONST"):
        block.again = 4
    with pytest.raises(AttributeError, match=r"version .* is CONST"):
        block.again.major = 4


def test_counters_saturate_or_wrap_and_are_cleared() -> None:
    class Statistics(RegisterBlock):
        errors = Register(0x0, width=8, access=COUNTER)
        frames = Register(0x1, width=8, access=COUNTER_WRAP)
        drops = Register(0x2, width=8, access=COUNTER_RC)
        named = Register(0x3, width=8, fields=[Field("count", (7, 0), access=COUNTER)])
        pair = Register(0x4, access=COUNTER, fields=[Field("rx", (3, 0)), Field("tx", (7, 4))])
        lanes = Register(0x8, width=8, access=COUNTER, count=2)

    block = Statistics()
    for _ in range(300):
        block.errors += 1
        block.frames += 1
        block.drops += 1
        block.pair.tx += 1
        block.named += 1
        block.lanes[1] += 1
    assert (block.errors, block.frames, block.drops, block.pair, list(block.lanes)) == (255, 44, 255, 0xF0, [0, 255])
    assert block.named.count == 255
    with pytest.raises(ValueError, match="pair = 0x1000000f0 does not fit 32 bits"):
        block.pair += 1 << 32
    block.write(0, 1, 99)
    block.write(1, 1, 99)
    block.write(2, 1, 99)
    assert [block.read(at, 1) for at in (0, 1, 2, 2)] == [0, 0, 255, 0]
    with pytest.raises(ValueError, match="errors = -0x1 does not fit 8 bits"):
        block.errors -= 1


def test_a_pulse_is_never_stored() -> None:
    block = Block()
    block.write(0x60, 4, 3)
    assert block.read(0x60, 4) == 1
    assert block.timer.control == 1


def test_bits_between_fields_are_reserved() -> None:
    class Reserved(RegisterBlock):
        kept = Register(0x0, reset=0xF0, fields=[Field("a", 0)])
        zero = Register(0x4, reset=0xF0, fields=[Field("a", 0)], reserved=RSVDZ)
        free = Register(0x8, reset=0xF0, fields=[Field("a", 0)], reserved=RW)

    block = Reserved()
    for offset in (0, 4, 8):
        block.write(offset, 4, 0xF)
    assert [block.read(offset, 4) for offset in (0, 4, 8)] == [0xF1, 1, 0xF]


def test_part_of_a_register_is_merged_and_only_its_bits_have_effects() -> None:
    block = Block()
    block.write(0x4, 4, 0x1122_3344)
    block.write(0x5, 1, 0xAA)
    assert block.read(0x4, 4) == 0x1122_AA44
    assert block.read(0x6, 2) == 0x1122
    block.status = 0xFFFF
    block.write(0x8, 1, 0xFF)
    assert block.status == 0xFF00
    block.events = 0xFFFF
    assert block.read(0x1D, 1) == 0xFF
    assert block.events == 0xFF
    block.write(0x14, 4, 0x5555_5555)
    assert block.long == 0x5555_5555_0000_0000


def test_an_access_to_several_registers_is_split() -> None:
    block = Block()
    block.write(0x4, 8, 0xFF_0000_0001)
    assert (block.scratch, block.status) == (1, 0)
    assert block.read(0x0, 8) == 0x0000_0001_0100_00ED
    block.write(0x17, 4, 0x4433_2211)
    assert (block.long >> 56, block.byte, block.half) == (0x11, 0x22, 0x44)
    assert [(a.offset, a.size, a.first_value) for a in block.unmodelled] == [(0x19, 1, 0x33)]


class Big(RegisterBlock):
    byteorder = "big"
    word = Register(0x0)
    half = Register(0x4, width=16)
    long = Register(0x8, width=64)


def test_big_endian_registers_have_their_high_byte_first() -> None:
    block = Big()
    block.write(0x0, 4, 0x4433_2211)
    assert block.word == 0x1122_3344
    assert block.read_bytes(0, 4) == bytes.fromhex("11223344")
    assert block.read(0x0, 1) == 0x11
    block.write(0x3, 1, 0xFF)
    assert block.word == 0x1122_33FF
    assert block.read(0x2, 2) == 0xFF33
    block.write(0x2, 2, 0xBBAA)
    assert block.word == 0x1122_AABB
    block.long = 0x0102_0304_0506_0708
    assert block.read_bytes(8, 8) == bytes(range(1, 9))


@settings(max_examples=60, deadline=None)
@given(
    byteorder=st.sampled_from(["little", "big"]),
    shape=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([8, 16, 32, 64]), st.integers(1, 3)), max_size=6),
    accesses=st.lists(
        st.tuples(st.integers(0, 80), st.sampled_from([1, 2, 4, 8]), st.one_of(st.none(), st.integers(0, 2**64 - 1)))
    ),
)
def test_plain_registers_are_memory_with_holes(
    byteorder: str, shape: list[tuple[int, int, int]], accesses: list[tuple[int, int, int | None]]
) -> None:
    namespace: dict[str, Any] = {"byteorder": byteorder}
    offset = 0
    claimed: set[int] = set()
    for number, (gap, width, count) in enumerate(shape):
        offset += gap
        namespace[f"r{number}"] = Register(offset, width=width, count=count, stride=width // 8 + 1)
        for index in range(count):
            start = offset + index * (width // 8 + 1)
            claimed.update(range(start, start + width // 8))
        offset += count * (width // 8 + 1)
    block = type("Plain", (RegisterBlock,), namespace)(size=256)
    assert isinstance(block, RegisterBlock)
    memory = bytearray(256)
    for at, size, value in accesses:
        if value is not None:
            data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            block.write(at, size, int.from_bytes(data, "little"))
            for byte in claimed & set(range(at, at + size)):
                memory[byte] = data[byte - at]
        assert block.read(at, size) == int.from_bytes(memory[at : at + size], "little")
    for number in range(len(shape)):
        register = type(block).layout.registers[f"r{number}"]
        values = getattr(block, f"r{number}")
        for index in range(register.elements):
            start = register.offset + index * register.stride
            stored = memory[start : start + register.size]
            assert values[index] == int.from_bytes(stored, "big" if byteorder == "big" else "little")


class Strict(RegisterBlock):
    access_sizes = (4, 8)
    unaligned_access = REJECT
    a = Register(0x0)
    b = Register(0x4)
    c = Register(0x8, width=64, partial=REJECT, sizes=(8,))
    d = Register(0x10, width=8, sizes=(1,))


class StrictSpan(RegisterBlock):
    spanning_access = REJECT
    partial_access = REJECT
    a = Register(0x0)
    b = Register(0x4)


@pytest.mark.parametrize(
    ("block", "offset", "size", "text"),
    [
        (Strict, 0x0, 2, "a: {} of 2 bytes at 0x0: it takes accesses of 4 or 8 bytes"),
        (Strict, 0x8, 4, "c: {} of 4 bytes at 0x8: it takes accesses of 8 bytes"),
        (Strict, 0x10, 4, "d: {} of 4 bytes at 0x10: it takes accesses of 1 bytes"),
        (Strict, 0x4, 8, "b: {} of 8 bytes at 0x4: it takes aligned accesses only (unaligned_access = REJECT)"),
        (StrictSpan, 0x0, 8, "a: {} of 8 bytes at 0x0: an access may not span registers (spanning_access = REJECT)"),
        (StrictSpan, 0x4, 8, "b: {} of 8 bytes at 0x4: an access may not span registers (spanning_access = REJECT)"),
        (StrictSpan, 0x1, 1, "a: {} of 1 bytes at 0x1: all 4 bytes must be accessed at once (partial access: REJECT)"),
    ],
)
def test_rules_refuse_with_einval_before_anything_happens(
    block: type[RegisterBlock], offset: int, size: int, text: str
) -> None:
    instance = block()
    for _ in range(2):
        with pytest.raises(InvalidAccess) as caught:
            instance.read(offset, size)
        assert str(caught.value) == "[Errno 22] " + text.format("read")
        with pytest.raises(InvalidAccess) as caught:
            instance.write(offset, size, 1)
        assert str(caught.value) == "[Errno 22] " + text.format("write")
    assert not any(instance._values)
    assert len(instance.unmodelled) == 0


def test_allowed_accesses_pass_the_rules() -> None:
    strict = Strict()
    strict.write(0x0, 8, 0x2_0000_0001)
    strict.write(0x8, 8, 3)
    strict.write(0x10, 1, 4)
    assert (strict.a, strict.b, strict.c, strict.d) == (1, 2, 3, 4)


def test_an_alias_is_another_door_to_the_same_register() -> None:
    class Masks(RegisterBlock):
        mask = Register(0x0, reset=0xF0, fields=[Field("low", (3, 0)), Field("high", (7, 4))])
        mask_set = Alias(mask, 0x4, access=RW1S)
        mask_clear = Alias(mask, 0x8, access=RW1C)
        mask_raw = Alias(mask, 0xC, access=RO)
        same = Alias(mask, 0x10)
        rows = Register(0x20, count=2, stride=8)
        rows_set = Alias(rows, 0x24, access=RW1S)

    block = Masks()
    block.write(0x4, 4, 0x0F)
    block.write(0x8, 4, 0x11)
    block.write(0xC, 4, 0)
    assert [block.read(offset, 4) for offset in range(0, 0x14, 4)] == [0xEE] * 5
    block.write(0x10, 4, 0x12)
    assert (block.mask, block.mask_set.low) == (0x12, 2)
    block.mask_clear = 0x34
    block.mask_set.low = 1
    assert block.mask == 0x31
    block.write(0x2C, 4, 6)
    assert list(block.rows) == list(block.rows_set) == [0, 6]


def test_placed_regions_answer_at_their_offset() -> None:
    block = Block(size=0x1000)
    memory = MemoryRegion(0x102)
    timer = Timer()
    block.place(0x100, memory, "memory")
    block.place(0x202, timer, "extra")
    block.write(0x100, 4, 0x1234_5678)
    block.write(0x1FE, 8, 0x9_0000_ABCD_1122)
    assert memory.memory[:4] == bytes.fromhex("78563412")
    assert memory.memory[-4:] == bytes.fromhex("2211CDAB")
    assert (timer.control, timer.path) == (1 * 0, "extra.")
    assert block.read(0x1FE, 4) == 0xABCD_1122
    assert block.read(0x1FF, 2) == 0xCD11
    assert block.read(0x1FF, 8) >> 32 == block.read(0x203, 4)
    timer.control = 0xAA
    assert block.read(0x202, 1) == 0xAA


def test_a_region_of_odd_size_is_accessed_in_sizes_it_understands() -> None:
    class Odd(Region):
        size = 3

        def __init__(self) -> None:
            self.accesses: list[tuple[int, int, int]] = []

        def read(self, offset: int, size: int) -> int:
            self.accesses.append((offset, size, 0))
            return 0x11 * (offset + 1) if size == 1 else 0x2211

        def write(self, offset: int, size: int, value: int) -> None:
            self.accesses.append((offset, size, value))

    region = Odd()
    block = RegisterBlock(size=16)
    block.place(4, region, "odd")
    assert block.read(4, 4) == 0x332211
    block.write(4, 4, 0x44332211)
    assert region.accesses == [(0, 2, 0), (2, 1, 0), (0, 2, 0x2211), (2, 1, 0x33)]


def test_placements_that_cannot_be() -> None:
    block = Block(size=0x1000)
    block.place(0x100, MemoryRegion(0x100), "memory")
    timer = Timer()
    block.place(0x300, timer, "timer_2")
    for offset, region, text in [
        (0x180, MemoryRegion(4), r"Block: more \[0x180, 0x184\) overlaps memory \[0x100, 0x200\)"),
        (0x4, MemoryRegion(4), r"Block: more \[0x4, 0x8\) overlaps scratch \[0x4, 0x8\) \(.*test_block.py:\d+\)"),
        (0xFFE, MemoryRegion(4), r"more \[0xffe, 0x1002\) does not fit Block of 0x1000 bytes"),
        (-4, MemoryRegion(4), r"more \[-0x4, 0x0\) does not fit Block of 0x1000 bytes"),
        (0x400, timer, r"more \[0x400, 0x408\) is part of another block already \(timer_2\)"),
    ]:
        with pytest.raises(RegisterDefinitionError, match=text):
            block.place(offset, region, "more")
    assert len(block.placements) == 2


def test_paths_of_blocks_in_blocks() -> None:
    class Outer(RegisterBlock):
        blocks = RegisterFile(Block, 0x0, count=2)

    outer = Outer(size=0x200)
    assert outer.blocks[1].timers[0].path == "blocks[1].timers[0]."
    top = RegisterBlock(size=0x1000)
    top.place(0x100, outer, "outer")
    outer.place(0x1F0, Timer(), "late")
    assert outer.blocks[1].timers[0].path == "outer.blocks[1].timers[0]."
    assert outer.blocks[0].timer.path == "outer.blocks[0].timer."
    assert outer.placements[0].block is not None
    assert outer.placements[0].block.path == "outer.late."
    above = RegisterBlock(size=0x2000)
    above.place(0x1000, top, "top")
    assert outer.placements[0].block.path == "top.outer.late."
    top.write(0x100 + 0x68 + 0x40, 4, 1)
    assert outer.blocks[1].timers[0].control == 1


def test_reset_values_depend_on_the_kind() -> None:
    class Kinds(RegisterBlock):
        plain = Register(0x0, reset=1)
        by_kind = Register(0x4, reset={ResetKind.POWER_ON: 2, ResetKind.FLR: 3})
        sticky = Register(0x8, reset=4, sticky=[ResetKind.FLR, ResetKind.DEVICE])
        partly = Register(
            0xC, fields=[Field("a", (7, 0), reset=5), Field("b", (15, 8), reset=6, sticky={ResetKind.FLR})]
        )
        array = Register(0x10, count=2, reset=7)
        inner = RegisterFile(Timer, 0x20, count=2)

    def values(block: Kinds) -> list[int]:
        inner = [timer.control for timer in block.inner]
        return [int(v) for v in (block.plain, block.by_kind, block.sticky, block.partly, *block.array, *inner)]

    block = Kinds(size=0x100)
    block.place(0x40, Timer(), "placed")
    assert values(block) == [1, 2, 4, 0x605, 7, 7, 0, 0]

    def spoil() -> None:
        block.write(0x0, 4, 9)
        block.write(0x4, 4, 9)
        block.write(0x8, 4, 9)
        block.write(0xC, 4, 0x909)
        for offset in (0x10, 0x14, 0x20, 0x28, 0x40):
            block.write(offset, 4, 9)
        assert block.read(0x40, 4) == 1

    for kind, expected in [
        (ResetKind.FLR, [1, 3, 9, 0x905, 7, 7, 0, 0]),
        (ResetKind.DEVICE, [1, 2, 9, 0x605, 7, 7, 0, 0]),
        (ResetKind.SOFTWARE, [1, 2, 4, 0x605, 7, 7, 0, 0]),
        (ResetKind.POWER_ON, [1, 2, 4, 0x605, 7, 7, 0, 0]),
    ]:
        spoil()
        block.reset(kind)
        assert values(block) == expected, kind
        assert block.read(0x40, 4) == 0
    spoil()
    block.reset()
    assert values(block) == [1, 2, 9, 0x605, 7, 7, 0, 0]
    assert Kinds.by_kind.reset == 2


def test_instances_share_nothing() -> None:
    one, two = Block(), Block()
    one.scratch = 1
    one.timers[0].control.enable = 1
    one.outputs[0] = 1
    assert (two.scratch, two.timers[0].control, two.outputs[0]) == (0, 0, 0)


def test_one_place_is_compiled_once_and_a_sweep_does_not_fill_our_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.pci.registers.block._TABLE_CAPACITY", 100)
    block = Block(size=1 << 20)
    block.read(0x4, 4)
    reader = block._readers[0x4 << 4 | 4]
    for offset in range(0x1000, 0x1000 + 99):
        block.read(offset, 1)
    assert block._readers[0x4 << 4 | 4] is reader
    assert len(block._readers) == 100
    block.scratch = 5
    for offset in range(0x1000, 0x2000):
        assert (block.read(offset, 1), block.read(0x4, 4)) == (0, 5)
    assert len(block._readers) <= 100


def test_stored_values_are_the_registers_themselves() -> None:
    block = Block()
    values, slot = block.stored_values, Block.layout.registers["scratch"].slot
    values[slot] = 7
    assert block.scratch == 7
    block.reset()
    block.scratch = 9
    assert values is block.stored_values
    assert values[slot] == 9

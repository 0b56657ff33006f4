"""What declarations cannot be, and the text their author sees; banks and shared bytes that can be."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vfio_user.errors import RegisterDefinitionError
from vfio_user.pci.registers import (
    RO,
    RW1S,
    SPLIT,
    WO,
    Alias,
    Field,
    Register,
    RegisterBlock,
    RegisterFile,
    ResetKind,
    on_read,
    on_write,
)


class Inner(RegisterBlock):
    first = Register(0x0)
    second = Register(0x8)


def overlap() -> None:
    class Bad(RegisterBlock):
        control = Register(0x10)
        status = Register(0x12, width=16)


def overlap_of_arrays() -> None:
    class Bad(RegisterBlock):
        tails = Register(0x10, count=4, stride=8)
        heads = Register(0x22, width=16, count=2, stride=8)


def gap_of_a_file_claimed_twice() -> None:
    class Bad(RegisterBlock):
        inner = RegisterFile(Inner, 0x10)
        between = Register(0x14)


def same_bank() -> None:
    class Bad(RegisterBlock):
        page = Register(0x0)
        one = Register(0x4, when={"page": (0, 1)})
        two = Register(0x4, when={"page": (1, 2)})


def read_only_twice() -> None:
    class Bad(RegisterBlock):
        one = Register(0x4, access=RO)
        two = Register(0x4, access=RO)


def unknown_selector() -> None:
    class Bad(RegisterBlock):
        page = Register(0x0)
        one = Register(0x4, when={"pgae": 0})


def unknown_selector_field() -> None:
    class Bad(RegisterBlock):
        lcr = Register(0x0, fields=[Field("dlab", 7)])
        one = Register(0x4, when={"lcr.dalb": 0})


def array_selector() -> None:
    class Bad(RegisterBlock):
        page = Register(0x0, count=2)
        one = Register(0x8, when={"page": 0})


def two_selectors() -> None:
    Register(0x4, when={"page": 0, "bank": 1})


def taken_name() -> None:
    class Bad(RegisterBlock):
        reset = Register(0x0)  # type: ignore[assignment]


def taken_instance_name() -> None:
    class Bad(RegisterBlock):
        unmodelled = Register(0x0)  # type: ignore[assignment]


def taken_size() -> None:
    class Bad(RegisterBlock):
        size = Register(0x0)


def private_name() -> None:
    class Bad(RegisterBlock):
        _x = Register(0x0)


def same_name() -> None:
    class Bad(RegisterBlock):
        control = Register(0x0)
        control_ = Register(0x4)


def two_names() -> None:
    class Bad(RegisterBlock):
        one = two = Register(0x0)


def too_small() -> None:
    class Bad(RegisterBlock):
        size = 0x10
        last = Register(0x10)


def bad_rule() -> None:
    class Bad(RegisterBlock):
        partial_access = SPLIT


def alias_of_a_stranger() -> None:
    class Bad(RegisterBlock):
        here = Alias(Inner.first, 0x0)


def alias_of_an_alias() -> None:
    class Bad(RegisterBlock):
        mask = Register(0x0)
        mask_set = Alias(mask, 0x4)
        mask_set_again = Alias(mask_set, 0x8)


def overlapping_fields() -> None:
    Register(0x0, fields=[Field("a", (3, 0)), Field("b", 2)])


def twin_fields() -> None:
    Register(0x0, fields=[Field("a", 0), Field("a", 2)])


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (overlap, "Bad: control [0x10, 0x14) (+2) and status [0x12, 0x14) (+3) overlap; give one another offset, "),
        (overlap, "make it an Alias, put them in different banks (when=), or make one read-only and the other WO"),
        (overlap_of_arrays, "Bad: tails[4] [0x10, 0x2c) (+2) and heads[2] [0x22, 0x2c) (+3) overlap; "),
        (gap_of_a_file_claimed_twice, "Bad: inner [0x10, 0x1c) (+2) and between [0x14, 0x18) (+3) overlap; "),
        (same_bank, "Bad: one [0x4, 0x8) (+3) and two [0x4, 0x8) (+4) overlap; "),
        (read_only_twice, "Bad: one [0x4, 0x8) (+2) and two [0x4, 0x8) (+3) overlap; "),
        (unknown_selector, "register 'one' (+3): when='pgae': no register 'pgae' here: did you mean 'page'?"),
        (unknown_selector_field, "register 'one' (+3): when='lcr.dalb': register 'lcr' (+2) has no field 'dalb': "),
        (unknown_selector_field, "has no field 'dalb': did you mean 'dlab'?"),
        (array_selector, "register 'one' (+3): when='page': 'page' is an array (+2); one register selects a bank"),
        (two_selectors, "register at 0x4 (+1): when= names 2 selectors (page, bank): one decides"),
        (taken_name, "register 'reset' (+2): 'reset' is an attribute every RegisterBlock has: write reset_ = ..., "),
        (taken_name, "the register is still called 'reset'"),
        (taken_instance_name, "register 'unmodelled' (+2): 'unmodelled' is an attribute every RegisterBlock has: "),
        (taken_size, "register 'size' (+2): 'size' is an attribute every RegisterBlock has: write size_ = ..., "),
        (taken_size, "the register is still called 'size'"),
        (private_name, "register '_x' (+2): '_x' is an attribute every RegisterBlock has: write x_ = ..., "),
        (same_name, "register 'control' (+3): called 'control' like control [0x0, 0x4) (+2)"),
        (two_names, "register 'one' (+2): also called 'two'; one register has one name, a second view of it is an A"),
        (too_small, "Bad.size = 0x10, but it declares last [0x10, 0x14) (+3): raise size, or leave it out"),
        (bad_rule, "Bad.partial_access = AccessRule.SPLIT: it can be MERGE or REJECT"),
        (alias_of_a_stranger, "alias 'here' (+2): its target 'first' is not a register of Bad"),
        (alias_of_an_alias, "alias 'mask_set_again' (+4): its target 'mask_set' is an alias itself: name 'mask'"),
        (overlapping_fields, "register at 0x0 (+1): field 'b' bits 2 (+1) overlaps field 'a' bits 3:0 (+1)"),
        (twin_fields, "register at 0x0 (+1): two fields are called 'a' (+1 and +1)"),
        (lambda: Register(0x0, width=24), "register at 0x0 (+0): width=24: a register has 8, 16, 32 or 64 bits"),
        (lambda: Register(-4), "register at -0x4 (+0): offset -0x4 lies before its block"),
        (lambda: Register(0, count=0), "register at 0x0 (+0): count=0 leaves no element"),
        (lambda: Register(0, stride=8), "register at 0x0 (+0): stride=0x8 without count="),  # type: ignore[call-overload]
        (lambda: Register(0, count=2, stride=2), "stride=0x2 is less than the 0x4 bytes of one element"),
        (lambda: Register(0, width=8, reset=256), "reset value 0x100 does not fit 8 bits"),
        (lambda: Register(0, width=8, reset={ResetKind.FLR: -1}), "reset value -0x1 does not fit 8 bits"),
        (lambda: Register(0, width=8, fields=[Field("x", 8)]), "field 'x' (+0) has bits 8 of 8"),
        (lambda: Register(0, reset=4, fields=[Field("x", (3, 2), reset=2)]),
         "reset=0x4 gives field 'x' 0x1, but the field says reset=0x2 (+0): say it once"),
        (lambda: Register(0, partial=SPLIT), "partial=SPLIT: an access to some bytes of one register is merged "),
        (lambda: Register(0, sticky=[ResetKind.POWER_ON]), "nothing is sticky over POWER_ON"),
    ],
)  # fmt: skip
def test_rejected_declarations(declare: Callable[[], object], text: str) -> None:
    with pytest.raises(RegisterDefinitionError) as caught:
        declare()
    first_line = inspect.getsourcelines(declare)[1]

    def relative(match: re.Match[str]) -> str:
        return f"+{int(match[1]) - first_line}"

    message = re.sub(re.escape(__file__) + r":(\d+)", relative, str(caught.value))
    assert text in message, message


def test_an_interleaved_pair_of_arrays_is_no_overlap() -> None:
    class Doorbells(RegisterBlock):
        tails = Register(0x1000, count=64, stride=8)
        heads = Register(0x1004, count=64, stride=8)

    block = Doorbells()
    block.write(0x1000 + 8 * 63, 4, 5)
    block.write(0x1004 + 8 * 63, 4, 6)
    assert (block.tails[63], block.heads[63]) == (5, 6)
    assert block.size == 0x1200


@example(first=(0, 1, 3, 7), second=(4, 8, 3, 0))  # the second lies over a later element of the first
@given(
    first=st.tuples(st.integers(0, 40), st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.integers(0, 12)),
    second=st.tuples(st.integers(0, 40), st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.integers(0, 12)),
)
def test_overlaps_are_found_exactly(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> None:
    def bytes_of(offset: int, size: int, count: int, extra: int) -> set[int]:
        return {offset + i * (size + extra) + b for i in range(count) for b in range(size)}

    def declare(offset: int, size: int, count: int, extra: int) -> Register[object]:
        return Register(offset, width=8 * size, count=count, stride=size + extra)

    clash = bool(bytes_of(*first) & bytes_of(*second))
    try:
        block = type("Block", (RegisterBlock,), {"a": declare(*first), "b": declare(*second)})
    except RegisterDefinitionError:
        assert clash
    else:
        assert not clash
        for name, place in (("a", first), ("b", second)):
            for byte in bytes_of(*place):
                assert [item.name for item, _ in block.layout.find(byte, 1)] == [name]  # type: ignore[attr-defined]


class Uart(RegisterBlock):
    """A 16550's shared offsets: by direction, and by DLAB."""

    rbr = Register(0, width=8, access=RO, when={"lcr.dlab": 0})
    thr = Register(0, width=8, access=WO, when={"lcr.dlab": 0})
    dll = Register(0, width=8, when={"lcr.dlab": 1})
    lcr = Register(3, width=8, fields=[Field("dlab", 7), Field("word_length", (1, 0))])


def test_a_read_only_and_a_write_only_register_share_an_offset() -> None:
    uart = Uart()
    uart.rbr = 0x55
    uart.write(0, 1, 0xAA)
    assert uart.read(0, 1) == 0x55
    assert (uart.rbr, uart.thr) == (0x55, 0xAA)


def test_hooks_of_the_register_of_the_other_direction_stay_silent() -> None:
    told: list[str] = []

    class Hooked(Uart):
        @on_read("thr")
        @on_write("rbr")
        def wrong(self) -> None:
            told.append("wrong")

        @on_write("thr")
        @on_read("rbr")
        def right(self) -> None:
            told.append("right")

    uart = Hooked()
    uart.write(0, 1, 1)
    uart.read(0, 1)
    assert told == ["right", "right"]


def test_a_bank_answers_when_it_is_selected_by_anyone() -> None:
    uart = Uart()
    uart.rbr = 0x55
    assert uart.read(0, 1) == 0x55
    uart.write(3, 1, 0x83)
    uart.write(0, 1, 0x0C)
    assert uart.read(0, 1) == 0x0C
    uart.lcr.dlab = 0
    assert uart.read(0, 1) == 0x55
    assert (uart.dll, uart.thr) == (0x0C, 0)


def test_a_bank_nobody_declared_is_unmodelled() -> None:
    class Paged(RegisterBlock):
        page = Register(0x0, width=8)
        zero = RegisterFile(Inner, 0x10, when={"page": 0})
        other = RegisterFile(Inner, 0x10, when={"page": (2, 3)})

    block = Paged()
    block.write(0x10, 4, 1)
    for page in (2, 3):
        block.write(0, 1, page)
        block.write(0x18, 4, page)
    block.write(0, 1, 1)
    block.write(0x10, 4, 9)
    assert (block.zero.first, block.other.first, block.other.second) == (1, 0, 3)
    assert [(access.offset, access.first_value) for access in block.unmodelled] == [(0x10, 9)]


def test_a_subclass_adds_replaces_and_removes_registers() -> None:
    class Base(RegisterBlock):
        a = Register(0x0, reset=1)
        b = Register(0x4, count=2)
        c = Register(0x10, reset=3)
        c_set = Alias(c, 0x14, access=RW1S)

    class Derived(Base):
        b = Register(0x4, reset=2)  # type: ignore[assignment]
        d = Register(0x20, reset=4)

    class Removed(Base):
        a = None  # type: ignore[assignment]

    base, derived, removed = Base(), Derived(), Removed()
    assert [int(v) for v in (base.a, base.c)] == [1, 3]
    assert [derived.read(at, 4) for at in (0x0, 0x4, 0x8, 0x10, 0x20)] == [1, 2, 0, 3, 4]
    assert (derived.c, derived.d, removed.c) == (3, 4, 3)
    derived.write(0x14, 4, 4)
    removed.write(0x14, 4, 8)
    assert (derived.c, removed.c, removed.c_set, base.c) == (7, 11, 11, 3)
    assert (base.size, derived.size) == (0x18, 0x24)
    assert "a" not in Removed.layout.declarations


def test_a_declared_size_is_inherited_and_checked() -> None:
    class Sized(RegisterBlock):
        size = 0x100
        a = Register(0x0)

    class More(Sized):
        b = Register(0x4)

    assert (Sized.size, More.size, More().size) == (0x100, 0x100, 0x100)
    with pytest.raises(ValueError, match="More needs 0x100 bytes, size=0x80"):
        More(size=0x80)


def test_declarations_print_what_they_are() -> None:
    assert repr(Uart.lcr) == "Register(lcr, 0x3, width=8, access=RW)"
    assert repr(RegisterFile(Inner, 0x10, count=2)) == "RegisterFile(?[2], 0x10, Inner)"
    assert repr(Uart()) == "<Uart of 0x4 bytes, 4 declarations>"


def test_an_alias_follows_the_register_a_subclass_puts_in_its_place() -> None:
    class Base(RegisterBlock):
        mask = Register(0x0, fields=[Field("old", 0)])
        mask_set = Alias(mask, 0x4, access=RW1S)

    class Derived(Base):
        mask = Register(0x0, fields=[Field("new", 1)])

    base, derived = Base(), Derived()
    base.write(0x4, 4, 3)
    derived.write(0x4, 4, 3)
    assert (str(base.mask_set), str(derived.mask_set)) == ("0x3 (old=1)", "0x3 (new=1)")
    assert Base.layout.registers["mask"] is Base.mask_set.target
    assert Derived.layout.registers["mask"] is Derived.mask_set.target


def test_banks_of_inner_and_of_placed_blocks_are_seen_from_outside() -> None:
    class Outer(RegisterBlock):
        uarts = RegisterFile(Uart, 0x0, count=2, stride=8)

    outer = Outer(size=0x100)
    placed = Uart()
    outer.place(0x80, placed, "placed")
    for uart, base in ((outer.uarts[1], 0x8), (placed, 0x80)):
        outer.write(base, 1, 0x11)
        outer.write(base + 3, 1, 0x80)
        outer.write(base, 1, 0x22)
        assert (outer.read(base, 1), uart.thr, uart.dll) == (0x22, 0x11, 0x22)
        uart.lcr.dlab = 0
        assert outer.read(base, 1) == 0
    assert outer.uarts[0].dll == 0

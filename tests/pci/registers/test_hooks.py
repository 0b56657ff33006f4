"""When hooks run, with which values, and which ones cannot be declared."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable

import pytest

from vfio_user.errors import Busy, RegisterDefinitionError
from vfio_user.pci import registers
from vfio_user.pci.registers import (
    RC,
    RO,
    RW1C,
    RW1S,
    W1P,
    WO,
    Alias,
    Field,
    Hooks,
    Register,
    RegisterBlock,
    RegisterFile,
    after_read,
    before_write,
    on_change,
    on_read,
    on_write,
)


class Mode(enum.IntEnum):
    IDLE = 0
    RUN = 1


class Channel(RegisterBlock):
    control = Register(0x0, fields=[Field("enable", 0), Field("mode", (3, 2), values=Mode), Field("go", 8, access=W1P)])
    data = Register(0x4, count=3)


class Block(RegisterBlock):
    liveness = Register(0x0)
    status = Register(0x4, access=RW1C, reset=0xFF)
    events = Register(0x8, access=RC)
    doorbell = Register(0xC, access=WO)
    outputs = Register(0x10, count=4, stride=8)
    control = Register(
        0x30, fields=[Field("enable", 0), Field("mode", (3, 2), values=Mode), Field("go", 8, access=W1P)]
    )
    control_set = Alias(control, 0x34, access=RW1S)
    channels = RegisterFile(Channel, 0x40, count=2)
    single = RegisterFile(Channel, 0x80)


class Owner:
    """Collects what its handlers are told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []


def bound(hooks: Hooks) -> tuple[Block, Owner]:
    """A block with hooks whose handlers are functions of one owner."""
    namespace = {hook.name: hook.function for hook in hooks}
    owner = type("OwnerWithHandlers", (Owner,), namespace)()
    hooks.check(Block, type(owner))
    block = Block()
    block.bind(hooks, owner)
    return block, owner


def test_on_write_comes_after_the_store_with_new_and_old() -> None:
    hooks = Hooks()
    block: Block

    @hooks.on_write("liveness")
    def invert(self: Owner, new: int) -> None:
        self.calls.append((new, int(block.liveness)))
        block.liveness = ~new & 0xFFFF_FFFF

    @hooks.on_write("status")
    def cleared(self: Owner, new: int, old: int) -> None:
        self.calls.append(("status", new, old))

    @hooks.on_write("doorbell")
    def ring(self: Owner) -> None:
        self.calls.append(("ring",))

    block, owner = bound(hooks)
    block.write(0x0, 4, 0x1234_5678)
    assert block.read(0x0, 4) == 0xEDCB_A987
    block.write(0x4, 4, 0x0F)
    block.write(0xC, 4, 1)
    block.write(0x0, 2, 0xAAAA)
    assert owner.calls == [(0x1234_5678, 0x1234_5678), ("status", 0xF0, 0xFF), ("ring",), (0xEDCB_AAAA, 0xEDCB_AAAA)]
    assert len(hooks) == 3


def test_before_write_replaces_and_refuses() -> None:
    hooks = Hooks()

    @hooks.before_write("liveness")
    def mask(self: Owner, written: int, old: int) -> int | None:
        self.calls.append((written, old))
        if written == 13:
            raise Busy("thirteen")
        return written & 0xFF if written > 0xFF else None

    @hooks.before_write("control.mode")
    def only_run(self: Owner, written: Mode) -> Mode:
        self.calls.append((written,))
        return Mode.RUN

    @hooks.on_write("liveness")
    def told(self: Owner, new: int) -> None:
        self.calls.append(("told", new))

    block, owner = bound(hooks)
    block.write(0x0, 4, 0xABCD)
    block.write(0x0, 4, 5)
    with pytest.raises(Busy):
        block.write(0x0, 4, 13)
    assert block.liveness == 5
    assert owner.calls == [(0xABCD, 0), ("told", 0xCD), (5, 0xCD), ("told", 5), (13, 5)]
    owner.calls.clear()
    block.write(0x30, 4, 0x1)
    assert block.control == 0x5
    assert owner.calls == [(Mode.IDLE,)]
    assert isinstance(owner.calls[0][0], Mode)


def test_a_store_in_before_write_is_what_the_write_finds() -> None:
    hooks = Hooks()
    block: Block

    @hooks.before_write("status")
    def late(self: Owner) -> None:
        block.status = 0xF00

    @hooks.on_write("status")
    def told(self: Owner, new: int, old: int) -> None:
        self.calls.append((new, old))

    block, owner = bound(hooks)
    block.write(0x4, 4, 0x100)
    assert owner.calls == [(0xE00, 0xF00)]


def test_decorators_of_one_handler_run_as_they_are_read() -> None:
    class Ordered(RegisterBlock):
        control = Register(0x0, fields=[Field("low", (7, 0)), Field("high", (15, 8))])

        def __init__(self) -> None:
            super().__init__()
            self.calls: list[int] = []

        @on_write("control.high")
        @on_write("control")
        @on_write("control.low")
        def note(self, new: int) -> None:
            self.calls.append(new)

    block = Ordered()
    block.write(0x0, 2, 0x0201)
    assert block.calls == [0x02, 0x0201, 0x01]


def test_on_read_may_answer_and_after_read_knows_what_was_read() -> None:
    hooks = Hooks()
    block: Block

    @hooks.on_read("events")
    def refresh(self: Owner, stored: int) -> None:
        self.calls.append(("on", stored))
        block.events = stored + 1

    @hooks.after_read("events")
    def gone(self: Owner, value: int) -> None:
        self.calls.append(("after", value, int(block.events)))

    @hooks.on_read("doorbell")
    def answer(self: Owner) -> int:
        return 0x42

    @hooks.on_read("control.mode")
    def running(self: Owner, stored: Mode) -> Mode:
        self.calls.append((stored,))
        return Mode.RUN

    block, owner = bound(hooks)
    block.events = 4
    assert block.read(0x8, 4) == 5
    assert owner.calls == [("on", 4), ("after", 5, 0)]
    assert block.read(0xC, 4) == 0x42
    assert block.read(0xD, 1) == 0
    owner.calls.clear()
    block.control.enable = 1
    assert block.read(0x30, 4) == 0x5
    assert block.control == 0x1
    assert owner.calls == [(Mode.IDLE,)]


def test_on_change_runs_only_when_bits_changed() -> None:
    hooks = Hooks()

    @hooks.on_change("control.enable")
    def switched(self: Owner, new: int, old: int) -> None:
        self.calls.append(("enable", new, old))

    @hooks.on_change("control")
    def changed(self: Owner, new: int) -> None:
        self.calls.append(("control", new))

    block, owner = bound(hooks)
    block.write(0x30, 4, 1)
    block.write(0x30, 4, 1)
    block.write(0x30, 4, 5)
    assert owner.calls == [("enable", 1, 0), ("control", 1), ("control", 5)]


def test_a_field_hook_runs_when_the_write_carries_its_bytes_and_sees_pulses() -> None:
    hooks = Hooks()

    @hooks.on_write("control.go")
    def go(self: Owner, new: int, old: int) -> None:
        self.calls.append(("go", new, old))

    @hooks.on_write("control.enable")
    def enable(self: Owner, new: int) -> None:
        self.calls.append(("enable", new))

    block, owner = bound(hooks)
    block.write(0x30, 1, 1)
    block.write(0x31, 1, 1)
    block.write(0x30, 4, 0x101)
    assert owner.calls == [("enable", 1), ("go", 1, 0), ("go", 1, 0), ("enable", 1)]
    assert block.control == 1


def test_indexes_come_first_outermost_first() -> None:
    hooks = Hooks()

    @hooks.on_write("outputs")
    def output(self: Owner, index: int, new: int, old: int) -> None:
        self.calls.append(("output", index, new, old))

    @hooks.on_write("channels.data")
    def data(self: Owner, channel: int, index: int, new: int) -> None:
        self.calls.append(("data", channel, index, new))

    @hooks.on_change("channels.control.mode")
    def mode(self: Owner, channel: int) -> None:
        self.calls.append(("mode", channel))

    @hooks.on_write("single.control")
    def single(self: Owner, new: int) -> None:
        self.calls.append(("single", new))

    @hooks.on_read("channels.data")
    def read(self: Owner, *everything: int) -> int:
        self.calls.append(("read", *everything))
        return 9

    @hooks.on_write("channels.control")
    def anything(self: Owner) -> None:
        self.calls.append(("anything",))

    block, owner = bound(hooks)
    block.write(0x20, 4, 7)
    block.write(0x58, 4, 8)
    block.write(0x50, 4, 4)
    block.write(0x80, 4, 1)
    assert block.read(0x58, 4) == 9
    assert owner.calls == [
        ("output", 2, 7, 0),
        ("data", 1, 1, 8),
        ("anything",),
        ("mode", 1),
        ("single", 1),
        ("read", 1, 1, 8),
    ]


def test_an_alias_has_raw_hooks_of_its_own_and_shares_the_others() -> None:
    hooks = Hooks()

    @hooks.before_write("control_set")
    def raw(self: Owner, written: int) -> None:
        self.calls.append(("raw", written))

    @hooks.before_write("control")
    def never(self: Owner, written: int) -> None:
        self.calls.append(("never", written))

    @hooks.on_write("control_set")
    def through(self: Owner, new: int) -> None:
        self.calls.append(("through", new))

    @hooks.on_write("control")
    def written(self: Owner, new: int, old: int) -> None:
        self.calls.append(("written", new, old))

    @hooks.on_change("control.enable")
    def changed(self: Owner, new: int) -> None:
        self.calls.append(("changed", new))

    @hooks.after_read("control")
    def seen(self: Owner, value: int) -> None:
        self.calls.append(("seen", value))

    block, owner = bound(hooks)
    block.control.mode = 1
    block.write(0x34, 4, 1)
    assert block.read(0x34, 4) == 5
    assert owner.calls == [("raw", 1), ("through", 5), ("written", 5, 4), ("changed", 1), ("seen", 5)]


class Stacked(RegisterBlock):
    first = Register(0x0, width=8)
    second = Register(0x1, width=8)
    third = Register(0x2, width=8, access=RO)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    @on_write("first")
    @on_write("second")
    def either(self) -> None:
        self.calls.append("either")

    @on_change("first")
    def late(self, new: int) -> None:
        self.calls.append(f"late {new}")

    @before_write("first")
    def early(self, written: int) -> None:
        self.calls.append(f"early {written}")

    @on_read("third")
    def answer(self) -> int:
        return 3

    @after_read("third")
    def answered(self, value: int) -> None:
        self.calls.append(f"answered {value}")


def test_hooks_in_a_blocks_body() -> None:
    block = Stacked()
    block.write(0, 2, 0x0201)
    assert block.read(2, 1) == 3
    assert block.calls == ["early 1", "either", "late 1", "either", "answered 3"]


def test_an_override_takes_the_place_of_a_handler_and_a_subclass_adds_to_it() -> None:
    class Louder(Stacked):
        def either(self) -> None:
            self.calls.append("EITHER")

        @on_write("first")
        def also(self) -> None:
            self.calls.append("also")

    block = Louder()
    block.write(0, 1, 1)
    assert block.calls == ["early 1", "EITHER", "also", "late 1"]


def test_hooks_of_a_nested_blocks_body_belong_to_each_element() -> None:
    class Outer(RegisterBlock):
        rows = RegisterFile(Stacked, 0x0, count=2, stride=4)

    outer = Outer()
    outer.write(0x4, 1, 7)
    assert outer.rows[0].calls == []
    assert outer.rows[1].calls == ["early 7", "either", "late 7"]


def test_hooks_bound_later_reach_accesses_that_were_compiled() -> None:
    class Outer(RegisterBlock):
        block = RegisterFile(Block, 0x0)

    outer = Outer()
    outer.write(0x0, 4, 1)
    outer.read(0x0, 4)
    hooks = Hooks()
    told: list[int] = []

    class Late:
        @hooks.on_write("liveness")
        def note(self, new: int) -> None:
            told.append(new)

        @hooks.on_read("liveness")
        def answer(self) -> int:
            return 77

    outer.block.bind(hooks, Late())
    outer.write(0x0, 4, 2)
    assert outer.read(0x0, 4) == 77
    assert told == [2]


def test_a_handler_that_gives_too_much_is_named() -> None:
    hooks = Hooks()

    @hooks.on_read("control.mode")
    def too_much(self: Owner) -> int:
        return 4

    @hooks.before_write("control.enable")
    def too_little(self: Owner) -> int:
        return -1

    block, _ = bound(hooks)
    with pytest.raises(
        ValueError, match=r"control: @on_read handler too_much \(.*:\d+\) gave 0x4, which does not fit 0x3"
    ):
        block.read(0x30, 4)
    with pytest.raises(ValueError, match=r"control: @before_write handler too_little \(.*\) gave -0x1, which does not"):
        block.write(0x30, 4, 1)


def test_the_bindings_of_an_override_are_those_of_its_own_signature() -> None:
    hooks = Hooks()

    class Base:
        told: tuple[int, ...] = ()

        @hooks.on_write("liveness")
        def handler(self, new: int) -> None:
            self.told = (new,)

    class Derived(Base):
        def handler(self, new: int, old: int = 5) -> None:
            self.told = (new, old)

    class Wrong(Base):
        def handler(self, new: int, old: int, older: int) -> None:  # type: ignore[override]
            raise NotImplementedError

    hooks.check(Block, Derived)
    block, owner = Block(), Derived()
    block.bind(hooks, owner)
    block.write(0x0, 4, 3)
    assert owner.told == (3, 0)
    attempts: list[Callable[[], None]] = [lambda: hooks.check(Block, Wrong), lambda: Block().bind(hooks, Wrong())]
    for attempt in attempts:
        with pytest.raises(
            RegisterDefinitionError, match=r"takes 3 arguments after self; write \(\) or \(new\) or \(new, old\)"
        ):
            attempt()


def declare(path: str, handler: Callable[..., object], kind: str) -> object:
    """Makes a subclass of Block with one hook."""
    decorate: Callable[[str], Callable[[object], object]] = getattr(registers, kind)
    namespace: dict[str, object] = {"handler": decorate(path)(handler)}
    return type("Bad", (Block,), namespace)


def _named(function: Callable[..., object]) -> Callable[..., object]:
    function.__name__ = "handler"
    return function


@pytest.mark.parametrize(
    ("path", "handler", "kind", "text"),
    [
        ("livness", lambda self: 0, "on_write", "Bad has no register 'livness': did you mean 'liveness'?"),
        ("zzz", lambda self: 0, "on_write", "Bad has no register 'zzz': there are: channels, control, c"),
        ("control.enabel", lambda self: 0, "on_write", "has no field 'enabel': did you mean 'enable'?"),
        ("control.enable.x", lambda self: 0, "on_write", "has no field 'enable.x': did you mean 'enable'?"),
        ("liveness.x", lambda self: 0, "on_write", "has no field 'x': there are none"),
        ("channels", lambda self: 0, "on_write", "'channels' is a register file: name a register in it, "),
        ("channels.dat", lambda self: 0, "on_write", "Channel has no register 'dat': did you mean 'data'?"),
        ("liveness", lambda self, a, b, c: 0, "on_write",
         "its handler takes 3 arguments after self; write () or (new) or (new, old)"),
        ("liveness", lambda self, a, b: 0, "on_read", "takes 2 arguments after self; write () or (stored)"),
        ("liveness", lambda self, a, b: 0, "after_read", "takes 2 arguments after self; write () or (value)"),
        ("channels.data", lambda self, a: 0, "on_write",
         "its handler takes 1 arguments after self; write () or (channels index, data index) or (channels index, "),
        ("channels.data", lambda self, a: 0, "on_write", "or (channels index, data index, new, old)"),
        ("liveness", lambda self, a, b, c, d=1: 0, "on_write", "its handler takes 3 to 4 arguments after self; "),
        ("liveness", lambda self, *, flag: 0, "on_write", "needs the keyword argument 'flag', which nobody"),
        ("control_set", lambda self: 0, "on_change", "'control_set' is an alias ("),
        ("control_set", lambda self: 0, "after_read", "hook the register it shows, 'control'"),
    ],
)  # fmt: skip
def test_rejected_hooks(path: str, handler: Callable[..., object], kind: str, text: str) -> None:
    with pytest.raises(RegisterDefinitionError) as caught:
        declare(path, _named(handler), kind)
    message = str(caught.value)
    assert re.match(rf"@{kind}\('{path}'\) on handler \(.*test_hooks.py:\d+\): ", message)
    assert text in message


def test_a_collected_hook_is_named_by_the_line_it_stands_in() -> None:
    hooks = Hooks()

    def attempt() -> None:
        @hooks.on_write("livness")
        def handler(self: object) -> None: ...

        hooks.check(Block)

    with pytest.raises(RegisterDefinitionError, match="did you mean 'liveness'") as caught:
        attempt()
    line = inspect.getsourcelines(attempt)[1] + 1
    assert f"test_hooks.py:{line})" in str(caught.value)


def test_a_handler_is_a_method() -> None:
    hooks = Hooks()

    class Device:
        @staticmethod
        @hooks.on_write("liveness")
        def handler(new: int) -> None: ...

    with pytest.raises(RegisterDefinitionError, match="its handler is a static or class method"):
        hooks.check(Block, Device)


def test_a_callable_without_a_signature_is_given_the_value() -> None:
    hooks = Hooks()

    class Device:
        @hooks.on_read("liveness")
        def answer(self, *, unused: int = 0, **others: int) -> int:
            return unused

    device = Device()
    setattr(device, "answer", bool)  # noqa: B010 - a type: no signature to be had from it
    block = Block()
    block.bind(hooks, device)
    block.liveness = 7
    assert block.read(0x0, 4) == 1


def test_something_else_of_that_name_in_the_owner_is_left_to_bind() -> None:
    hooks = Hooks()

    class Device:
        @hooks.on_write("liveness")
        def handler(self, new: int) -> None: ...

    class Derived(Device):
        handler = property(lambda self: lambda new: None)

    hooks.check(Block, Derived)
    Block().bind(hooks, Derived())

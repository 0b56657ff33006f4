from __future__ import annotations

import pytest

from vfio_user.errors import DefinitionError, RegisterDefinitionError
from vfio_user.pci.bars import IoBar, MemoryBar
from vfio_user.pci.function import PciAttributes, build_function
from vfio_user.pci.registers import WO, Field, Register, RegisterBlock, RegisterFile, on_write


class Queue(RegisterBlock):
    base = Register(0x00, width=64)
    kick = Register(0x08, width=16, access=WO)


class Registers(RegisterBlock):
    control = Register(0x00, fields=[Field("enable", 0)])
    kick = Register(0x10, access=WO)
    notify = Register(0x14, width=16, access=WO)
    tails = Register(0x20, access=WO, count=3, stride=8)
    queues = RegisterFile(Queue, 0x80, count=2, stride=0x20)
    bank = Register(0x70, when={"control.enable": 1})


class Base(PciAttributes):
    vendor_id, device_id, class_code = 0x1234, 0x11E8, 0x00FF00

    def __init__(self) -> None:
        self.rung: list[object] = []


class Card(Base):
    bar0 = MemoryBar(4096, registers=Registers)

    @bar0.doorbell("kick")
    def kicked(self) -> None:
        self.rung.append("kick")

    @bar0.doorbell("notify", value=1)
    def sent(self) -> None:
        self.rung.append("sent")

    @bar0.doorbell("notify", value=2)
    def received(self) -> None:
        self.rung.append("received")

    @bar0.doorbell("tails")
    def moved(self, index: int) -> None:
        self.rung.append(("tail", index))

    @bar0.doorbell("queues.kick")
    def any_queue(self) -> None:
        self.rung.append("queue")


def test_a_client_may_ring_each_of_them() -> None:
    region = build_function(Card()).regions[0]
    assert [bell[:3] for bell in region.ioeventfds] == [
        (0x10, 4, None),
        (0x14, 2, 1),
        (0x14, 2, 2),
        (0x20, 4, None),
        (0x28, 4, None),
        (0x30, 4, None),
        (0x88, 2, None),
        (0xA8, 2, None),
    ]
    assert not any(bell.is_io for bell in region.ioeventfds)


def test_by_message_and_by_eventfd_the_same_method_is_called() -> None:
    card = Card()
    region = build_function(card).regions[0]
    for bell in region.ioeventfds:
        bell.ring()
    by_eventfd, card.rung = card.rung, []
    for bell in region.ioeventfds:
        region.write(bell.offset, bell.size, 0x5555 if bell.value is None else bell.value)
    assert card.rung == by_eventfd
    assert by_eventfd == ["kick", "sent", "received", *(("tail", n) for n in range(3)), "queue", "queue"]


def test_another_value_is_an_ordinary_write() -> None:
    card = Card()
    region = build_function(card).regions[0]
    region.write(0x14, 2, 3)
    assert card.rung == []
    assert card.bar0.notify == 3


def test_other_hooks_hear_the_values_that_do_not_ring() -> None:
    class Listening(Card):
        @Card.bar0.on_write("notify")
        def heard(self, value: int) -> None:
            self.rung.append(value)

    card = Listening()
    build_function(card).regions[0].write(0x14, 2, 9)
    assert card.rung == [9]


def test_subclasses_override_and_drop() -> None:
    class Other(Card):
        moved = None  # type: ignore[assignment]

        def kicked(self) -> None:
            self.rung.append("overridden")

    card = Other()
    region = build_function(card).regions[0]
    assert [bell.offset for bell in region.ioeventfds] == [0x10, 0x14, 0x14, 0x88, 0xA8]
    region.ioeventfds[0].ring()
    region.write(0x10, 4, 1)
    region.write(0x20, 4, 1)
    assert card.rung == ["overridden", "overridden"]


def test_values_are_compared_as_the_wire_has_them() -> None:
    class Big(RegisterBlock):
        byteorder = "big"
        kick = Register(0x00, access=WO)

    class BigCard(Base):
        bar0 = MemoryBar(16, registers=Big)

        @bar0.doorbell("kick", value=0x1122)
        def kicked(self) -> None:
            self.rung.append("kick")

    card = BigCard()
    region = build_function(card).regions[0]
    assert region.ioeventfds[0].value == 0x2211_0000
    region.write(0, 4, 0x2211_0000)
    assert card.rung == ["kick"]


def test_io_bars_have_doorbells() -> None:
    class Ports(Base):
        bar1 = IoBar(64, registers=Queue)

        @bar1.doorbell("kick")
        def kicked(self) -> None: ...

    assert [bell[:3] + bell[4:] for bell in build_function(Ports()).regions[1].ioeventfds] == [
        (8, 2, None, True, False)
    ]


# What cannot be.


def declare(path: str, value: int | None = None, **members: object) -> type[Base]:
    """A device with one doorbell, and what else is said."""
    bar = MemoryBar(4096, registers=Registers)

    @bar.doorbell(path, value=value)
    def kicked(self: Base) -> None: ...

    return type("Wrong", (Base,), {"bar0": bar, "kicked": kicked, **members})


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("kik", None, r"@doorbell\('kik'\) on kicked \(.*\): Registers has no register 'kik': did you mean 'kick'"),
        ("control.enable", None, r"a client rings with whole registers: name 'control' \("),
        ("queues", None, r"'queues' is a register file"),
        ("bank", None, r"'bank' \(.*\) is in a bank"),
        ("notify", 0x10000, r"@doorbell\('notify', value=0x10000\).*'notify' \(.*\) has 2 bytes: no write has it"),
        ("notify", -1, r"has 2 bytes: no write has it"),
    ],
)
def test_registers_that_cannot_be_rung(path: str, value: int | None, match: str) -> None:
    with pytest.raises(RegisterDefinitionError, match=match):
        declare(path, value)


@pytest.mark.parametrize("second", [None, 5])
@pytest.mark.parametrize("first", [None, 5])
def test_one_write_rings_one_doorbell(first: int | None, second: int | None) -> None:
    with pytest.raises(RegisterDefinitionError, match=r"the same writes ring one \("):

        class Wrong(Base):
            bar0 = MemoryBar(4096, registers=Registers)

            @bar0.doorbell("notify", value=first)
            def one(self) -> None: ...

            @bar0.doorbell("notify", value=second)
            def two(self) -> None: ...


def test_a_handler_gets_no_value() -> None:
    with pytest.raises(RegisterDefinitionError, match=r"called with \(self\) and no value"):

        class Wrong(Base):
            bar0 = MemoryBar(4096, registers=Registers)

            @bar0.doorbell("kick")
            def kicked(self, value: int) -> None: ...

    with pytest.raises(RegisterDefinitionError, match=r"called with \(self, tails index\) and no value"):

        class Wrong2(Base):
            bar0 = MemoryBar(4096, registers=Registers)

            @bar0.doorbell("tails")
            def kicked(self, index: int, value: int) -> None: ...


@pytest.mark.parametrize("kind", ["on_write", "before_write", "on_change"])
def test_nobody_else_waits_for_values_that_are_not_sent(kind: str) -> None:
    with pytest.raises(RegisterDefinitionError, match=r"heard \(.*\) waits for the values written there"):

        class Wrong(Base):
            bar0 = MemoryBar(4096, registers=Registers)

            @bar0.doorbell("kick")
            def kicked(self) -> None: ...

            @getattr(bar0, kind)("kick")  # type: ignore[untyped-decorator]
            def heard(self, value: int) -> None: ...


def test_nor_does_the_block_itself() -> None:
    class Hooked(RegisterBlock):
        kick = Register(0x00)

        @on_write("kick")
        def heard(self, value: int) -> None: ...

    with pytest.raises(RegisterDefinitionError, match=r"heard .* waits for the values"):

        class Wrong(Base):
            bar0 = MemoryBar(4096, registers=Hooked)

            @bar0.doorbell("kick")
            def kicked(self) -> None: ...


def test_readers_of_a_doorbell_may_listen() -> None:
    class Right(Base):
        bar0 = MemoryBar(4096, registers=Registers)

        @bar0.doorbell("kick")
        def kicked(self) -> None: ...

        @bar0.on_read("kick")
        def depth(self) -> int:
            return 5

    assert build_function(Right()).regions[0].ioeventfds


def test_a_bar_without_registers_has_none_to_ring() -> None:
    with pytest.raises(RegisterDefinitionError, match=r"bar0 \(.*\) has no registers: declare it with registers="):

        class Wrong(Base):
            bar0 = MemoryBar(4096)

            @bar0.doorbell("kick")
            def kicked(self) -> None: ...


def test_a_dropped_bar_has_no_doorbells() -> None:
    with pytest.raises(DefinitionError, match=r"Wrong has no bar0: drop it too, kicked = None"):

        class Wrong(Card):
            bar0 = None  # type: ignore[assignment]


def test_with_a_shadow_the_value_comes_along() -> None:
    class Shadowed(Base):
        bar0 = MemoryBar(4096, registers=Queue)

        @bar0.doorbell("kick", shadow=True)
        def kicked(self, value: int) -> None:
            self.rung.append(value)

    card = Shadowed()
    region = build_function(card).regions[0]
    (bell,) = region.ioeventfds
    assert bell.shadow
    region.write(bell.offset, bell.size, 5)
    bell.ring(6)
    assert card.rung == [5, 6]


def test_a_shadow_of_an_array() -> None:
    class Files(RegisterBlock):
        tail = Register(0x00, count=2)

    class Shadowed(Base):
        bar0 = MemoryBar(16, registers=Files)

        @bar0.doorbell("tail", shadow=True)
        def moved(self, index: int, value: int) -> None:
            self.rung.append((index, value))

        @bar0.on_write("tail")
        def heard(self, index: int, value: int) -> None:
            self.rung.append(("heard", index, value))

    card = Shadowed()
    region = build_function(card).regions[0]
    region.ioeventfds[1].ring(7)
    region.write(0, 4, 8)
    assert sorted(card.rung, key=str) == sorted([(1, 7), ("heard", 1, 7), (0, 8), ("heard", 0, 8)], key=str)
    assert [int(tail) for tail in card.bar0.tail] == [8, 7]


def test_a_shadow_with_one_value_cannot_be() -> None:
    with pytest.raises(RegisterDefinitionError, match="with shadow= it is called with every value"):

        class Both(Base):
            bar0 = MemoryBar(4096, registers=Queue)

            @bar0.doorbell("kick", shadow=True, value=3)
            def kicked(self, value: int) -> None: ...


def test_a_shadow_whose_handler_takes_no_value_cannot_be() -> None:
    with pytest.raises(RegisterDefinitionError, match=r"its handler is called with \(self, value\)"):

        class NoValue(Base):
            bar0 = MemoryBar(4096, registers=Queue)

            @bar0.doorbell("kick", shadow=True)
            def kicked(self) -> None: ...

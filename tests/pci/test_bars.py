from __future__ import annotations

from typing import Any, assert_type

import pytest

from vfio_user.errors import DefinitionError, RegisterDefinitionError, StateError
from vfio_user.pci.bars import IoBar, MemoryBar
from vfio_user.pci.function import PciAttributes, PciFunction, build_function
from vfio_user.pci.registers import RO, Field, Register, RegisterBlock
from vfio_user.regions import CallbackRegion, MemoryRegion

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30


class Registers(RegisterBlock):
    identification = Register(0x00, access=RO, reset=0x0100_00ED)
    liveness = Register(0x04)
    status = Register(0x20, fields=[Field("computing", 0, access=RO), Field("raise_irq", 7)])


class Base(PciAttributes):
    vendor_id, device_id, class_code = 0x1234, 0x11E8, 0x00FF00


def function(device_class: type[Base]) -> PciFunction:
    return build_function(device_class())


class Edu(Base):
    bar0 = MemoryBar(1 * MiB, registers=Registers)
    bar2 = MemoryBar(4 * KiB)
    bar4 = IoBar(32, region=lambda device: CallbackRegion(20, read=lambda offset, size: offset))

    def __init__(self) -> None:
        self.written: list[int] = []
        self.irqs: list[tuple[int, int]] = []

    @bar0.on_write("liveness")
    def invert(self, value: int) -> None:
        self.written.append(value)
        self.bar0.liveness = ~value & 0xFFFF_FFFF

    @bar0.on_change("status.raise_irq")
    def interrupt(self, new: int, old: int) -> None:
        self.irqs.append((old, new))


def test_class_access_gives_the_declaration_and_instance_access_the_region() -> None:
    device = Edu()
    built = build_function(device)
    assert_type(Edu.bar0, MemoryBar[Registers])
    assert_type(device.bar0, Registers)
    assert_type(device.bar2, MemoryRegion)
    assert_type(device.bar4, CallbackRegion)
    assert isinstance(Edu.bar0, MemoryBar)
    assert isinstance(device.bar0, Registers)
    assert device.bar0 is built.regions[0]
    assert device.bar2.size == built.regions[2].size == 4096
    assert build_function(Edu()).regions[0] is not device.bar0


def test_bar_of_an_unbuilt_device_says_so() -> None:
    with pytest.raises(StateError, match=r"bar0 is not built yet in this Edu: call super\(\).__init__\(\)"):
        _ = Edu().bar0


def test_region_is_as_large_as_its_bar() -> None:
    regions = function(Edu).regions
    assert {index: region.size for index, region in regions.items()} == {0: MiB, 2: 4096, 4: 32}
    assert regions[4].read(16, 4) == 16
    assert regions[4].read(20, 4) == 0  # nobody claims it
    assert regions[0].read(0x8_0000, 4) == 0
    assert regions[0].read(0, 4) == 0x0100_00ED


def test_hooks_run_on_client_writes_with_the_device_as_self() -> None:
    device = Edu()
    regions = build_function(device).regions
    regions[0].write(4, 4, 0x1234_5678)
    assert device.written == [0x1234_5678]
    assert regions[0].read(4, 4) == 0xEDCB_A987
    regions[0].write(0x20, 4, 0x80)
    regions[0].write(0x20, 4, 0x80)
    assert device.irqs == [(0, 1)]


def test_hooks_of_every_kind() -> None:
    seen: list[Any] = []

    class Card(Base):
        bar0 = MemoryBar(4096, registers=Registers)

        @bar0.before_write("liveness")
        def first(self, value: int) -> int:
            seen.append(("before", value))
            return value + 1

        @bar0.on_read("liveness")
        def give(self, stored: int) -> int:
            seen.append(("read", stored))
            return 7

        @bar0.after_read("liveness")
        def after(self, value: int) -> None:
            seen.append(("after", value))

    region = function(Card).regions[0]
    region.write(4, 4, 1)
    assert region.read(4, 4) == 7
    assert seen == [("before", 1), ("read", 2), ("after", 7)]


def test_subclass_overrides_a_handler() -> None:
    class Quiet(Edu):
        def invert(self, value: int) -> None:
            self.written.append(-value)

    device = Quiet()
    build_function(device).regions[0].write(4, 4, 5)
    assert device.written == [-5]
    assert device.bar0.liveness == 5


def test_subclass_adds_hooks_without_changing_its_base() -> None:
    class Loud(Edu):
        @Edu.bar0.on_write("liveness")
        def shout(self, value: int) -> None:
            self.written.append(value * 10)

    loud, plain = Loud(), Edu()
    build_function(loud).regions[0].write(4, 4, 5)
    build_function(plain).regions[0].write(4, 4, 5)
    assert loud.written == [5, 50]
    assert plain.written == [5]


def test_subclass_drops_a_hook_and_a_bar() -> None:
    class Less(Edu):
        invert = None  # type: ignore[assignment]
        bar2 = None  # type: ignore[assignment]

    device = Less()
    regions = build_function(device).regions
    regions[0].write(4, 4, 5)
    assert device.written == []
    assert set(regions) == {0, 4}


def test_subclass_replaces_a_bar_and_keeps_its_hooks() -> None:
    class MoreRegisters(Registers):
        factorial = Register(0x08)

    class More(Edu):
        bar0 = MemoryBar(2 * MiB, registers=MoreRegisters)

    device = More()
    regions = build_function(device).regions
    assert regions[0].size == 2 * MiB
    regions[0].write(4, 4, 5)
    assert device.written == [5]


def test_replaced_bar_without_the_hooked_register_is_refused() -> None:
    class Other(RegisterBlock):
        alive = Register(0)

    with pytest.raises(RegisterDefinitionError, match=r"on_write\('liveness'\) on invert \(.*test_bars.py:\d+\)"):

        class Broken(Edu):
            bar0 = MemoryBar(1 * MiB, registers=Other)  # type: ignore[assignment]


def test_dropped_bar_with_hooks_is_refused() -> None:
    with pytest.raises(RegisterDefinitionError, match="Broken has no bar0: drop the hook too, invert = None"):

        class Broken(Edu):
            bar0 = None  # type: ignore[assignment]


def test_hook_on_a_bar_without_registers_is_refused() -> None:
    with pytest.raises(RegisterDefinitionError, match=r"bar0 \(.*\) has no registers to hook"):

        class Broken(Base):
            bar0 = MemoryBar(4096)

            @bar0.on_write("x")
            def handler(self) -> None: ...


def test_misspelt_register_is_refused_at_its_line() -> None:
    with pytest.raises(
        RegisterDefinitionError, match=r"test_bars.py:\d+\): Registers has no register 'livness'.*liveness"
    ):

        class Broken(Base):
            bar0 = MemoryBar(4096, registers=Registers)

            @bar0.on_write("livness")
            def handler(self) -> None: ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MemoryBar(5000), r"size=0x1388 \(5000\).*write size=0x2000"),
        (lambda: MemoryBar(8), "at least 16 bytes: write size=0x10"),
        (lambda: MemoryBar(0), "write size=0x10"),
        (lambda: MemoryBar(-4096), "write size=0x10"),
        (lambda: IoBar(2), "at least 4 bytes: write size=0x4"),
        (lambda: IoBar(128 * KiB), "write size=0x10000"),
        (lambda: MemoryBar(4 * GiB), "32 bits describe 0x80000000 bytes at most: write width=64"),
        (lambda: MemoryBar(1 << 64, width=64), "write size=0x8000000000000000"),
        (lambda: MemoryBar(4096, width=48), "width=48; a base address has 32 or 64 bits"),
        (lambda: MemoryBar(16, registers=Registers), "0x24 bytes of registers, more than size=0x10; write size=0x40"),
        (lambda: MemoryBar(16, registers=Registers, region=Registers), "give one"),  # type: ignore[call-overload]
    ],
)
def test_impossible_bars_are_refused_with_a_way_out(make: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message) as caught:
        make()
    assert "test_bars.py:" in str(caught.value)


def test_greatest_sizes_are_taken() -> None:
    assert MemoryBar(2 * GiB).mask == 0x8000_0000
    assert MemoryBar(256 * GiB, width=64).mask == 0xFFFF_FFC0_0000_0000
    assert MemoryBar(16).mask == 0xFFFF_FFF0
    assert IoBar(4).mask == 0xFFFF_FFFC


def test_names_give_indexes() -> None:
    with pytest.raises(DefinitionError, match=r"Broken\.registers .* its name says its index, bar0 to bar5"):

        class Broken(Base):
            registers = MemoryBar(4096)

    with pytest.raises(DefinitionError, match="bar6"):

        class AlsoBroken(Base):
            bar6 = MemoryBar(4096)


def test_64_bit_bar_takes_two_indexes() -> None:
    with pytest.raises(DefinitionError, match=r"bar1 \(.*\) is the upper half of bar0 \(.*\).*call it bar2"):

        class Broken(Base):
            bar0 = MemoryBar(4096, width=64)
            bar1 = MemoryBar(4096)

    with pytest.raises(DefinitionError, match="5 is the last"):

        class AlsoBroken(Base):
            bar5 = MemoryBar(4096, width=64)


def test_one_declaration_has_one_name() -> None:
    with pytest.raises(DefinitionError, match=r"Broken\.bar2 and \.bar0 are one declaration"):

        class Broken(Base):
            bar0 = bar2 = MemoryBar(4096)


def test_factories_are_checked() -> None:
    class TooLarge(Base):
        bar0 = MemoryBar(4096, region=lambda device: MemoryRegion(8192))

    with pytest.raises(DefinitionError, match="made 0x2000 bytes for a BAR of 0x1000"):
        function(TooLarge)

    class NoRegion(Base):
        bar0 = MemoryBar(4096, region=lambda device: bytearray(4096))  # type: ignore[type-var]

    with pytest.raises(DefinitionError, match="which is no Region"):
        function(NoRegion)


def test_factory_is_given_its_device() -> None:
    given: list[object] = []

    def make(device: object) -> MemoryRegion:
        given.append(device)
        return MemoryRegion(16)

    class Card(Base):
        bar0 = MemoryBar(16, region=make)

    card = Card()
    build_function(card)
    assert given == [card]


def test_one_handler_serves_two_bars() -> None:
    seen: list[int] = []

    class Card(Base):
        bar0 = MemoryBar(4096, registers=Registers)
        bar1 = MemoryBar(4096, registers=Registers)

        @bar0.on_write("liveness")
        @bar1.on_write("liveness")
        def handler(self, value: int) -> None:
            seen.append(value)

    regions = function(Card).regions
    regions[0].write(4, 4, 10)
    regions[1].write(4, 4, 11)
    assert seen == [10, 11]


def test_decorators_of_one_handler_run_in_the_order_they_are_read() -> None:
    seen: list[int] = []

    class Card(Base):
        bar0 = MemoryBar(4096, registers=Registers)

        @bar0.on_write("status")
        @bar0.on_write("status.raise_irq")
        def handler(self, value: int) -> None:
            seen.append(value)

    function(Card).regions[0].write(0x20, 4, 0x80)
    assert seen == [0x80, 1]

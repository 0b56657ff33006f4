from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pci.walker import Found, SizedBar, capabilities, extended_capabilities, size_bars
from vfio_user.errors import DefinitionError, StateError
from vfio_user.pci import (
    RO,
    ClasslessWarning,
    ExtendedCapability,
    FunctionEvents,
    IoBar,
    MemoryBar,
    Msi,
    MsiX,
    OptionRom,
    PciAttributes,
    PciExpress,
    PciFunction,
    PowerManagement,
    PowerState,
    Register,
    RegisterBlock,
    ResetKind,
    build_function,
    build_option_rom,
)
from vfio_user.regions import MemoryRegion


class Registers(RegisterBlock):
    control = Register(0x00)
    status = Register(0x04, access=RO, reset=0x55)


class Minimal(PciAttributes):
    vendor_id, device_id, class_code = 0x1234, 0x11E8, 0x00FF00


class Serial(ExtendedCapability):
    cap_id = 0x03
    low = Register(0x04, access=RO, reset=0x89ABCDEF)
    high = Register(0x08, access=RO, reset=0x01234567)


class Card(PciAttributes):
    """One of everything."""

    vendor_id, device_id = 0x1AF4, 0x1110
    subsystem_vendor_id, subsystem_id = 0x1AF4, 0x1100
    class_code, revision = 0x010802, 0x05
    interrupt_pin = 2
    min_gnt, max_lat = 3, 4
    rom = build_option_rom(vendor_id=0x1AF4, device_id=0x1110, class_code=0x010802)

    pm = PowerManagement(no_soft_reset=False)
    msi = Msi(vectors=4, per_vector_masking=True)
    msix = MsiX(vectors=20, bar=0)
    express = PciExpress()
    serial = Serial()

    bar0 = MemoryBar(16 << 10, registers=Registers)
    bar1 = IoBar(32)
    bar2 = MemoryBar(8 << 30, width=64, prefetchable=True, region=lambda device: MemoryRegion(64))
    bar4 = MemoryBar(64 << 10, width=64)


# -- what software finds --------------------------------------------------------------------------------------------


def test_minimal_function_is_exactly_this() -> None:
    config = build_function(Minimal()).config
    assert config.size == 256
    assert config.read_bytes(0, 64).hex(" ", 4) == (
        "3412e811 00000000 0000ff00 00000000 "  # ids; command, status; revision, class; cache line, header type
        "00000000 00000000 00000000 00000000 "  # BARs
        "00000000 00000000 00000000 00000000 "  # BARs, CardBus, subsystem
        "00000000 00000000 00000000 00010000"  # ROM, capabilities; line, pin
    )
    assert config.read_bytes(64, 192) == bytes(192)


def test_header_shows_the_class_attributes() -> None:
    config = build_function(Card()).config
    assert config.size == 4096
    assert config.read_bytes(0, 64).hex(" ", 4) == (
        "f41a1011 00001000 05020801 00000000 "
        "00000000 01000000 0c000000 00000000 "
        "04000000 00000000 00000000 f41a0011 "
        "00000000 40000000 00000000 00020304"
    )


def test_chains_are_linked_in_order_of_declaration() -> None:
    function = build_function(Card())
    config = function.config.read_bytes(0, 4096)
    assert capabilities(config) == [Found(0x01, 0x40), Found(0x05, 0x48), Found(0x11, 0x60), Found(0x10, 0x6C)]
    assert extended_capabilities(config) == [Found(0x03, 0x100, 1)]
    assert config[0x104:0x10C].hex() == "efcdab8967452301"
    assert {name: item.offset for name, item in function.capabilities.items()} == {
        "pm": 0x40,
        "msi": 0x48,
        "msix": 0x60,
        "express": 0x6C,
        "serial": 0x100,
    }


def test_express_function_without_extended_capabilities_has_an_empty_header() -> None:
    class Plain(Minimal):
        express = PciExpress()

    config = build_function(Plain()).config.read_bytes(0, 4096)
    assert config[0x100:0x104] == bytes(4)
    assert extended_capabilities(config) == []


def test_explicit_offsets_and_automatic_ones_go_together() -> None:
    class Mixed(Minimal):
        express = PciExpress(at=0x80)
        pm = PowerManagement()
        msi = Msi(at=0x44)
        msix = MsiX(vectors=1)

    config = build_function(Mixed()).config.read_bytes(0, 4096)
    assert capabilities(config) == [Found(0x10, 0x80), Found(0x01, 0x54), Found(0x05, 0x44), Found(0x11, 0x5C)]


def test_extended_chain_begins_at_0x100_wherever_its_capabilities_are() -> None:
    class Far(Minimal):
        express = PciExpress()
        serial = Serial(at=0x140)

    assert extended_capabilities(build_function(Far()).config.read_bytes(0, 4096)) == [
        Found(0x00, 0x100, 0),
        Found(0x03, 0x140, 1),
    ]

    class Other(Serial):
        cap_id = 0x0B

    class Swapped(Minimal):
        express = PciExpress()
        far = Other(at=0x120)
        first = Serial(at=0x100)

    assert extended_capabilities(build_function(Swapped()).config.read_bytes(0, 4096)) == [
        Found(0x03, 0x100, 1),
        Found(0x0B, 0x120, 1),
    ]


def test_two_devices_of_a_class_share_nothing() -> None:
    one, two = Card(), Card()
    first, second = build_function(one), build_function(two)
    first.config.write(0x04, 2, 7)
    first.config.write(0x42 + 2, 2, 3)
    first.regions[0].write(0, 4, 5)
    assert second.config.read(0x04, 2) == 0
    assert two.pm.state is PowerState.D0
    assert one.pm.state is PowerState.D3HOT
    assert two.bar0.control == 0
    assert Card.pm.control == 0


# -- sizing -----------------------------------------------------------------------------------------------------------


def test_bars_size_as_software_does_it() -> None:
    config = build_function(Card()).config
    assert size_bars(config.read, config.write) == [
        SizedBar(0, "memory32", 16 << 10, False),
        SizedBar(1, "io", 32, False),
        SizedBar(2, "memory64", 8 << 30, True),
        SizedBar(4, "memory64", 64 << 10, False),
    ]


def test_addresses_are_kept_and_low_bits_are_not() -> None:
    function = build_function(Card())
    config = function.config
    config.write(0x10, 4, 0xFEBF_3FFF)
    config.write(0x14, 4, 0x0000_C0FF)
    config.write(0x18, 8, 0x0000_0012_8000_0000)
    assert config.read(0x10, 4) == 0xFEBF_0000
    assert config.read(0x14, 4) == 0x0000_C0E1
    assert config.read(0x18, 8) == 0x0000_0012_0000_000C
    assert [function.bar_address(index) for index in (0, 1, 2, 4)] == [0xFEBF_0000, 0xC0E0, 0x12_0000_0000, 0]
    with pytest.raises(KeyError):
        function.bar_address(3)


def test_bar_written_byte_by_byte() -> None:
    config = build_function(Card()).config
    for offset in range(4):
        config.write(0x10 + offset, 1, 0xFF)
    assert config.read(0x10, 4) == 0xFFFF_C000
    assert config.read(0x11, 1) == 0xC0


@given(
    bits=st.integers(4, 40),
    prefetchable=st.booleans(),
    width=st.sampled_from([32, 64]),
    index=st.integers(0, 5),
)
def test_any_bar_decodes_as_its_size(bits: int, prefetchable: bool, width: int, index: int) -> None:
    if (width == 32 and bits > 31) or (width == 64 and index == 5):
        return
    bar = MemoryBar(1 << bits, width=width, prefetchable=prefetchable, region=lambda device: MemoryRegion(4))
    config = build_function(type("Any", (Minimal,), {f"bar{index}": bar})()).config
    assert size_bars(config.read, config.write) == [SizedBar(index, f"memory{width}", 1 << bits, prefetchable)]


def test_rom_register_reads_zero_without_a_rom() -> None:
    config = build_function(Minimal()).config
    config.write(0x30, 4, 0xFFFF_F800)  # QEMU's probe
    assert config.read(0x30, 4) == 0
    config.write(0x30, 4, 0xFFFF_FFFF)
    assert config.read(0x30, 4) == 0


def test_rom_register_with_a_rom() -> None:
    function = build_function(Card())
    function.config.write(0x30, 4, 0xFFFF_F800)
    assert function.config.read(0x30, 4) == 0xFFFF_F800
    before = function.rom_enabled
    function.config.write(0x30, 4, 0xFFFF_FFFF)
    assert function.config.read(0x30, 4) == 0xFFFF_F801
    assert (before, function.rom_enabled) == (False, True)
    assert function.rom is not None
    assert function.rom.read(0, 2) == 0xAA55


def test_rom_from_a_file_and_a_ready_one(tmp_path: Path) -> None:
    path = tmp_path / "rom"
    path.write_bytes(build_option_rom(vendor_id=1, device_id=2, code=bytes(5000)))

    class FromFile(Minimal):
        rom = path

    class Ready(Minimal):
        rom = OptionRom(bytes(8192), check=False)

    assert build_function(FromFile()).rom is not None
    config = build_function(FromFile()).config
    config.write(0x30, 4, 0xFFFF_F800)
    assert config.read(0x30, 4) == 0xFFFF_E000
    assert build_function(Ready()).rom is Ready.rom


def test_broken_rom_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(DefinitionError, match="begins with 55 aa"):

        class Broken(Minimal):
            rom = b"no rom"


# -- header registers -----------------------------------------------------------------------------------------------


def test_command_register_keeps_what_an_endpoint_has() -> None:
    config = build_function(Card()).config
    config.write(0x04, 2, 0xFFFF)
    assert config.read(0x04, 2) == 0x0547
    config.write(0x04, 2, 0)
    assert config.read(0x04, 2) == 0


def test_status_errors_are_cleared_by_ones_alone() -> None:
    function = build_function(Card())
    function.header.status.detected_parity_error = 1
    function.header.status.received_master_abort = 1
    assert function.config.read(0x06, 2) == 0xA010
    function.config.write(0x04, 4, 0)  # a wide write of zeros clears nothing
    assert function.config.read(0x06, 2) == 0xA010
    function.config.write(0x04, 2, 0xFFFF)  # nor does a write next to it
    assert function.config.read(0x06, 2) == 0xA010
    function.config.write(0x07, 1, 0x80)
    assert function.config.read(0x06, 2) == 0x2010
    function.config.write(0x06, 2, 0xFFFF)
    assert function.config.read(0x06, 2) == 0x0010


def test_interrupt_status_follows_the_level() -> None:
    function = build_function(Card())
    function.set_interrupt_status(True)
    assert function.config.read(0x06, 2) == 0x0018
    function.config.write(0x06, 2, 0xFFFF)
    assert function.config.read(0x06, 2) == 0x0018
    function.set_interrupt_status(False)
    assert function.config.read(0x06, 2) == 0x0010


def test_scratch_registers() -> None:
    config = build_function(Minimal()).config
    config.write(0x0C, 4, 0xFFFF_FFFF)
    config.write(0x3C, 4, 0xFFFF_FFFF)
    assert config.read(0x0C, 4) == 0x0000_FFFF
    assert config.read(0x3C, 4) == 0x0000_01FF
    express = build_function(Card()).config
    express.write(0x0C, 4, 0xFFFF_FFFF)
    assert express.read(0x0C, 4) == 0x0000_00FF  # no latency timer on PCI Express


def test_multifunction_bit() -> None:
    class Multi(Minimal):
        multifunction = True

    assert build_function(Multi()).config.read(0x0E, 1) == 0x80


# -- the property -----------------------------------------------------------------------------------------------------

_ACCESSES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 0x110), st.integers(0, 4095)), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(accesses=_ACCESSES)
def test_no_write_fails_and_what_is_read_only_never_changes(accesses: list[tuple[int, int, int]]) -> None:
    config = build_function(Card()).config
    before = config.read_bytes(0, 4096)
    for offset, size, value in accesses:
        if offset + size <= 4096:
            config.write(offset, size, value % (1 << 8 * size))
            assert config.read(offset, size) == int.from_bytes(config.read_bytes(offset, size), "little")
    after = config.read_bytes(0, 4096)
    read_only = [*range(0x04), *range(0x08, 0x0C), *range(0x0D, 0x10), *range(0x20, 0x20), *range(0x28, 0x30)]
    read_only += [*range(0x34, 0x3C), 0x3D, 0x3E, 0x3F]
    read_only += [0x40, 0x41, 0x42, 0x43, 0x48, 0x49, 0x60, 0x61, *range(0x64, 0x6C), *range(0x6C, 0x74)]
    read_only += range(0x100, 0x1000)
    assert [after[at] for at in read_only] == [before[at] for at in read_only]
    assert len(capabilities(after)) == 4
    assert config.read(0x06, 2) == 0x0010
    assert [bar.size for bar in size_bars(config.read, config.write)] == [16 << 10, 32, 8 << 30, 64 << 10]


# -- state for the server ---------------------------------------------------------------------------------------------


def intx_disabled(function: PciFunction) -> bool:
    return function.intx_disabled


def test_command_bits_and_power_state_decide_what_is_enabled() -> None:
    function = build_function(Card())

    def states() -> tuple[bool, bool, bool]:
        return function.io_enabled, function.memory_enabled, function.bus_master_enabled

    assert states() == (False, False, False)
    function.config.write(0x04, 2, 0x07)
    assert states() == (True, True, True)
    function.config.write(0x44, 2, 3)  # D3hot
    assert function.power_state is PowerState.D3HOT
    assert states() == (False, False, False)
    assert intx_disabled(function) is False
    function.config.write(0x04, 2, 0x400)
    assert intx_disabled(function) is True
    assert function.interrupt_pin == 2


def test_message_interrupts_disable_intx() -> None:
    function = build_function(Card())
    assert (function.msi_enabled, function.msix_enabled) == (False, False)
    assert (function.msi_vectors, function.msix_vectors) == (4, 20)
    function.config.write(0x4A, 2, 1)
    assert (function.msi_enabled, function.msix_enabled) == (True, False)
    assert intx_disabled(function) is True
    function.config.write(0x4A, 2, 0)
    assert intx_disabled(function) is False
    function.config.write(0x62, 2, 0x8000)
    assert (function.msi_enabled, function.msix_enabled) == (False, True)
    assert intx_disabled(function) is True


def test_function_without_capabilities_answers_too() -> None:
    function = build_function(Minimal())
    assert function.power_state is PowerState.D0
    assert not function.msi_enabled
    assert not function.msix_enabled
    assert (function.msi_vectors, function.msix_vectors) == (0, 0)
    assert function.find(PowerManagement) is None


def test_command_event_carries_old_and_new() -> None:
    seen: list[tuple[int, int]] = []
    function = build_function(Card(), FunctionEvents(on_command=lambda old, new: seen.append((old, new))))
    function.config.write(0x04, 2, 0x03)
    function.config.write(0x04, 2, 0x03)
    function.config.write(0x04, 4, 0x07)
    assert seen == [(0, 3), (3, 7)]


# -- resets -----------------------------------------------------------------------------------------------------------


def dirty(function: Any) -> None:
    config = function.config
    config.write(0x04, 2, 0x07)
    config.write(0x10, 4, 0xFEB0_0000)
    config.write(0x30, 4, 0xFEC0_0001)
    config.write(0x3C, 1, 11)
    config.write(0x4A, 2, 0x21)
    config.write(0x62, 2, 0x8000)
    config.write(0x6C + 8, 2, 0x5020 | 0x000F)  # max payload 256, max read 4096, error reporting
    config.write(0x6C + 0x30, 2, 0x0002)  # target link speed: sticky
    function.regions[0].write(0, 4, 5)
    function.regions[0].write(0x1000 + 12, 4, 0)  # unmask vector 0
    function.msix.set_pending(3, True)


@pytest.mark.parametrize("kind", [ResetKind.DEVICE, ResetKind.FLR])
def test_reset_restores_registers_but_not_sticky_ones(kind: ResetKind) -> None:
    function = build_function(Card())
    clean = bytearray(function.config.read_bytes(0, 4096))
    dirty(function)
    assert function.config.read(0x6C + 8, 2) == 0x502F
    function.reset(kind)
    clean[0x6C + 0x30] = 0x02
    if kind is ResetKind.FLR:
        clean[0x6C + 8] = 0x30  # Max_Payload_Size survives a function level reset
    assert function.config.read_bytes(0, 4096) == bytes(clean)
    assert function.regions[0].read(0, 4) == 0
    assert function.msix is not None
    assert function.msix.is_masked(0)
    assert function.msix.pending.bits == 0


def test_flr_written_by_the_guest_resets_then_tells() -> None:
    seen: list[int] = []

    def tell() -> None:
        seen.append(built.config.read(0x04, 2))

    built = build_function(Card(), FunctionEvents(on_flr=tell))
    dirty(built)
    built.config.write(0x6C + 8, 2, 0x8000)
    assert seen == [0]
    assert built.regions[0].read(0, 4) == 0
    assert built.config.read(0x6C + 8, 2) == 0x2810  # reads as 0: it acts at once
    built.config.write(0x6C + 8, 4, 0x8000)
    assert len(seen) == 2


def test_d3hot_to_d0_resets_unless_it_says_otherwise() -> None:
    seen: list[tuple[int, int]] = []
    function = build_function(Card(), FunctionEvents(on_power_state=lambda old, new: seen.append((old, new))))
    function.config.write(0x04, 2, 7)
    function.config.write(0x44, 2, 3)
    assert function.config.read(0x04, 2) == 7
    function.config.write(0x44, 2, 0)
    assert function.config.read(0x04, 2) == 0
    assert seen == [(PowerState.D0, PowerState.D3HOT), (PowerState.D3HOT, PowerState.D0)]

    class Keeps(Minimal):
        pm = PowerManagement(no_soft_reset=True)

    kept = build_function(Keeps())
    kept.config.write(0x04, 2, 7)
    kept.config.write(0x44, 2, 3)
    kept.config.write(0x44, 2, 0)
    assert kept.config.read(0x04, 2) == 7


# -- declarations that cannot be ------------------------------------------------------------------------------------


def test_missing_ids_are_an_error_when_a_device_is_built() -> None:
    class Abstract(PciAttributes):
        class_code = 0xFF0000

    with pytest.raises(DefinitionError, match=r"Abstract\.vendor_id is not set"):
        build_function(Abstract())


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("vendor_id", 0x12345, "Wrong.vendor_id = 0x12345; it is a number of 16 bits, 0 to 0xffff"),
        ("vendor_id", 0xFFFF, "where no device is"),
        ("device_id", "11e8", "device_id = '11e8'"),
        ("class_code", 0x1000000, "24 bits"),
        ("revision", -1, "8 bits"),
        ("interrupt_pin", 5, r"interrupt_pin = 5; it is 0 \(none\), or 1 \(INTA\) to 4"),
    ],
)
def test_impossible_ids_are_refused_when_the_class_is_made(attribute: str, value: object, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        type("Wrong", (Minimal,), {attribute: value})


def test_ids_may_come_from_the_instance() -> None:
    device = Minimal()
    device.subsystem_id = 0x77
    assert build_function(device).config.read(0x2E, 2) == 0x77
    device.subsystem_id = 0x77777
    with pytest.raises(DefinitionError, match="subsystem_id = 0x77777"):
        build_function(device)


def test_class_code_must_be_said_or_it_warns() -> None:
    class Classless(PciAttributes):
        vendor_id, device_id = 1, 2

    with pytest.warns(ClasslessWarning, match="Classless.class_code is not set"):
        assert build_function(Classless()).config.read(0x08, 4) == 0
    Classless.class_code = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_function(Classless())


def test_extended_capability_needs_express() -> None:
    with pytest.raises(DefinitionError, match=r"serial = Serial \(.*test_function.py:\d+\).*express = PciExpress\(\)"):

        class Broken(Minimal):
            serial = Serial()


def test_clashing_capabilities_are_both_named() -> None:
    with pytest.raises(DefinitionError, match=r"msi = Msi \(.*\) at \[0x44, 0x54\) overlaps pm = PowerManagement"):

        class Broken(Minimal):
            pm = PowerManagement(at=0x40)
            msi = Msi(at=0x44)


def test_the_same_capability_twice_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"other \(.*\) and msi \(.*\) are both capability 0x5"):

        class Broken(Minimal):
            msi = Msi()
            other = Msi()


def test_one_capability_has_one_name() -> None:
    with pytest.raises(DefinitionError, match=r"Broken.b and .a are one declaration"):

        class Broken(Minimal):
            a = b = Msi()


def test_subclass_replaces_and_drops_capabilities() -> None:
    class Less(Card):
        msi = Msi(vectors=1)
        serial = None  # type: ignore[assignment]

    config = build_function(Less()).config.read_bytes(0, 4096)
    assert capabilities(config)[1] == Found(0x05, 0x48)
    assert config[0x4A] == 0x80
    assert extended_capabilities(config) == []


def test_capability_without_an_id_is_refused() -> None:
    class Anonymous(ExtendedCapability):
        data = Register(0x04)

    with pytest.raises(DefinitionError, match="Anonymous has no cap_id"):

        class Broken(Minimal):
            express = PciExpress()
            anonymous = Anonymous()

    class TooGreat(Serial):
        cap_id = 0x10000

    with pytest.raises(DefinitionError, match=r"cap_id = 0x10000 is not in 0\.\.0xffff"):

        class AlsoBroken(Minimal):
            express = PciExpress()
            great = TooGreat()


def test_declaration_of_a_capability_is_not_a_device_s() -> None:
    assert Card.msi.vectors == 4
    with pytest.raises(StateError, match="is a declaration"):
        _ = Card.msi.host
    with pytest.raises(StateError, match="not built yet in this Card"):
        _ = Card().msi


def test_msix_behind_a_block_that_does_not_fill_its_bar() -> None:
    class Small(PciAttributes):
        vendor_id, device_id, class_code = 0x1AF4, 0x1110, 0xFF0000
        bar0 = MemoryBar(16 << 10, region=lambda device: Registers())
        msix = MsiX(vectors=4, bar=0, table_offset=0x1000, pba_offset=0x2000)

    bar = build_function(Small()).regions[0]
    assert bar.size == 16 << 10
    bar.write(0x1008, 4, 0x1234)
    assert bar.read(0x1008, 4) == 0x1234
    assert bar.read(0x04, 4) == 0x55

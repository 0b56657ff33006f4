from __future__ import annotations

import pytest

from vfio_user.errors import DefinitionError
from vfio_user.pci import FunctionEvents, PciAttributes, PciExpress, PortType, build_function


class Base(PciAttributes):
    vendor_id, device_id, class_code = 0x1234, 1, 0xFF0000


class Card(Base):
    express = PciExpress()


class Fast(Base):
    express = PciExpress(
        port_type=PortType.LEGACY_ENDPOINT,
        flr=False,
        max_payload=512,
        link_speed=16.0,
        link_width=8,
        extended_tags=False,
        aspm=2,
        ltr=True,
        atomic_completer=True,
        interrupt_message=3,
    )


class Integrated(Base):
    express = PciExpress(port_type=PortType.ROOT_COMPLEX_INTEGRATED_ENDPOINT)


def registers(device_class: type[Base], *, ones: bool = False) -> str:
    config = build_function(device_class()).config
    if ones:
        for offset in range(0x40, 0x7C, 2):
            # All but Initiate Function Level Reset.
            config.write(offset, 2, 0x7FFF if offset == 0x48 else 0xFFFF)
    return config.read_bytes(0x40, 0x3C).hex(" ", 4)


def test_exact_registers() -> None:
    assert registers(Card) == (
        "10000200 21800010 10280000 11004000 00001100 "  # capability, device, link
        "00000000 00000000 00000000 00000000 "  # slot, root
        "10000000 00000000 02000000 01000000 00000000 00000000"  # second generation
    )
    assert registers(Fast) == (
        "10001206 02800000 10280000 84084000 00008400 "
        "00000000 00000000 00000000 00000000 "
        "90090000 00000000 1e000000 04000000 00000000 00000000"
    )
    assert registers(Integrated) == (
        "10009200 21800010 10280000 00000000 00000000 "
        "00000000 00000000 00000000 00000000 "
        "10000000 00000000 00000000 00000000 00000000 00000000"
    )


def test_writable_bits() -> None:
    assert registers(Card, ones=True) == (
        "10000200 21800010 1f790000 11004000 cb021100 "
        "00000000 00000000 00000000 00000000 "
        "10000000 50030000 02000000 bfff0000 00000000 00000000"
    )
    assert registers(Integrated, ones=True).split()[4] == "00000000"
    assert registers(Integrated, ones=True).split()[12] == "00000000"


def test_payload_beyond_what_it_supports_is_not_taken() -> None:
    config = build_function(Fast()).config
    for code, kept in ((0, 0), (1, 1), (2, 2), (3, 2), (5, 2)):
        config.write(0x48, 2, code << 5)
        assert config.read(0x48, 2) >> 5 & 7 == kept


def test_optional_bits_exist_where_declared() -> None:
    fast, plain = build_function(Fast()).config, build_function(Card()).config
    for config, tags, ltr in ((fast, 0, 0x400), (plain, 0x100, 0)):
        config.write(0x48, 2, 0x0100)
        config.write(0x68, 2, 0x0400)
        assert (config.read(0x48, 2), config.read(0x68, 2)) == (tags, ltr)


def test_errors_are_latched_and_reported_when_enabled() -> None:
    device = Card()
    config = build_function(device).config
    assert device.express.report("correctable") is False
    config.write(0x48, 2, 0x000C)
    assert device.express.report("fatal") is True
    assert device.express.report("unsupported_request") is True
    assert config.read(0x4A, 2) == 0x000D
    config.write(0x4A, 2, 0x0004)
    assert config.read(0x4A, 2) == 0x0009


def test_flr_needs_the_capability() -> None:
    seen: list[str] = []
    for device in (Card(), Fast(), Integrated()):
        name = type(device).__name__
        config = build_function(device, FunctionEvents(on_flr=lambda name=name: seen.append(name))).config  # type: ignore[misc]
        config.write(0x48, 2, 0x8000)
        config.write(0x49, 1, 0x80)
        config.write(0x48, 1, 0x80)
        assert config.read(0x48, 2) & 0x8000 == 0
    assert seen == ["Card", "Card", "Integrated", "Integrated"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_payload": 100}, "max_payload=100; the register can say 128, 256, 512, 1024, 2048, 4096"),
        ({"link_speed": 3}, "link_speed=3; the register can say 2.5, 5.0"),
        ({"link_width": 3}, "link_width=3"),
        ({"aspm": 4}, "aspm=4; the register can say 0 to 3"),
        ({"interrupt_message": 32}, "interrupt_message=32; the register can say 0 to 31"),
    ],
)
def test_what_registers_cannot_say_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        PciExpress(**options)  # type: ignore[arg-type]

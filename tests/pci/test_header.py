from __future__ import annotations

from typing import Any

import pytest

from vfio_user.pci.header import Type0Header
from vfio_user.pci.registers import ResetKind


def make(**options: Any) -> tuple[Type0Header, list[tuple[int, int]]]:
    commands: list[tuple[int, int]] = []
    given: dict[str, Any] = {
        "bar_masks": [0xFFFF_F000, 0, 0xFFF0_0000, 0xFFFF_FFFF, 0, 0xFFFF_FFE0],
        "bar_flags": [0x0, 0, 0xC, 0, 0, 0x1],
        "rom_mask": 0,
        "express": False,
        "on_command": lambda old, new: commands.append((old, new)),
    }
    return Type0Header({"vendor_id": 0x1234, "base_class": 2}, **given | options), commands


def test_constants_and_flags_show_from_the_start_and_after_every_reset() -> None:
    header, _ = make()
    for kind in (None, *ResetKind):
        if kind is not None:
            header.write(0x10, 4, 0xFFFF_FFFF)
            header.reset(kind)
        assert header.read(0x00, 2) == 0x1234
        assert header.read(0x0B, 1) == 2
        assert [header.read(0x10 + 4 * index, 4) for index in range(6)] == [0, 0, 0xC, 0, 0, 1]


def test_every_bar_register_reads_back_its_mask() -> None:
    header, _ = make()
    for index in range(6):
        header.write(0x10 + 4 * index, 4, 0xFFFF_FFFF)
    assert [header.read(0x10 + 4 * index, 4) for index in range(6)] == [
        0xFFFF_F000, 0, 0xFFF0_000C, 0xFFFF_FFFF, 0, 0xFFFF_FFE1,
    ]  # fmt: skip


def test_resized_bars_lose_their_address() -> None:
    header, _ = make()
    header.write(0x10, 4, 0xFEB0_1000)
    header.write(0x18, 8, 0x12_3450_0000)
    header.resize_bar(0, -(1 << 20))
    header.resize_bar(2, -(1 << 34))
    assert header.read(0x10, 4) == 0
    assert header.read(0x18, 8) == 0xC
    header.write(0x10, 4, 0xFFFF_FFFF)
    header.write(0x18, 8, 0xFFFF_FFFF_FFFF_FFFF)
    assert header.read(0x10, 4) == 0xFFF0_0000
    assert header.read(0x18, 8) == 0xFFFF_FFFC_0000_000C


def test_command_changes_are_told() -> None:
    header, commands = make()
    header.write(0x04, 2, 0x06)
    header.write(0x04, 1, 0x06)
    header.write(0x05, 1, 0x04)
    assert commands == [(0, 6), (6, 0x406)]


@pytest.mark.parametrize(("express", "kept"), [(False, 0x40), (True, 0)])
def test_latency_timer_is_of_conventional_functions(express: bool, kept: int) -> None:
    header, _ = make(express=express)
    header.write(0x0D, 1, 0x40)
    assert header.read(0x0D, 1) == kept


def test_what_an_endpoint_does_not_have_reads_zero() -> None:
    header, _ = make()
    for offset in (0x0F, 0x28, 0x29, 0x35, 0x36, 0x38, 0x3B):
        header.write(offset, 1, 0xFF)
        assert header.read(offset, 1) == 0

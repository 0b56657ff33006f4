"""Reads a configuration space the way an operating system does, sharing no code with what built it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple


class Found(NamedTuple):
    cap_id: int
    offset: int
    version: int = 0


def capabilities(config: bytes) -> list[Found]:
    """The conventional chain; fails on a loop, a pointer into the header, or an unaligned one."""
    found: list[Found] = []
    (status,) = struct.unpack_from("<H", config, 0x06)
    if not status & 0x10:
        assert config[0x34] == 0, "a pointer without the status bit"
        return found
    at = config[0x34]
    while at:
        assert at >= 0x40, f"capability at {at:#x}, in the header"
        assert at % 4 == 0, f"capability at {at:#x}, unaligned"
        assert at not in [item.offset for item in found], f"loop at {at:#x}"
        found.append(Found(config[at], at))
        at = config[at + 1]
    return found


def extended_capabilities(config: bytes) -> list[Found]:
    """The extended chain; empty for a conventional function, or when the header at 0x100 is 0."""
    found: list[Found] = []
    at = 0x100 if len(config) > 0x100 else 0
    while at:
        (header,) = struct.unpack_from("<I", config, at)
        if header == 0:
            assert at == 0x100, f"empty header at {at:#x}, inside the chain"
            break
        assert at not in [item.offset for item in found], f"loop at {at:#x}"
        found.append(Found(header & 0xFFFF, at, header >> 16 & 0xF))
        at = header >> 20
        assert at == 0 or (at > 0x100 and at % 4 == 0), f"next pointer {at:#x}"
    return found


class SizedBar(NamedTuple):
    bar: int
    kind: str
    size: int
    prefetchable: bool


def size_bars(read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> list[SizedBar]:
    """Sizes the BARs as firmware and cloud-hypervisor do: write all ones, read back, restore."""

    def probe(offset: int) -> int:
        old = read(offset, 4)
        write(offset, 4, 0xFFFF_FFFF)
        value = read(offset, 4)
        write(offset, 4, old)
        return value

    found: list[SizedBar] = []
    index = 0
    while index < 6:
        offset = 0x10 + 4 * index
        flags = read(offset, 4)
        value = probe(offset)
        if value == 0:
            index += 1
            continue
        if flags & 1:
            found.append(SizedBar(index, "io", -(value & ~3) & 0xFFFF_FFFF, False))
            index += 1
        elif flags & 6 == 4:
            value = probe(offset + 4) << 32 | value & ~0xF
            found.append(SizedBar(index, "memory64", -value & 0xFFFF_FFFF_FFFF_FFFF, bool(flags & 8)))
            index += 2
        else:
            found.append(SizedBar(index, "memory32", -(value & ~0xF) & 0xFFFF_FFFF, bool(flags & 8)))
            index += 1
    return found

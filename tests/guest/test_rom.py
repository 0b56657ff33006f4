"""Option ROMs: run by the firmware, and read by Linux byte for byte."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.guest.capability_devices import WithRom
from tests.guest.devices import KiB, MiB
from tests.guest.support import VmFactory
from tests.support.fds import no_leaks
from vfio_user import Server
from vfio_user.pci import build_option_rom
from vfio_user.vm import GuestKit, VfioUserDevice, VirtualMachine

pytestmark = [pytest.mark.guest]

#: Sizes of ROMs, and the device ids they are behind.
SIZES = {2 * KiB: 0x0001, 64 * KiB: 0x0002, 1 * MiB: 0x0003, 4 * MiB: 0x0004}

ALL = [2 * KiB, 64 * KiB, 1 * MiB, 4 * MiB]

#: Bytes of a PC image that are not its code: the headers, and the byte that makes the sum 0.
_OVERHEAD = 0x1C + 24 + 1


def greeting(text: str) -> bytes:
    """Code of an option ROM that writes a text to the first serial port, and returns."""
    write_each = b"".join(bytes((0xB0, character, 0xEE)) for character in text.encode())  # mov al, ..; out dx, al
    return b"\xba\xf8\x03" + write_each + b"\xcb"  # mov dx, 3f8h; ...; retf


def option_rom(size: int, device_id: int) -> bytes:
    """A ROM of that many bytes which greets when it is run: one image, or for large ones a small one and a chain."""
    contents = random.Random(size)
    rom = b""
    while len(rom) < size:
        # Firmware takes the first image alone, to a place below 1 MiB that those of all devices share.
        length = min(64 * KiB if rom or size <= 64 * KiB else 2 * KiB, size - len(rom))
        code = b"\xcb" if rom else greeting(f"ROM of {size} bytes\r\n")
        code += contents.randbytes(length - _OVERHEAD - len(code))
        last = len(rom) + length == size
        rom += build_option_rom(vendor_id=0x1234, device_id=device_id, class_code=0xFF0000, code=code, last=last)
    return rom


@dataclass
class Scenario:
    """A running machine, and the ROMs in it by their size."""

    machine: VirtualMachine
    roms: dict[int, bytes]


@pytest.fixture(scope="module")
def scenario(guest_kit: GuestKit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp("rom")
    roms = {size: option_rom(size, device_id) for size, device_id in SIZES.items()}
    with no_leaks(), ExitStack() as stack:
        for size, rom in roms.items():
            stack.enter_context(Server(WithRom(SIZES[size], rom), folder / f"{size}.sock", strict=True).start())
        machine = stack.enter_context(VmFactory(guest_kit, folder))(
            "q35", devices=[VfioUserDevice(folder / f"{size}.sock") for size in roms]
        )
        yield Scenario(machine, roms)


@pytest.mark.parametrize("size", ALL)
def test_the_firmware_runs_the_rom(scenario: Scenario, size: int) -> None:
    scenario.machine.guest.wait_ready()
    assert f"ROM of {size} bytes\n" in scenario.machine.console.text


@pytest.mark.parametrize("size", ALL)
def test_linux_reads_the_rom(scenario: Scenario, size: int) -> None:
    guest, expected = scenario.machine.guest, scenario.roms[size]
    assert len(expected) == size
    device = guest.pci_device(0x1234, SIZES[size])
    resource = device.resources[6]
    assert resource is not None
    assert resource.size == size
    told = guest.run(
        f"cd {device.path} && echo 1 >rom && cat rom >/tmp/rom; echo 0 >rom; wc -c </tmp/rom; sha256sum </tmp/rom"
    )
    count, checksum, _ = told.stdout.split()
    assert (int(count), checksum) == (size, hashlib.sha256(expected).hexdigest())

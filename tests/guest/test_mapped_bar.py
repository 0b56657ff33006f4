"""Memory of a device that QEMU maps: the guest's accesses reach it and no message tells of them.

One BAR is mapped whole; another has registers, which are trapped, and a mapped page beside them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.guest.devices import KiB
from tests.guest.support import VmFactory, wait_for
from tests.support.fds import no_leaks
from vfio_user import MemoryBar, PciDevice, Register, RegisterBlock, Server
from vfio_user.protocol.constants import Command
from vfio_user.protocol.header import Header
from vfio_user.protocol.region import RegionAccess
from vfio_user.server.session import Observer
from vfio_user.vm import Guest, GuestKit, VfioUserDevice

pytestmark = [pytest.mark.guest]

PAGE = 0x1000


class FrameRegisters(RegisterBlock):
    """What is trapped."""

    flips = Register(0x00, doc="a write says that a frame is ready")
    scratch = Register(0x08)


class FrameBuffer(PciDevice):
    """Pixels in memory that is mapped, and a register that says when to look at them."""

    vendor_id, device_id, class_code = 0x1234, 0xF8A3, 0xFF0000
    bar0 = MemoryBar(16 * KiB, registers=FrameRegisters)
    cursor = bar0.shared_area(2 * PAGE, PAGE)
    bar2 = MemoryBar(64 * KiB, shared=True)

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[bytes] = []

    @bar0.on_write("flips")
    def flipped(self) -> None:
        self.frames.append(bytes(self.bar2.memory[:8]))


class AccessCounter(Observer):
    """Counts the messages about each page of each region."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, int, int]] = Counter()
        self.posted = 0

    def command(self, header: Header, payload: bytes, fds: int) -> None:
        del fds
        if header.command in (Command.REGION_READ, Command.REGION_WRITE):
            access = RegionAccess.decode(payload)
            kind = "read" if header.command == Command.REGION_READ else "write"
            with self._lock:
                self._counts[kind, access.region, access.offset // PAGE] += 1
                self.posted += header.no_reply

    def reply(self, header: Header, payload: bytes, fds: int, seconds: float) -> None:
        pass

    def closed(self) -> None:
        pass

    def of(self, region: int, page: int | None = None) -> Counter[str]:
        """Reads and writes of a region, or of one page of it, so far."""
        with self._lock:
            found: Counter[str] = Counter()
            for (kind, index, at), count in self._counts.items():
                if index == region and page in (None, at):
                    found[kind] += count
            return found


class Scenario:
    """A running guest, the device in it, and what QEMU said to it."""

    def __init__(self, guest: Guest, device: FrameBuffer, messages: AccessCounter) -> None:
        self.guest = guest
        self.device = device
        self.messages = messages
        seen = guest.pci_device(0x1234, 0xF8A3)
        guest.run(f"echo 1 >{seen.path}/enable")
        resources = seen.resources[0], seen.resources[2]
        assert resources[0] is not None
        assert resources[1] is not None
        self.registers, self.pixels = resources[0].start, resources[1].start

    def poke(self, address: int, value: int, bits: int = 32) -> None:
        self.guest.run(f"devmem {address:#x} {bits} {value:#x}")

    def peek(self, address: int, bits: int = 32) -> int:
        return int(str(self.guest.run(f"devmem {address:#x} {bits}")), 0)


@pytest.fixture(scope="module")
def scenario(guest_kit: GuestKit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp("mapped")
    device, messages = FrameBuffer(), AccessCounter()
    with no_leaks(), ExitStack() as stack:
        stack.enter_context(Server(device, folder / "frames.sock", strict=True, observer=messages).start())
        machine = stack.enter_context(VmFactory(guest_kit, folder))(
            "q35", devices=[VfioUserDevice(folder / "frames.sock")]
        )
        yield Scenario(machine.guest, device, messages)


def test_a_whole_bar_is_accessed_without_a_message(scenario: Scenario) -> None:
    device = scenario.device
    for offset, value, bits in [(0, 0x11223344, 32), (6, 0x5566, 16), (0x1234, 0x77, 8), (64 * KiB - 8, 1 << 63, 64)]:
        scenario.poke(scenario.pixels + offset, value, bits)
        assert int.from_bytes(device.bar2.memory[offset : offset + bits // 8], "little") == value
    device.bar2.memory[0x8000:0x8008] = b"from us!"
    assert scenario.peek(scenario.pixels + 0x8000, 64) == int.from_bytes(b"from us!", "little")
    assert scenario.messages.of(2) == Counter()


def test_registers_are_trapped_and_the_page_beside_them_is_not(scenario: Scenario) -> None:
    device, messages = scenario.device, scenario.messages
    before = messages.of(0)
    scenario.poke(scenario.registers + 2 * PAGE + 0x40, 0xCAFE)
    assert bytes(device.cursor[0x40:0x42]) == b"\xfe\xca"
    device.cursor[0x80:0x84] = b"\1\2\3\4"
    assert scenario.peek(scenario.registers + 2 * PAGE + 0x80) == 0x04030201
    assert messages.of(0) == before
    scenario.poke(scenario.registers + 8, 0xABCD)
    assert device.bar0.scratch == 0xABCD
    assert scenario.peek(scenario.registers + 8) == 0xABCD
    assert messages.of(0) - before == Counter(read=1, write=1)
    assert messages.of(0, page=2) == Counter()
    # Pages between registers and areas are the device's, too, and not mapped.
    assert scenario.peek(scenario.registers + PAGE) == 0
    assert messages.of(0, page=1) == Counter(read=1)


def test_what_was_written_to_memory_is_there_when_a_register_says_so(scenario: Scenario) -> None:
    for frame in range(5):
        scenario.guest.run(
            f"devmem {scenario.pixels:#x} 64 {0x1111111111111111 * frame:#x}; devmem {scenario.registers:#x} 32 1"
        )
    wait_for(lambda: len(scenario.device.frames) == 5)
    assert scenario.device.frames == [bytes([0x11 * frame] * 8) for frame in range(5)]


def test_no_write_is_posted_where_anything_is_mapped(scenario: Scenario) -> None:
    before = scenario.messages.of(0)["write"]
    scenario.poke(scenario.registers + 8, 1)
    assert scenario.messages.of(0)["write"] == before + 1
    assert scenario.messages.posted == 0


def test_memory_stays_mapped_and_what_it_was_through_a_reset(scenario: Scenario) -> None:
    scenario.poke(scenario.pixels, 0x600D)
    scenario.poke(scenario.registers + 8, 0xBAD)
    scenario.device.call_soon(scenario.device.reset)
    wait_for(lambda: scenario.device.bar0.scratch == 0)
    assert scenario.peek(scenario.pixels) == 0x600D

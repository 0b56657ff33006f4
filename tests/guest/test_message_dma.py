"""DMA in a guest whose memory is not shared: every byte goes by DMA_READ and DMA_WRITE. And the same where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guest.support import VmFactory
from tests.support.fds import no_leaks
from vfio_user import WO, DeviceError, MemoryBar, PciDevice, Register, RegisterBlock, Server
from vfio_user.devices.edu import Edu
from vfio_user.memory.mapping import AccessMode
from vfio_user.vm import Guest, GuestKit, VfioUserDevice, compile_guest_program

pytestmark = [pytest.mark.guest]

PROGRAMS = Path(__file__).parent / "programs"


class MoverRegisters(RegisterBlock):
    """What programs/message_dma.c drives."""

    address = Register(0x00, width=64)
    count = Register(0x08, doc="bytes, at most 4 MiB")
    take = Register(0x0C, access=WO, doc="the device reads from memory, in the handler of this write")
    give = Register(0x10, access=WO, doc="... writes to memory")
    take_soon = Register(0x14, access=WO, doc="... reads when the write has been answered")
    give_soon = Register(0x18, access=WO)
    status = Register(0x1C, doc="0 while it works, 1 when it is done, the errno plus 0x100 when it failed")
    scratch = Register(0x20)
    written = Register(0x24, doc="writes to scratch so far")


class Mover(PciDevice):
    """Moves up to 4 MiB between the guest and itself, complementing every byte of what it gives back."""

    vendor_id, device_id, class_code = 0x1234, 0xD0A0, 0xFF0000
    bar0 = MemoryBar(size=4096, registers=MoverRegisters)

    def __init__(self) -> None:
        super().__init__()
        self.data = b""
        self.modes: set[AccessMode] = set()
        self.dma.on_map.append(lambda mapping: self.modes.add(mapping.mode))

    @bar0.on_write("take")
    def take(self, _value: int) -> None:
        self.move(give=False)

    @bar0.on_write("give")
    def give(self, _value: int) -> None:
        self.move(give=True)

    @bar0.on_write("take_soon")
    def take_soon(self, _value: int) -> None:
        self.call_soon(self.move, False)

    @bar0.on_write("give_soon")
    def give_soon(self, _value: int) -> None:
        self.call_soon(self.move, True)

    @bar0.on_write("scratch")
    def count_writes(self, _value: int) -> None:
        self.bar0.written += 1

    def move(self, give: bool) -> None:
        address, count = int(self.bar0.address), int(self.bar0.count)
        self.bar0.status = 0
        try:
            if give:
                self.dma.write(address, self.data.translate(COMPLEMENT)[:count])
            else:
                self.data = self.dma.read(address, count)
            self.bar0.status = 1
        except DeviceError as exc:
            self.bar0.status = 0x100 + exc.reply_errno


COMPLEMENT = bytes(0xFF - n for n in range(256))


class Scenario:
    """A running guest, and what is in it."""

    def __init__(self, guest: Guest, shared: bool, edu: Edu, mover: Mover) -> None:
        self.guest = guest
        self.shared = shared
        self.edu = edu
        self.mover = mover


@pytest.fixture(scope="module", params=[False, True], ids=["by messages", "shared"])
def scenario(
    request: pytest.FixtureRequest, guest_kit: GuestKit, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp("message_dma")
    files = {f"/bin/{name}": compile_guest_program(PROGRAMS / f"{name}.c") for name in ("edu", "message_dma")}
    edu, mover = Edu(), Mover()
    with no_leaks(), ExitStack() as stack:
        stack.enter_context(Server(edu, folder / "edu.sock", strict=True).start())
        stack.enter_context(Server(mover, folder / "mover.sock", strict=True).start())
        machine = stack.enter_context(VmFactory(guest_kit, folder))(
            "q35",
            devices=[VfioUserDevice(folder / "edu.sock"), VfioUserDevice(folder / "mover.sock")],
            modules=["uio_pci_generic"],
            files=files,
            shared_memory=request.param,
            extra=("-smp", "2"),
        )
        yield Scenario(machine.guest, request.param, edu, mover)


def test_memory_is_reached_as_said(scenario: Scenario) -> None:
    # The firmware's ROM comes without a descriptor either way.
    assert scenario.mover.modes == {AccessMode.MESSAGE, *([AccessMode.MMAP] if scenario.shared else [])}


def test_edu(scenario: Scenario) -> None:
    guest = scenario.guest
    guest.load_module("uio_pci_generic")
    guest.run("echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id")
    device = guest.pci_device(0x1234, 0x11E8)
    told = guest.run(f"edu {device.path} /dev/$(basename {device.path}/uio/*)", timeout=120)
    assert told.stdout.splitlines()[-2:] == ["ok dma both ways", "ok no dma without bus mastering"]
    assert scenario.edu.buffer == bytes((i * 7 + i // 256 + 7 * 31) & 0xFF for i in range(4096))


def test_large_transfers_under_register_traffic(scenario: Scenario) -> None:
    path = scenario.guest.pci_device(0x1234, 0xD0A0).path
    told = scenario.guest.run(f"message_dma {path}", timeout=300)
    assert told.stdout.splitlines() == [
        "ok 65536 bytes from handlers",
        "ok 65536 bytes put off",
        "ok 4194304 bytes from handlers",
        "ok 4194304 bytes put off",
        "ok no write was lost",
        "ok no dma without bus mastering",
    ]

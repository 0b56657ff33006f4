"""What an address means to the SCRIPTS processor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fds import memory_file
from vfio_user.devices.lsi53c8xx.chip_memory import ChipMemory
from vfio_user.errors import DeviceError
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c895aRegisters
from vfio_user.memory import Dma
from vfio_user.protocol.constants import DmaMapFlags

GUEST, RAM, REGISTERS = 0x1000, 0x8000_0000, 0x9000_0000


@pytest.fixture
def memory() -> Iterator[ChipMemory]:
    dma = Dma()
    dma.map(GUEST, 0x1000, DmaMapFlags.READ | DmaMapFlags.WRITE, 0, memory_file(bytes(0x1000)))
    made = ChipMemory(dma, Lsi53c895aRegisters(), bytearray(0x2000))
    made.locate(REGISTERS, RAM)
    yield made
    dma.clear()


@pytest.mark.parametrize("base", [GUEST + 0x100, RAM + 0x1000, REGISTERS + 0x60])
def test_bytes_and_words_come_back(memory: ChipMemory, base: int) -> None:
    memory.write(base, b"abcdefgh")
    assert bytes(memory.read(base + 2, 5)) == b"cdefg"
    assert memory.read_word(base + 4) == int.from_bytes(b"efgh", "little")
    memory.write_word(base, 0x0403_0201)
    assert bytes(memory.read(base, 5)) == b"\x01\x02\x03\x04e"


def test_ram_and_registers_are_the_chips(memory: ChipMemory) -> None:
    memory.write(RAM, b"RAM!")
    assert memory.ram[:4] == b"RAM!"
    memory.write_word(REGISTERS + 0x34, 7)
    assert memory.read_word(REGISTERS + 0x34) == 7


@pytest.mark.parametrize("address", [0, GUEST + 0xFFD, RAM - 2, RAM + 0x1FFE, REGISTERS + 0xFE, 1 << 63])
def test_what_is_not_all_there_is_refused(memory: ChipMemory, address: int) -> None:
    with pytest.raises(DeviceError):
        memory.read(address, 4)
    with pytest.raises(DeviceError):
        memory.write(address, bytes(4))


def test_addresses_nobody_gave_mean_nothing(memory: ChipMemory) -> None:
    memory.locate(0, 0)
    for address in (0, RAM, REGISTERS):
        with pytest.raises(DeviceError):
            memory.read(address, 4)


def test_a_chip_without_ram(memory: ChipMemory) -> None:
    bare = ChipMemory(Dma(), Lsi53c895aRegisters(), bytearray())
    bare.locate(REGISTERS, RAM)
    with pytest.raises(DeviceError):
        bare.read(RAM, 0x4)


def test_views_are_of_the_clients_memory_alone(memory: ChipMemory) -> None:
    memory.write(GUEST, b"abcd")
    view = memory.view(GUEST + 1, 2)
    assert view is not None
    assert bytes(view) == b"bc"
    assert memory.view(RAM, 4) is None
    assert memory.view(REGISTERS, 4) is None
    with pytest.raises(DeviceError):
        memory.view(0, 4)


def test_what_is_the_chips_own(memory: ChipMemory) -> None:
    for base, size in ((RAM, 0x2000), (REGISTERS, 0x100)):
        assert memory.is_own(base - 1, 2)
        assert memory.is_own(base + size - 1, 1)
        assert not memory.is_own(base - 1, 1)
        assert not memory.is_own(base + size, 1)
    memory.read(GUEST, 4)
    memory.write(GUEST, b"abcd")
    view = memory.view_nowait(GUEST + 1, 2)
    assert view is not None
    assert bytes(view) == b"bc"
    memory.locate(REGISTERS, GUEST)
    assert memory.view_nowait(GUEST + 1, 2) is None


@pytest.mark.parametrize(
    ("place", "data", "first", "last"),
    [(RAM + 8, b"abcd", 2, 2), (RAM + 6, b"abc", 1, 2), (RAM + 4, bytes(8), 1, 2), (RAM + 11, b"x", 2, 2)],
)
def test_writes_to_code_are_told(memory: ChipMemory, place: int, data: bytes, first: int, last: int) -> None:
    told: list[tuple[int, int]] = []
    memory.code_written = lambda *words: told.append(words)
    memory.code[2] = 1
    memory.write(place, data)
    assert told == [(first, last)]
    assert bytes(memory.read(place, len(data))) == data
    memory.write(RAM + 12, b"beside")
    memory.write(RAM + 4, b"it")
    memory.write_word(RAM + 12, 1)
    assert len(told) == 1
    memory.write_word(RAM + 8, 1)
    assert told[1:] == [(2, 2)]

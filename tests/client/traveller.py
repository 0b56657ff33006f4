"""A device that works without pause, and a guest that keeps account of all of it: what a live migration must not lose.

``Traveller`` is served by a process of its own, or by a thread. ``Guest`` is the client's side: it makes the device
work, and knows afterwards what every register and every byte has to be.
"""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

from vfio_user import MemoryBar, MsiX, PciDevice, Register, RegisterBlock

if TYPE_CHECKING:
    from vfio_user.client.device import VfioUserClient
    from vfio_user.client.guest_memory import GuestMemory
    from vfio_user.protocol.migration import MigrationState

PAGE = 4096
MEMORY_IOVA = 0x10_0000
#: Pages of guest memory: the first are the device's ring, the last is the guest's mailbox.
SLOTS = 255
MEMORY_SIZE = (SLOTS + 1) * PAGE
MAILBOX = SLOTS * PAGE
STATE_SIZE = 1 << 20
VECTORS = 4

_ENTRY = struct.Struct("<QQ")
_ENTRIES = PAGE // _ENTRY.size
_MASK = (1 << 64) - 1


def step(digest: int, value: int) -> int:
    """The next digest: of all values written, in their order."""
    return (digest * 0x9E37_79B9_7F4A_7C15 + value + 1) & _MASK


def entry(number: int) -> tuple[int, bytes]:
    """Where in the ring the device writes entry ``number``, and what."""
    at = number % SLOTS * PAGE + number // SLOTS % _ENTRIES * _ENTRY.size
    return at, _ENTRY.pack(number, ~number & _MASK)


class Registers(RegisterBlock):
    command = Register(0x00, doc="every value written goes into the digest")
    writes = Register(0x04)
    digest = Register(0x08, width=64)
    ring = Register(0x10, width=64)
    run = Register(0x18, doc="1: write entries, and interrupt, without pause")
    mail = Register(0x1C, doc="read that word of the mailbox, and add it up")
    entries = Register(0x20, width=64)
    mail_sum = Register(0x28, width=64)
    fired = Register(0x30, count=VECTORS)
    busy = Register(0x40, doc="an entry is being written: by messages, that takes a while")


class Traveller(PciDevice):
    """Registers, 1 MiB of memory, four vectors, and a ring it fills for as long as it runs."""

    vendor_id, device_id, class_code = 0x1234, 0x7A7E, 0xFF0000
    migratable = True
    saved_attributes = ("log",)
    msix = MsiX(vectors=VECTORS)
    bar0 = MemoryBar(size=PAGE, registers=Registers)
    bar2 = MemoryBar(size=STATE_SIZE)

    def __init__(self, *, fail_in: str = "") -> None:
        super().__init__()
        self.log: list[int] = []
        self.fail_in = fail_in

    @bar0.on_write("command")
    def take_command(self, value: int) -> None:
        self.bar0.digest = step(self.bar0.digest, value)
        self.bar0.writes += 1
        self.log = [*self.log[-99:], value]

    @bar0.on_write("mail")
    def read_mail(self, index: int) -> None:
        word = self.dma.read(self.bar0.ring + MAILBOX + 8 * index, 8)
        self.bar0.mail_sum = (self.bar0.mail_sum + int.from_bytes(word, "little")) & _MASK

    @bar0.on_write("run")
    def start(self, run: int) -> None:
        if run:
            self.call_later(0.0, self.work)

    def work(self) -> None:
        if not self.bar0.run:
            return
        self.bar0.busy = 1
        number = int(self.bar0.entries)
        at, data = entry(number)
        self.dma.write(self.bar0.ring + at, data)
        self.bar2.write_bytes(number * 8 % STATE_SIZE, number.to_bytes(8, "little"))
        vector = number % VECTORS
        self.bar0.entries = number + 1
        self.bar0.fired[vector] = self.bar0.fired[vector] + 1
        self.raise_interrupt(vector)
        self.bar0.busy = 0
        self.call_later(0.0001, self.work)

    def on_loaded(self) -> None:
        if self.fail_in == "load":
            raise RuntimeError("broken while loading")
        self.bar0.busy = 0
        self.start(self.bar0.run)

    def on_state(self, old: MigrationState, new: MigrationState) -> None:
        if self.fail_in == new.name:
            self.fail_in = ""
            raise RuntimeError(f"broken in {new.name}")


class Guest:
    """Drives the device, and remembers.

    Attributes:
        client: where the device is now.
        memory: the guest's memory there.
        interrupts: how often each vector was heard of.
    """

    def __init__(self, client: VfioUserClient, memory: GuestMemory, *, shared: bool = True) -> None:
        from vfio_user.client.pci_function import PciFunction

        self.interrupts = [0] * VECTORS
        self._digest = self._writes = self._mails = self._mail_sum = 0
        self._dirtied: list[tuple[int, int]] = []
        self._contents = bytearray(b"\0" * STATE_SIZE)
        client.dma_map(memory, MEMORY_IOVA, shared=shared)
        function = PciFunction(client)
        function.set_master()
        assert function.msix is not None
        function.msix.enable(VECTORS)
        self.moved_to(client, memory)
        self._bar0.write64(0x10, MEMORY_IOVA)
        self._bar0.write32(0x18, 1)

    def moved_to(self, client: VfioUserClient, memory: GuestMemory) -> None:
        """The device is there from now on."""
        self.client = client
        self.memory = memory
        self._bar0 = client.region(0)
        self._irq = client.irq(2)

    def fill(self) -> None:
        """Writes the device's whole memory, before it has written any of it."""
        self.pause()
        assert self.entries * 8 < STATE_SIZE
        self._contents[:] = random.Random(0).randbytes(STATE_SIZE)
        self.client.region(2).write_bytes(0, self._contents)
        for number in range(self.entries):
            self.client.region(2).write64(number * 8, number)
        self._bar0.write32(0x18, 1)

    def pause(self) -> None:
        """Stops the device's own work, and hears what it had to say."""
        self._bar0.write32(0x18, 0)
        while self._bar0.read32(0x40):
            pass
        self.listen()

    def work(self, number: int = 20) -> None:
        """Some register writes, posted and not, some mail, and a look at the interrupts."""
        for value in range(self._writes, self._writes + number):
            self._bar0.write32(0x00, value & 0xFFFF_FFFF, posted=value % 4 != 0)
            self._digest = step(self._digest, value)
        self._writes += number
        index = self._mails % 512
        word = 0xABCD_0000_0000 + self._mails
        self.memory.view[MAILBOX + 8 * index : MAILBOX + 8 * index + 8] = word.to_bytes(8, "little")
        self._dirtied.append((MEMORY_IOVA + MAILBOX + 8 * index, 8))
        self._mails += 1
        self._mail_sum += word
        # Posted: where the memory is not shared, the device has to ask for the word before that write is done.
        self._bar0.write32(0x1C, index, posted=True)
        self.listen()

    def dirtied(self) -> list[tuple[int, int]]:
        """What this wrote to its memory since it was last asked."""
        ranges, self._dirtied = self._dirtied, []
        return ranges

    def everything(self) -> list[tuple[int, int]]:
        """All of its memory, as if it had written that."""
        return [(MEMORY_IOVA, MEMORY_SIZE)]

    def listen(self) -> None:
        for vector in self._irq:
            self.interrupts[vector.number] += vector.poll()

    @property
    def entries(self) -> int:
        """How many the device has written so far."""
        return self._bar0.read64(0x20)

    def check(self) -> int:
        """Stops the device's own work, compares everything, and lets it go on.

        Returns:
            Entries written so far.
        """
        bar0 = self._bar0
        self.pause()
        entries = self.entries
        # No register write.
        assert (bar0.read32(0x04), bar0.read64(0x08)) == (self._writes, self._digest)
        # No interrupt.
        fired = [bar0.read32(0x30 + 4 * vector) for vector in range(VECTORS)]
        assert sum(fired) == entries
        assert self.interrupts == fired
        # No byte written, and none read.
        ring = bytearray(SLOTS * PAGE)
        state = self._contents.copy()
        for number in range(entries):
            at, data = entry(number)
            ring[at : at + len(data)] = data
            state[number * 8 % STATE_SIZE : number * 8 % STATE_SIZE + 8] = number.to_bytes(8, "little")
        assert self.memory.view[: SLOTS * PAGE] == ring
        assert bar0.read64(0x28) == self._mail_sum & _MASK
        assert self.client.region(2).read_bytes(0, STATE_SIZE) == state
        bar0.write32(0x18, 1)
        return entries

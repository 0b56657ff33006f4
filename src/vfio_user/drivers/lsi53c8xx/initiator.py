"""``ScsiInitiator``: a 53C895A, driven as an operating system drives it: by a SCRIPTS program, with tagged commands.

    with PciFunction.connect("/tmp/lsi.sock") as function:
        scsi = ScsiInitiator(function)
        scsi.execute(0, bytes(6))                               # TEST UNIT READY, of target 0
        block = scsi.execute(0, read_10(lba=5), receive=512)
        requests = [scsi.submit(0, read_10(lba), receive=512) for lba in range(8)]
        while scsi.outstanding:
            scsi.process()

Ref: LSI53C895A Technical Manual; the program is in ``program``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vfio_user.client.pci_function import PciFunction
from vfio_user.client.register_view import view_registers
from vfio_user.drivers.lsi53c8xx.program import BLOCK_SIZE, SLOT_SIZE, RequestBlock, Slot, assemble, make_slot
from vfio_user.errors import StateError, VfioUserError
from vfio_user.hardware.lsi53c8xx.interrupts import DmaInterrupt, ScsiInterrupt
from vfio_user.hardware.lsi53c8xx.messages import Message
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c895aRegisters
from vfio_user.hardware.scsi.codes import Status
from vfio_user.hardware.scsi.sense import Sense
from vfio_user.protocol.constants import IrqIndex

if TYPE_CHECKING:
    from vfio_user.client.device import VfioUserClient

__all__ = ["ScsiError", "ScsiInitiator", "ScsiRequest"]

_HOST_ID = 7
_REGISTER_BAR = 1

#: Interrupts the driver wants: whatever stops the program. In DIEN all but single steps, which nobody asks for.
_DMA_INTERRUPTS = 0x75
_SCSI_INTERRUPTS = (
    ScsiInterrupt.SELECTION_TIMEOUT
    | ScsiInterrupt.PHASE_MISMATCH
    | ScsiInterrupt.GROSS_ERROR
    | ScsiInterrupt.UNEXPECTED_DISCONNECT
    | ScsiInterrupt.PARITY_ERROR
)

#: What STATUS is before a target says it.
_NO_STATUS = 0xFF

_REQUEST_SENSE = bytes([0x03, 0, 0, 0, 252, 0])

_PAIR = struct.Struct("<II")
_WORD = struct.Struct("<I")


class ScsiError(VfioUserError):
    """A command ended with a status other than GOOD.

    Attributes:
        request: the command.
        sense: why, None where the target had nothing to say.
    """

    def __init__(self, request: ScsiRequest, sense: Sense | None) -> None:
        self.request = request
        self.sense = sense
        reason = "" if sense is None else f": {sense.key.name}, {sense.additional.name}"
        status = "no status" if request.status is None else request.status.name
        super().__init__(f"command {request.cdb.hex(' ')} of target {request.target} ended with {status}{reason}")


@dataclass(eq=False)
class ScsiRequest:
    """A command, under way or ended.

    Attributes:
        target: SCSI id.
        cdb: the command.
        data: what goes to the target, or what came from it when the command has ended.
        receive: bytes there is room for.
        tag: it has while it is under way.
        status: how it ended; None until then.
    """

    target: int
    cdb: bytes
    data: bytes = b""
    receive: int = 0
    tag: int = field(default=0, repr=False)
    status: Status | None = None


class ScsiInitiator:
    """See the module. Made, the chip is reset, its bus is reset, and its program runs.

    Args:
        function: the controller.
        tags: commands under way at a time, in [1, 255].
        transfer_size: bytes of data of a command, at most.

    Attributes:
        client: where the controller is.

    Threading: one thread.
    """

    def __init__(self, function: PciFunction, *, tags: int = 63, transfer_size: int = 64 * 1024) -> None:
        if not 1 <= tags <= 255:
            raise ValueError(f"{tags} tags: there are 1 to 255")
        self.client = function.client
        self._transfer_size = transfer_size
        self._tags = tags
        self._free = list(range(tags))
        self._requests: dict[int, ScsiRequest] = {}
        self._ended = [0] * tags
        # A command that is under way has a slot at most, so there is always one more that is empty.
        self._slot_count = tags + 1
        self._next_slot = 0
        function.set_master()
        self._vector = function.enable_intx()[0]
        self._registers = view_registers(Lsi53c895aRegisters, self.client.region(_REGISTER_BAR))
        self._blocks = function.dma_alloc(BLOCK_SIZE * tags, align=0x1_0000).iova
        self._data = function.dma_alloc(transfer_size * tags).iova
        self._slots = function.dma_alloc(SLOT_SIZE * self._slot_count).iova
        program = function.dma_alloc(0x1000).iova
        code, self._labels = assemble(program, self._slots)
        self._write(program, code)
        for index in range(self._slot_count):
            self._write(self._slot(index), make_slot(self._slot(index), self._slot(index + 1), self._labels))
        self._start()

    def _start(self) -> None:
        registers = self._registers
        registers.istat0 = 0x40
        registers.istat0 = 0x00
        registers.scntl1.rst = 1
        registers.scntl1.rst = 0
        registers.scid = 0x40 | _HOST_ID
        registers.respid = 1 << _HOST_ID
        # What the reset of the bus had to say is heard here.
        self._clear_causes()
        registers.sien = int(_SCSI_INTERRUPTS)
        registers.dien = _DMA_INTERRUPTS
        registers.dsa = self._blocks
        registers.dsp = self._labels["idle"]

    # Commands.

    @property
    def outstanding(self) -> int:
        """Commands under way."""
        return len(self._requests)

    def submit(
        self, target: int, cdb: bytes, *, data: bytes = b"", receive: int = 0, signal: bool = True
    ) -> ScsiRequest:
        """Begins a command.

        Args:
            target: SCSI id; LUN 0 of it is asked.
            cdb: the command.
            data: what goes to the target.
            receive: bytes that come from it, at most.
            signal: tells the program at once; without, ``signal()`` does, for several commands together.

        Returns:
            The command: ``process`` returns it when it has ended.

        Raises:
            StateError: as many are under way as there are tags.
            ValueError: there is more data than ``transfer_size``, or data in both directions.
        """
        length = len(data) or receive
        if length > self._transfer_size or (data and receive):
            raise ValueError(f"{len(data)} bytes out and {receive} in: one of both, and {self._transfer_size} at most")
        if not self._free:
            raise StateError(f"{self._tags} commands are under way: process() until one has ended")
        request = ScsiRequest(target, cdb, data, receive, self._free.pop(0))
        self._requests[request.tag] = request
        buffer = self._data + request.tag * self._transfer_size
        self._write(buffer, data)
        self._fill_block(request, buffer, length)
        at = self._slot(self._next_slot)
        self._next_slot += 1
        self._write(at + Slot.BLOCK, _WORD.pack(self._block(request.tag)))
        self._write(at + Slot.ENTRY, _WORD.pack(at + Slot.FULL))
        if signal:
            self.signal()
        return request

    def _fill_block(self, request: ScsiRequest, buffer: int, length: int) -> None:
        block = bytearray(BLOCK_SIZE)
        at = self._block(request.tag)
        messages = bytes([Message.IDENTIFY | 0x40, Message.SIMPLE_QUEUE_TAG, request.tag])
        _WORD.pack_into(block, RequestBlock.SELECT, request.target << 16)
        for place, count, address in (
            (RequestBlock.MESSAGE_PAIR, len(messages), at + RequestBlock.MESSAGE),
            (RequestBlock.COMMAND_PAIR, len(request.cdb), at + RequestBlock.COMMAND),
            (RequestBlock.DATA_PAIR, length, buffer),
            (RequestBlock.STATUS_PAIR, 1, at + RequestBlock.STATUS),
        ):
            _PAIR.pack_into(block, place, count, address)
        _WORD.pack_into(block, RequestBlock.ENDED, self._ended[request.tag])
        block[RequestBlock.STATUS] = _NO_STATUS
        block[RequestBlock.MESSAGE : RequestBlock.MESSAGE + len(messages)] = messages
        block[RequestBlock.COMMAND : RequestBlock.COMMAND + len(request.cdb)] = request.cdb
        self._write(at, block)

    def signal(self) -> None:
        """Has the program look for new commands."""
        self._registers.istat0 = 0x20

    def process(self, timeout: float | None = 0.0) -> list[ScsiRequest]:
        """Waits for an interrupt, does what it asks for, and collects what has ended.

        Args:
            timeout: seconds; 0 to look whether there is one, None for the connection's own.

        Returns:
            The commands that have ended.

        Raises:
            InterruptTimeoutError: none came in time.
            StateError: the program stopped for a reason there should not be: no such target, a phase or message out of
                place, a command that ended twice.
        """
        if timeout == 0.0:
            if not self._vector.poll():
                return []
        else:
            self._vector.wait(timeout)
        while True:
            status = self._registers.istat0
            if status.intf:
                # With SIGP left as it is: there may be a command the program has not seen.
                self._registers.istat0 = int(status) & 0x20 | 0x04
            if status.dip or status.sip:
                self._serve()
            if not (status.intf or status.dip or status.sip):
                break
        self._vector.irq.unmask()
        return self.collect()

    def _serve(self) -> None:
        """The program has stopped."""
        registers = self._registers
        scsi, dma = self._clear_causes()
        if scsi == ScsiInterrupt.PHASE_MISMATCH and not dma:
            # The target moves on, with less data than there was room for; or goes, and comes back for the rest.
            block = int(registers.dsa)
            self._write(block + RequestBlock.DATA_PAIR, _PAIR.pack(registers.dbc.count, int(registers.dnad)))
            registers.dsp = self._labels["dispatch"]
            return
        if scsi or dma:
            raise StateError(
                f"the program stopped at {int(registers.dsp):#x} by {scsi!r}, {dma!r}, code {int(registers.dsps):#x}, "
                f"with DSA {int(registers.dsa):#x}"
            )

    def _clear_causes(self) -> tuple[ScsiInterrupt, DmaInterrupt]:
        scsi = ScsiInterrupt(int(self._registers.sist))
        return scsi, DmaInterrupt(int(self._registers.dstat) & 0x7F)

    def collect(self) -> list[ScsiRequest]:
        """What has ended, without a look at interrupts.

        Raises:
            StateError: a command ended twice, or one that nobody sent.
        """
        done = []
        for tag in range(self._tags):
            block = self._block(tag)
            ended = _WORD.unpack(self._read(block + RequestBlock.ENDED, 4))[0]
            if ended == self._ended[tag]:
                continue
            request = self._requests.pop(tag, None)
            if request is None or ended != self._ended[tag] + 1:
                raise StateError(f"tag {tag} has ended {ended} commands, {self._ended[tag]} were sent: {request}")
            self._ended[tag] = ended
            request.status = Status(self._read(block + RequestBlock.STATUS, 1)[0])
            left, _ = _PAIR.unpack(self._read(block + RequestBlock.DATA_PAIR, 8))
            if request.receive:
                request.data = self._read(self._data + tag * self._transfer_size, request.receive - left)
            self._free.append(tag)
            done.append(request)
        return done

    def execute(
        self, target: int, cdb: bytes, *, data: bytes = b"", receive: int = 0, timeout: float | None = None
    ) -> bytes:
        """Carries a command out, while none is under way; arguments are those of ``submit``.

        Returns:
            What was received.

        Raises:
            ScsiError: it failed.
            InterruptTimeoutError: it did not end.
        """
        request = self.submit(target, cdb, data=data, receive=receive)
        while request.status is None:
            self.process(timeout)
        if request.status is Status.CHECK_CONDITION:
            raise ScsiError(request, Sense.unpack(self.execute(target, _REQUEST_SENSE, receive=252, timeout=timeout)))
        if request.status is not Status.GOOD:
            raise ScsiError(request, None)
        return request.data if receive else b""

    # Where the controller is.

    def moved_to(self, client: VfioUserClient) -> None:
        """The controller is there from now on, by a migration that took its memory and its interrupts along."""
        self.client = client
        self._registers = view_registers(Lsi53c895aRegisters, client.region(_REGISTER_BAR))
        self._vector = client.irq(IrqIndex.INTX)[0]

    def _slot(self, index: int) -> int:
        return self._slots + SLOT_SIZE * (index % self._slot_count)

    def _block(self, tag: int) -> int:
        return self._blocks + BLOCK_SIZE * tag

    def _write(self, iova: int, data: bytes | bytearray) -> None:
        self.client.space.write(iova, data)

    def _read(self, iova: int, count: int) -> bytes:
        return self.client.space.read(iova, count)

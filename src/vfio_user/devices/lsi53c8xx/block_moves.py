"""Block moves: bytes between the SCSI bus and memory, and what happens when the bus is in another phase.

A block move keeps what is left of it in DBC, DNAD and DNAD64, so it can stop and go on at any byte.

Ref: LSI53C895A Technical Manual, 5.3 ("Block Move Instructions"), 2.2.16 ("Phase mismatch handling in SCRIPTS"), 4.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from vfio_user.devices.lsi53c8xx.waiting import Waiting
from vfio_user.hardware.lsi53c8xx.interrupts import DmaInterrupt, Phase, ScsiInterrupt
from vfio_user.hardware.lsi53c8xx.scripts import Addressing, BlockMove, sign_extend

if TYPE_CHECKING:
    from vfio_user.devices.lsi53c8xx.processor import ScriptsProcessor

__all__ = ["BlockMover"]

_COUNT = 0xFF_FFFF
_EN64DBMV, _EN64TIBMV, _TIMOD64 = 0x01, 0x02, 0x04
_ENPMJ, _PMJCTL, _ENNDJ = 0x80, 0x40, 0x20
_WSR = 0x01

#: What a word of zeros says. As in QEMU it is skipped: SeaBIOS has one in place of a data phase where there is none.
_ZERO = BlockMove(Phase.DATA_OUT, 0, Addressing.DIRECT, False)

#: Bytes that are moved in the time of one instruction, roughly.
_BYTES_PER_INSTRUCTION = 4096

#: Bytes that are moved by one call: the turn of everything else comes after.
_MOST_AT_ONCE = 1 << 20

#: A table entry: count and address.
_ENTRY = struct.Struct("<II")

#: Registers a table entry can take the high half of an address from. Ref: table 2.x of CCNTL1's 64TIMOD, "index mode".
_SELECTORS = ("mmrs", "mmws", "sfs", "drs", "sbms", "dbms")


class BlockMover:
    """The block moves of one processor.

    Args:
        processor: whose.

    Attributes:
        entry: the first word of the table entry in use.
    """

    def __init__(self, processor: ScriptsProcessor) -> None:
        self._processor = processor
        self._core, self._memory, self._values = processor.core, processor.memory, processor.values
        slot = processor.slot
        self._dbc, self._dnad, self._dsa, self._dsp = slot("dbc"), slot("dnad"), slot("dsa"), slot("dsp")
        self._dsps, self._sfbr, self._sidl, self._scntl2 = slot("dsps"), slot("sfbr"), slot("sidl"), slot("scntl2")
        self.entry = 0
        self._has_64_bits = processor.has_64_bits
        if self._has_64_bits:
            self._ccntl0, self._ccntl1, self._dnad64 = slot("ccntl0"), slot("ccntl1"), slot("dnad64")
            self._sbms, self._dbms, self._drs, self._sfs = slot("sbms"), slot("dbms"), slot("drs"), slot("sfs")
            self._pmjad1, self._pmjad2, self._rbc, self._ua = slot("pmjad1"), slot("pmjad2"), slot("rbc"), slot("ua")
            self._esa, self._ia, self._sbc, self._csbc = slot("esa"), slot("ia"), slot("sbc"), slot("csbc")
            scratch = slot("scratch")
            self._selectors = [scratch + index for index in range(16)] + [slot(name) for name in _SELECTORS]

    def compile(self, instruction: BlockMove) -> Callable[[int], bool | None]:
        """The function of a block move."""
        if instruction.addressing is Addressing.TABLE:
            return self._table
        if instruction == _ZERO:
            return self._skip
        if not instruction.count:
            return lambda _second: self._processor.interrupt_dma(DmaInterrupt.ILLEGAL_INSTRUCTION)
        return self._direct if instruction.addressing is Addressing.DIRECT else self._indirect

    def _skip(self, _second: int) -> None:
        values = self._processor.values
        values[self._dsp] = values[self._dsp] - 4 & 0xFFFF_FFFF

    def _direct(self, address: int) -> bool | None:
        values = self._values
        high = 0
        if self._has_64_bits:
            high = values[self._sbms]
            if values[self._ccntl1] & _EN64DBMV:
                # A third word follows.
                at = values[self._dsp]
                high = values[self._dbms] = self._memory.read_word(values[self._sfs] << 32 | at & ~3)
                values[self._dsp] = at + 4 & 0xFFFF_FFFF
        return self._move(values[self._dbc], high << 32 | address, begins=True)

    def _indirect(self, second: int) -> bool | None:
        high = self._values[self._sbms] if self._has_64_bits else 0
        address = self._memory.read_word(high << 32 | second & ~3)
        return self._move(self._values[self._dbc], high << 32 | address, begins=True)

    def _table(self, second: int) -> bool | None:
        values = self._values
        entry = values[self._dsa] + sign_extend(second) & 0xFFFF_FFFC
        high = 0
        if self._has_64_bits:
            high = values[self._drs]
            values[self._esa] = entry
        count, address = self._memory.read_pair(high << 32 | entry)
        if not count & _COUNT:
            return self._processor.interrupt_dma(DmaInterrupt.ILLEGAL_INSTRUCTION)
        if self._has_64_bits:
            high = values[self._sbms]
            mode = values[self._ccntl1] & (_EN64TIBMV | _TIMOD64)
            if mode == _EN64TIBMV | _TIMOD64:
                high = values[self._dbms] = count >> 24
            elif mode & _EN64TIBMV:
                selector = count >> 24 & 0x1F
                if selector >= len(self._selectors):
                    return self._processor.interrupt_dma(DmaInterrupt.ILLEGAL_INSTRUCTION)
                high = values[self._dbms] = values[self._selectors[selector]]
            self.entry = count
        return self._move(values[self._dbc] & ~_COUNT | count & _COUNT, high << 32 | address, begins=True)

    def several(self, first: int, second: int, number: int) -> int:
        """Table moves that follow each other, as do their entries, amid the data of a command: done in one go.

        Args:
            first: the first word of all of them.
            second: the second word of the first.
            number: how many.

        Returns:
            How many were done. The next one is more than moving bytes: it ends a piece, or has to be waited for, or
            has something wrong.
        """
        values, core, memory = self._values, self._core, self._memory
        wanted, nexus = first >> 24 & 7, core.nexus
        if nexus is None or nexus.task is None or core.phase != wanted or wanted > Phase.DATA_IN or core.acknowledge:
            return 0
        mode = values[self._ccntl1] & (_EN64TIBMV | _TIMOD64)
        # Where an entry's upper byte is part of its address, as Linux has it; or nothing is.
        is_long = mode == _EN64TIBMV | _TIMOD64
        if not is_long and (mode & _EN64TIBMV or values[self._sbms]):
            return 0
        entry = values[self._dsa] + sign_extend(second) & 0xFFFF_FFFC
        place = values[self._drs] << 32 | entry
        table = memory.view_nowait(place, 8 * number)
        if table is None or entry + 8 * number > 1 << 32:
            return 0
        left = min(nexus.task.in_hand, _MOST_AT_ONCE)
        ranges: list[tuple[int, int]] = []
        word = total = 0
        for count, address in _ENTRY.iter_unpack(table):
            length = count & _COUNT
            if is_long:
                address |= count >> 24 << 32
            if not length or length > left or memory.is_own(address, length):
                break
            if address < place + 8 * number and place < address + length:
                break  # the table itself
            left -= length
            total += length
            word = count
            ranges.append((address, length))
        if not ranges:
            return 0
        address, length = ranges[-1]
        had_moved, nexus.has_moved = nexus.has_moved, True
        if wanted == Phase.DATA_IN:
            views = memory.dma.views_nowait(ranges)
            if views is None or not nexus.task.read_into(views):
                nexus.has_moved = had_moved
                return 0
            values[self._sfbr] = views[-1][0]
        else:
            views = [view for piece in ranges if (view := memory.dma.view_nowait(*piece)) is not None]
            if len(views) < len(ranges):
                nexus.has_moved = had_moved
                return 0
            for view in views:
                nexus.task.write(view)
        done = len(ranges)
        self.entry = word
        if is_long:
            values[self._dbms] = word >> 24
        values[self._dbc] = first & ~_COUNT
        values[self._dsps] = second + 8 * (done - 1)
        values[self._esa] = entry + 8 * (done - 1)
        values[self._dnad] = address + length & 0xFFFF_FFFF
        values[self._dnad64] = address + length >> 32
        values[self._sbc] = length
        values[self._csbc] = values[self._csbc] + total & 0xFFFF_FFFF
        self._processor.charge += sum(length // _BYTES_PER_INSTRUCTION for _, length in ranges)
        return done

    def go_on(self) -> bool:
        """Moves on, from where registers say; returns as an instruction does."""
        values = self._values
        high = values[self._dnad64] << 32 if self._has_64_bits else 0
        return self._move(values[self._dbc], high | values[self._dnad], begins=False)

    def _move(self, command: int, address: int, *, begins: bool) -> bool:
        """Moves what there is to move now; returns as an instruction does."""
        processor, core, values, memory = self._processor, self._core, self._values, self._memory
        wanted = command >> 24 & 7
        count = command & _COUNT
        is_input = wanted & 1
        moved = 0
        stops: bool | None = False
        if begins:
            if self._has_64_bits:
                values[self._sbc] = 0
            if core.acknowledge:
                core.clear_acknowledge()
        try:
            while count:
                phase = core.phase
                if phase is None:
                    return processor.wait_for(Waiting.MOVE)
                if phase != wanted and not core.follow(wanted):
                    stops = None
                    break
                if is_input:
                    piece = core.take(count)
                    length = len(piece)
                    if not length:
                        if core.acknowledge:
                            # The message is at its end: nothing more comes before the initiator has seen it.
                            count = 0
                        elif core.phase is phase:
                            return processor.wait_for(Waiting.MOVE)
                        continue
                    if begins:
                        values[self._sfbr] = piece[0]
                        begins = False
                    if phase is not Phase.DATA_IN:
                        values[self._sidl] = piece[-1]
                    memory.write(address, piece)
                else:
                    length = core.room(count)
                    source = memory.view(address, length)
                    piece = memory.read(address, length) if source is None else source
                    if begins and wanted != Phase.DATA_OUT:
                        values[self._sfbr] = piece[0]
                        begins = False
                    core.give(piece, last=length == count)
                count -= length
                address += length
                moved += length
        finally:
            values[self._dbc] = command & ~_COUNT | count
            values[self._dnad] = address & 0xFFFF_FFFF
            if self._has_64_bits:
                values[self._dnad64] = address >> 32 & 0xFFFF_FFFF
                values[self._sbc] += moved
                if wanted <= Phase.DATA_IN:
                    values[self._csbc] = values[self._csbc] + moved & 0xFFFF_FFFF
            processor.charge += moved // _BYTES_PER_INSTRUCTION
        if stops is None:
            return self._mismatch(wanted, count) or processor.charge > processor.most_charge
        return processor.charge > processor.most_charge

    def _mismatch(self, wanted: int, count: int) -> bool:
        """The target changed the phase before the count was at its end."""
        processor = self._processor
        values = processor.values
        if self._has_64_bits:
            control = values[self._ccntl0]
            if control & _ENPMJ and (wanted <= Phase.DATA_IN or control & _ENNDJ):
                kind = values[self._dbc] >> 28 & 3
                upper = self.entry if kind & 1 else values[self._dbc]
                values[self._rbc] = upper & ~_COUNT | count
                values[self._ua] = values[self._dnad]
                words = 3 if not kind and values[self._ccntl1] & _EN64DBMV else 2
                values[self._ia] = values[self._dsp] - 4 * words & 0xFFFF_FFFF
                if control & _PMJCTL:
                    second = bool(wanted & 1)
                else:
                    second = bool(values[self._scntl2] & _WSR)
                values[self._dsp] = values[self._pmjad2 if second else self._pmjad1]
                return False
        return processor.interrupt_scsi(ScsiInterrupt.PHASE_MISMATCH)

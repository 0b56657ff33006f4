"""The SCRIPTS processor: fetches instructions, and knows what to do when one has to wait.

Theory of operation. An instruction is decoded once for each first word, into a function that gets the second word
(``instructions``, ``block_moves``), carries the instruction out, and says whether the processor goes on. DSP points
behind an instruction while it is carried out; DBC and DSPS hold its words.

An instruction that has to wait - for a phase, a reselection, a disconnect, a target that is slow - says what for by
``wait_for``. When that may have come, ``wake`` carries the same instruction out again, from the words in DBC and DSPS;
a block move goes on where it was, from DBC, DNAD and DNAD64. So registers are all the state there is.

A program may never end. The processor runs a slice of it at a time, from the event loop, and other work gets its turn.

Ref: LSI53C895A Technical Manual, 2.2.1 ("SCRIPTS Processor"), chapter 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vfio_user.devices.lsi53c8xx.block_moves import BlockMover
from vfio_user.devices.lsi53c8xx.instructions import Execute, compile_instruction
from vfio_user.devices.lsi53c8xx.runs import NO_RUN, Runs
from vfio_user.devices.lsi53c8xx.waiting import Waiting
from vfio_user.errors import DeviceError
from vfio_user.hardware.lsi53c8xx.interrupts import DmaInterrupt, ScsiInterrupt
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c895aRegisters
from vfio_user.hardware.lsi53c8xx.scripts import decode

if TYPE_CHECKING:
    from vfio_user.devices.lsi53c8xx.chip_memory import ChipMemory
    from vfio_user.devices.lsi53c8xx.interrupt_unit import InterruptUnit
    from vfio_user.devices.lsi53c8xx.scsi_core import ScsiCore
    from vfio_user.hardware.lsi53c8xx.registers import Lsi53c810Registers

__all__ = ["SLICE", "ScriptsProcessor"]

#: Instructions in one slice. A millisecond or two: longer than any command takes, shorter than anybody notices.
SLICE = 2000

#: Instructions' worth of time it takes to make a run.
_RUN_COST = 500

#: First words kept as functions. A driver's program has some hundred different ones; a program that makes up others all
#: the time must not fill our memory.
_DECODED_CAPACITY = 4096

_SINGLE_STEP = 0x10
_CONNECTED_SCNTL1, _CONNECTED_ISTAT0 = 0x10, 0x08
_SDU = 0x80
_LDSC = 0x02
_COM = 0x01
_SSID_VALID = 0x80


class ScriptsProcessor:
    """See the module.

    Args:
        registers: the chip's.
        memory: what it reaches.
        core: the bus.
        interrupts: what tells the driver.
        call_soon: runs a slice from the event loop.
        locate: is called before a slice, to bring ``memory`` up to date.

    Attributes:
        registers: as given, like the following.
        memory: see there.
        core: see there.
        interrupts: see there.
        is_running: it was started, and nothing has stopped it.
        waiting: what it waits for.
        carry: the carry of its arithmetic.
        charge: instructions' worth of time the present slice has used besides: bytes moved.
        most_charge: with more than that, the slice has had its turn.
        must_stop: the slice is to end, an instruction having changed how to run.
        runs: stretches of the program as single functions.
        on_wait: told what it begins to wait for, and that it has ended.
        is_selecting: it has selected an id nobody has.
        on_select: told so.
    """

    def __init__(
        self,
        registers: Lsi53c810Registers,
        memory: ChipMemory,
        core: ScsiCore,
        interrupts: InterruptUnit,
        *,
        call_soon: Callable[[Callable[[], None]], None],
        locate: Callable[[], None],
    ) -> None:
        self.registers = registers
        self.memory = memory
        self.core = core
        self.interrupts = interrupts
        self.values = registers.stored_values
        self.has_64_bits = isinstance(registers, Lsi53c895aRegisters)
        self.is_running = False
        self.waiting = Waiting.NOTHING
        self.carry = 0
        self.charge = 0
        self.most_charge = SLICE
        self.on_wait: Callable[[Waiting], None] = _ignore
        self.on_select: Callable[[], None] = _ignore_nothing
        self.is_selecting = False
        self._call_soon = call_soon
        self._locate = locate
        self._is_scheduled = False
        self._in_slice = False
        self.must_stop = False
        self._slots = {name: register.slot for name, register in type(registers).layout.registers.items()}
        self._decoded: dict[int, Execute] = {}
        self._dsp, self._dsps, self._dbc = self.slot("dsp"), self.slot("dsps"), self.slot("dbc")
        self._dcntl, self._sien, self._ssid = self.slot("dcntl"), self.slot("sien"), self.slot("ssid")
        self._scntl1, self._scntl2, self._istat0 = self.slot("scntl1"), self.slot("scntl2"), self.slot("istat0")
        self._sstat2, self._sfbr = self.slot("sstat2"), self.slot("sfbr")
        self._sfs = self.slot("sfs") if self.has_64_bits else -1
        self.mover = BlockMover(self)
        self.runs = Runs(self)

    def slot(self, name: str) -> int:
        """Where a register's value stands in ``values``."""
        return self._slots[name]

    # ---- What starts and stops it ----

    def start(self) -> None:
        """Starts it at DSP, soon."""
        self._set_waiting(Waiting.NOTHING)
        self.is_running = True
        self.is_selecting = False
        self._schedule()

    def stop(self) -> None:
        """Stops it, after the present instruction."""
        self.is_running = False
        self.must_stop = True
        self._set_waiting(Waiting.NOTHING)

    def interrupt_dma(self, cause: DmaInterrupt) -> bool:
        """Stops with a DMA interrupt; returns True, what an instruction returns that stops."""
        self.stop()
        self.interrupts.post_dma(int(cause))
        return True

    def interrupt_scsi(self, cause: ScsiInterrupt) -> bool:
        """A SCSI interrupt, which may stop it; returns whether it did."""
        stops = self.interrupts.post_scsi(int(cause))
        if stops:
            self.stop()
        return stops

    def wait_for(self, what: Waiting) -> bool:
        """Has to wait; returns True, what an instruction returns that does."""
        self._set_waiting(what)
        return True

    def wake(self) -> None:
        """What it waits for may have come: it looks, soon."""
        if self.waiting is not Waiting.NOTHING:
            self._schedule()

    def break_slice(self) -> None:
        """Ends the present slice after the present instruction: how to run has changed."""
        self.must_stop = True

    @property
    def has_had_its_turn(self) -> bool:
        """The present slice has moved as many bytes as one may."""
        return self.charge > self.most_charge

    # ---- What the bus does, as the registers show it ----

    def select(self, target: int, *, attention: bool) -> None:
        """Selects a target, the bus being free."""
        if self.core.select(target, attention=attention):
            self._connected()
        else:
            self.is_selecting = True
            self.on_select()

    def reselect(self) -> bool | None:
        """Lets a target reselect, the bus being free; returns as an instruction does."""
        target = self.core.reselect()
        self.values[self._ssid] = _SSID_VALID | target
        if not self.values[self._dcntl] & _COM:
            # As the 53C700 did: both ids as bits.
            self.values[self._sfbr] = (1 << target | 1 << self.core.own_id) & 0xFF
        self._connected()
        if self.values[self._sien] & ScsiInterrupt.RESELECTED:
            return self.interrupt_scsi(ScsiInterrupt.RESELECTED)
        return None

    def _connected(self) -> None:
        values = self.values
        values[self._scntl1] |= _CONNECTED_SCNTL1
        values[self._istat0] |= _CONNECTED_ISTAT0
        values[self._scntl2] |= _SDU
        values[self._sstat2] &= ~_LDSC

    def disconnected(self, expected: bool) -> None:
        """The bus has become free: as the target had said it would, or not."""
        self.show_bus_free()
        if not expected and self.values[self._scntl2] & _SDU:
            self.interrupt_scsi(ScsiInterrupt.UNEXPECTED_DISCONNECT)
        else:
            self.wake()

    def show_bus_free(self) -> None:
        """Registers say that nobody is connected."""
        values = self.values
        values[self._scntl1] &= ~_CONNECTED_SCNTL1
        values[self._istat0] &= ~_CONNECTED_ISTAT0
        values[self._sstat2] |= _LDSC

    def went_on(self) -> None:
        """A target is in another phase, or wants to reselect."""
        if self.waiting is not Waiting.NOTHING:
            self.wake()
            return
        # Without a program, the driver has to be told, if it wants to be.
        tells = not self.is_running and self.values[self._sien] & ScsiInterrupt.RESELECTED
        if tells and self.core.wants_reselect and self.core.nexus is None:
            self.reselect()

    def time_out_selection(self) -> None:
        """Nobody has answered the selection."""
        if self.is_selecting:
            if self.is_running and self.waiting is Waiting.NOTHING:
                # It takes longer than the instructions that can be carried out before one needs the target.
                self._call_soon(self.time_out_selection)
                return
            self.is_selecting = False
            self.interrupt_scsi(ScsiInterrupt.SELECTION_TIMEOUT)

    def _set_waiting(self, what: Waiting) -> None:
        if self.waiting is not what:
            self.waiting = what
            self.on_wait(what)

    def _schedule(self) -> None:
        if not self._is_scheduled and not self._in_slice:
            self._is_scheduled = True
            self._call_soon(self._slice)

    def reset(self) -> None:
        """Stops, and forgets what is in no register."""
        self.stop()
        self.carry = 0
        self.is_selecting = False
        self.mover.entry = 0

    def save(self) -> dict[str, Any]:
        """What no register shows."""
        return {
            "is_running": self.is_running,
            "waiting": self.waiting.value,
            "carry": self.carry,
            "is_selecting": self.is_selecting,
            "entry": self.mover.entry,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Puts that back; it runs once ``resume`` is called."""
        self.is_running, self.waiting = state["is_running"], Waiting(state["waiting"])
        self.carry, self.is_selecting, self.mover.entry = state["carry"], state["is_selecting"], state["entry"]

    def resume(self) -> None:
        """After ``load``, which dropped what was put off: puts it off again."""
        self._is_scheduled = False
        if self.is_running:
            self._schedule()
        if self.is_selecting:
            self.on_select()

    # ---- Running ----

    def _slice(self) -> None:
        self._is_scheduled = False
        if self.is_running:
            self._run_slice()

    def _run_slice(self) -> None:
        self._in_slice = True
        self.must_stop = False
        self.charge = 0
        self._locate()
        self.runs.check()
        try:
            self._run()
        except DeviceError:
            # Nobody answers at that address, or not that way.
            self.interrupt_dma(DmaInterrupt.BUS_FAULT)
        finally:
            self._in_slice = False
            self.interrupts.update()
        if self.is_running and self.waiting is Waiting.NOTHING:
            self._schedule()

    def _run(self) -> None:
        values, dsp_slot, dsps_slot, dbc_slot, decoded = self.values, self._dsp, self._dsps, self._dbc, self._decoded
        memory = self.memory
        ram, base, last = memory.ram_words, memory.ram_base, len(memory.ram) - 8
        high = values[self._sfs] << 32 if self._sfs >= 0 else 0
        if high:
            base = -1 << 65
        if self.waiting is not Waiting.NOTHING and self._resume():
            return
        if values[self._dcntl] & _SINGLE_STEP:
            self._step()
            return
        runs, left = self.runs.by_address, SLICE
        while left > 0:
            address = values[dsp_slot] & ~3
            offset = address - base
            if 0 <= offset <= last:
                run = runs.get(address)
                if run is None:
                    run = self.runs.reached(address)
                    if run is not NO_RUN:
                        left -= _RUN_COST
                if run.length:
                    outcome = run.function()
                    left -= run.length
                    if outcome is None and not self.must_stop:
                        continue
                    if outcome is not False:
                        return
                    address = values[dsp_slot]
                    offset = address - base
                offset >>= 2
                first, second = ram[offset], ram[offset + 1]
            else:
                first, second = memory.read_word(high | address), memory.read_word(high | address + 4)
            left -= 1
            values[dsp_slot] = address + 8 & 0xFFFF_FFFF
            values[dbc_slot], values[dsps_slot] = first, second
            execute = decoded.get(first)
            if execute is None:
                execute = self.function_of(first)
            if execute(second):
                return

    def _step(self) -> None:
        """Carries out one instruction, in single-step mode."""
        high = self.values[self._sfs] << 32 if self._sfs >= 0 else 0
        address = self.values[self._dsp] & ~3
        first, second = self.memory.read_word(high | address), self.memory.read_word(high | address + 4)
        self.values[self._dsp] = address + 8 & 0xFFFF_FFFF
        self.values[self._dbc], self.values[self._dsps] = first, second
        self.function_of(first)(second)
        if self.is_running and self.waiting is Waiting.NOTHING:
            self.interrupt_dma(DmaInterrupt.SINGLE_STEP)

    def _resume(self) -> bool:
        """Carries out again what waits; returns whether it still does, or has stopped."""
        waiting, self.waiting = self.waiting, Waiting.NOTHING
        if waiting is Waiting.MOVE:
            stopped = self.mover.go_on()
        else:
            stopped = bool(self.function_of(self.values[self._dbc])(self.values[self._dsps]))
        if self.waiting is Waiting.NOTHING:
            self.on_wait(Waiting.NOTHING)
        if not stopped and self.values[self._dcntl] & _SINGLE_STEP:
            return self.interrupt_dma(DmaInterrupt.SINGLE_STEP)
        return stopped or self.must_stop

    def function_of(self, word: int) -> Execute:
        """The function of a first word, made when it is first met."""
        execute = self._decoded.get(word)
        if execute is None:
            if len(self._decoded) >= _DECODED_CAPACITY:
                self._decoded.clear()
            instruction = decode(word)
            execute = self._decoded[word] = (
                self._illegal if instruction is None else compile_instruction(self, instruction)
            )
        return execute

    def _illegal(self, _second: int) -> bool:
        return self.interrupt_dma(DmaInterrupt.ILLEGAL_INSTRUCTION)


def _ignore(_waiting: Waiting) -> None:
    pass


def _ignore_nothing() -> None:
    pass

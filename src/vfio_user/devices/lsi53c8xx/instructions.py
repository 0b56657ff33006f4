"""Instructions as functions: one for each first word, with everything the word says decided beforehand.

A function gets the second word. It returns True if the processor is to stop there, because it waits or was stopped.

Ref: LSI53C895A Technical Manual, 5.4 to 5.8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vfio_user.devices.lsi53c8xx.run_writer import plain_word
from vfio_user.devices.lsi53c8xx.waiting import Waiting
from vfio_user.hardware.lsi53c8xx.interrupts import DmaInterrupt, Signal
from vfio_user.hardware.lsi53c8xx.scripts import (
    BlockMove,
    BusOperation,
    BusOperationKind,
    Instruction,
    LoadStore,
    MemoryMove,
    Operator,
    RegisterMove,
    RegisterOperation,
    TransferControl,
    TransferKind,
    sign_extend,
)

if TYPE_CHECKING:
    from vfio_user.devices.lsi53c8xx.processor import ScriptsProcessor

__all__ = ["Execute", "compile_instruction"]

#: An instruction, given its second word; True if the processor stops there.
Execute = Callable[[int], "bool | None"]

_WORD = 0xFFFF_FFFF
_SFBR = 0x08
_SIGP = 0x20
_TARGET_MODE = 0x01

#: Bytes a memory move carries at a time, and what that costs of a slice.
_PIECE = 1 << 16
_BYTES_PER_INSTRUCTION = 4096


def compile_instruction(processor: ScriptsProcessor, instruction: Instruction) -> Execute:
    """Makes the function of an instruction."""
    match instruction:
        case BlockMove():
            return processor.mover.compile(instruction)
        case TransferControl():
            return _transfer_control(processor, instruction)
        case RegisterMove():
            return _register_move(processor, instruction)
        case LoadStore():
            return _load_store(processor, instruction)
        case MemoryMove():
            return _memory_move(processor, instruction)
        case BusOperation():
            return _bus_operation(processor, instruction)


# ---- Transfer control ----


def _transfer_control(processor: ScriptsProcessor, instruction: TransferControl) -> Execute:
    act = _transfer(processor, instruction)
    core, values = processor.core, processor.values
    sfbr = processor.slot("sfbr")
    if_true, wait, phase, data = instruction.if_true, instruction.wait, instruction.phase, instruction.data
    mask = ~instruction.mask & 0xFF
    compared = 0 if data is None else data & mask
    if not wait and not instruction.carry:
        if phase is None and data is None:
            return act if if_true else _no_operation
        if phase is None:

            def act_on_data(second: int) -> bool | None:
                return act(second) if (values[sfbr] & mask == compared) is if_true else None

            return act_on_data

    def act_on_condition(second: int) -> bool | None:
        if wait and core.phase is None:
            return processor.wait_for(Waiting.PHASE)
        if phase is not None and (core.latched is phase) is not if_true:
            return None
        if data is not None and (values[sfbr] & mask == compared) is not if_true:
            return None
        if instruction.carry and bool(processor.carry) is not if_true:
            return None
        if not if_true and phase is None and data is None and not instruction.carry:
            return None
        return act(second)

    return act_on_condition


def _no_operation(_second: int) -> None:
    return None


def _transfer(processor: ScriptsProcessor, instruction: TransferControl) -> Execute:
    values = processor.values
    dsp, temp = processor.slot("dsp"), processor.slot("temp")
    relative = instruction.relative

    def jump(second: int) -> None:
        values[dsp] = values[dsp] + sign_extend(second) & _WORD if relative else second

    def call(second: int) -> None:
        values[temp] = values[dsp]
        values[dsp] = values[dsp] + sign_extend(second) & _WORD if relative else second

    def give_back(_second: int) -> None:
        values[dsp] = values[temp]

    def interrupt(_second: int) -> bool:
        return processor.interrupt_dma(DmaInterrupt.SCRIPTS_INTERRUPT)

    def interrupt_on_the_fly(_second: int) -> None:
        processor.interrupts.post_on_the_fly()

    if instruction.kind is TransferKind.JUMP:
        return jump
    if instruction.kind is TransferKind.CALL:
        return call
    if instruction.kind is TransferKind.RETURN:
        return give_back
    return interrupt_on_the_fly if instruction.on_the_fly else interrupt


# ---- Registers ----


def _register_move(processor: ScriptsProcessor, instruction: RegisterMove) -> Execute:
    values, sfbr = processor.values, processor.slot("sfbr")
    read, write = processor.registers.read, processor.registers.write
    register, operator, data = instruction.register, instruction.operator, instruction.data
    combine = _operation(processor, operator)
    from_sfbr = instruction.operation is RegisterOperation.SFBR_TO_REGISTER or register == _SFBR
    to_sfbr = instruction.operation is RegisterOperation.REGISTER_TO_SFBR or register == _SFBR
    use_sfbr = instruction.use_sfbr
    # A move of data needs not read the register, whose reading may have effects.
    needs_register = not from_sfbr and not (
        operator is Operator.MOVE and instruction.operation is not RegisterOperation.REGISTER_TO_SFBR
    )
    if operator is Operator.MOVE and instruction.operation is RegisterOperation.REGISTER_TO_SFBR:

        def register_to_sfbr(_second: int) -> None:
            values[sfbr] = read(register, 1) if register != _SFBR else values[sfbr]

        return register_to_sfbr

    def move(_second: int) -> bool | None:
        if needs_register:
            operand = read(register, 1)
        else:
            operand = values[sfbr] if from_sfbr else 0
        result = combine(operand, values[sfbr] if use_sfbr else data)
        if to_sfbr:
            values[sfbr] = result
            return None
        write(register, 1, result)
        return processor.must_stop

    return move


def _operation(processor: ScriptsProcessor, operator: Operator) -> Callable[[int, int], int]:
    """Combines two bytes, and keeps the carry."""

    def shift_left(operand: int, _data: int) -> int:
        shifted = operand << 1 | processor.carry
        processor.carry = shifted >> 8
        return shifted & 0xFF

    def shift_right(operand: int, _data: int) -> int:
        carried, processor.carry = processor.carry, operand & 1
        return operand >> 1 | carried << 7

    def add(operand: int, data: int) -> int:
        total = operand + data
        processor.carry = total >> 8
        return total & 0xFF

    def add_with_carry(operand: int, data: int) -> int:
        total = operand + data + processor.carry
        processor.carry = total >> 8
        return total & 0xFF

    return {
        Operator.MOVE: lambda _operand, data: data,
        Operator.SHIFT_LEFT: shift_left,
        Operator.OR: lambda operand, data: operand | data,
        Operator.XOR: lambda operand, data: operand ^ data,
        Operator.AND: lambda operand, data: operand & data,
        Operator.SHIFT_RIGHT: shift_right,
        Operator.ADD: add,
        Operator.ADD_WITH_CARRY: add_with_carry,
    }[operator]


# ---- Memory ----


def _load_store(processor: ScriptsProcessor, instruction: LoadStore) -> Execute:
    if not processor.has_64_bits:  # the 53C810 has no such instructions
        return lambda _second: processor.interrupt_dma(DmaInterrupt.ILLEGAL_INSTRUCTION)
    values, memory = processor.values, processor.memory
    read, write = processor.registers.read, processor.registers.write
    dsa, drs = processor.slot("dsa"), processor.slot("drs")
    register, count, relative, is_load = (
        instruction.register,
        instruction.count,
        instruction.relative,
        instruction.is_load,
    )
    lowest = register & 3
    selector = drs if relative else processor.slot("mmrs" if is_load else "mmws")
    plain = plain_word(processor, register) if count == 4 else None
    if plain is not None:
        return _plain_load_store(processor, instruction, plain, selector)

    def load_store(second: int) -> bool | None:
        address = values[dsa] + sign_extend(second) & _WORD if relative else second
        if address & 3 != lowest:
            return processor.interrupt_dma(DmaInterrupt.ILLEGAL_INSTRUCTION)
        address |= values[selector] << 32
        if count == 4:
            if is_load:
                write(register, 4, memory.read_word(address))
            else:
                memory.write_word(address, read(register, 4))
        elif is_load:
            for index, byte in enumerate(memory.read(address, count)):
                _write_register(processor, register + index, byte)
        else:
            memory.write(address, bytes(read(register + index, 1) for index in range(count)))
        return processor.must_stop

    return load_store


def _plain_load_store(processor: ScriptsProcessor, instruction: LoadStore, slot: int, selector: int) -> Execute:
    """The same for a plain register: what programs do most, so with the fewest steps."""
    values, memory, ram = processor.values, processor.memory, processor.memory.ram_words
    dsa, size = processor.slot("dsa"), len(memory.ram)
    relative = instruction.relative

    def load(second: int) -> bool | None:
        address = values[dsa] + sign_extend(second) & _WORD if relative else second
        if address & 3:
            return processor.interrupt_dma(DmaInterrupt.ILLEGAL_INSTRUCTION)
        address |= values[selector] << 32
        offset = address - memory.ram_base
        values[slot] = ram[offset >> 2] if 0 <= offset < size else memory.read_word(address)
        return None

    def store(second: int) -> bool | None:
        address = values[dsa] + sign_extend(second) & _WORD if relative else second
        if address & 3:
            return processor.interrupt_dma(DmaInterrupt.ILLEGAL_INSTRUCTION)
        memory.write_word(address | values[selector] << 32, values[slot])
        return None

    return load if instruction.is_load else store


def _write_register(processor: ScriptsProcessor, register: int, byte: int) -> None:
    """Writes a register as SCRIPTS may: SFBR too."""
    if register == _SFBR:
        processor.values[processor.slot("sfbr")] = byte
    else:
        processor.registers.write(register, 1, byte)


def _memory_move(processor: ScriptsProcessor, instruction: MemoryMove) -> Execute:
    values, memory = processor.values, processor.memory
    dsp = processor.slot("dsp")
    count = instruction.count

    def move(source: int) -> bool | None:
        fetch_high = read_high = write_high = 0
        if processor.has_64_bits:
            fetch_high = values[processor.slot("sfs")] << 32
            read_high, write_high = values[processor.slot("mmrs")] << 32, values[processor.slot("mmws")] << 32
        destination = memory.read_word(fetch_high | values[dsp] & ~3)
        values[dsp] = values[dsp] + 4 & _WORD
        if not count or (source ^ destination) & 3:
            return processor.interrupt_dma(DmaInterrupt.ILLEGAL_INSTRUCTION)
        processor.charge += count // _BYTES_PER_INSTRUCTION
        source |= read_high
        destination |= write_high
        for done in range(0, count, _PIECE):
            length = min(_PIECE, count - done)
            memory.write(destination + done, memory.read(source + done, length))
        return processor.must_stop or processor.has_had_its_turn

    return move


# ---- The bus ----


def _bus_operation(processor: ScriptsProcessor, instruction: BusOperation) -> Execute:
    make: dict[BusOperationKind, Callable[[ScriptsProcessor, BusOperation], Execute]] = {
        BusOperationKind.SELECT: _select,
        BusOperationKind.WAIT_DISCONNECT: _wait_disconnect,
        BusOperationKind.WAIT_RESELECT: _wait_reselect,
        BusOperationKind.SET: _set_or_clear,
        BusOperationKind.CLEAR: _set_or_clear,
    }
    return make[instruction.kind](processor, instruction)


def _alternative(processor: ScriptsProcessor, instruction: BusOperation) -> Callable[[int], None]:
    """Goes to the address in the second word."""
    values, dsp = processor.values, processor.slot("dsp")

    def go(second: int) -> None:
        values[dsp] = values[dsp] + sign_extend(second) & _WORD if instruction.relative else second

    return go


def _select(processor: ScriptsProcessor, instruction: BusOperation) -> Execute:
    values, core = processor.values, processor.core
    slot = processor.slot
    dsa, scntl0, scntl3, sxfer, sdid = slot("dsa"), slot("scntl0"), slot("scntl3"), slot("sxfer"), slot("sdid")
    dbc, drs = slot("dbc"), slot("drs") if processor.has_64_bits else -1
    go = _alternative(processor, instruction)

    def select(second: int) -> bool | None:
        target = instruction.destination
        address = second
        if instruction.table:
            # The second word is the alternative; the offset of the table entry is the low part of the first.
            offset = sign_extend(values[dbc])
            high = values[drs] << 32 if drs >= 0 else 0
            entry = processor.memory.read_word(high | values[dsa] + offset & 0xFFFF_FFFC)
            values[scntl3] = entry >> 24
            values[sxfer] = entry >> 8 & 0xFF
            target = entry >> 16 & 15
        values[sdid] = target
        if core.acknowledge:
            core.clear_acknowledge()
        if core.nexus is not None:
            # It was reselected in the meantime, or never let go of the bus.
            go(address)
            return None
        if core.wants_reselect and not values[scntl0] & _TARGET_MODE:
            go(address)
            return processor.reselect()
        processor.select(target, attention=instruction.attention)
        return None

    return select


def _wait_disconnect(processor: ScriptsProcessor, _instruction: BusOperation) -> Execute:
    core, values, scntl0 = processor.core, processor.values, processor.slot("scntl0")

    def wait_disconnect(_second: int) -> bool | None:
        if values[scntl0] & _TARGET_MODE:
            core.free()
            return None
        if core.acknowledge:
            core.clear_acknowledge()
        if core.nexus is None:
            return None
        return processor.wait_for(Waiting.DISCONNECT)

    return wait_disconnect


def _wait_reselect(processor: ScriptsProcessor, instruction: BusOperation) -> Execute:
    values, core = processor.values, processor.core
    istat0 = processor.slot("istat0")
    go = _alternative(processor, instruction)

    def wait_reselect(second: int) -> bool | None:
        if core.acknowledge:
            core.clear_acknowledge()
        if core.nexus is not None:
            return None
        if core.wants_reselect:
            return processor.reselect()
        if values[istat0] & _SIGP:
            go(second)
            return None
        return processor.wait_for(Waiting.RESELECT)

    return wait_reselect


def _set_or_clear(processor: ScriptsProcessor, instruction: BusOperation) -> Execute:
    values, core = processor.values, processor.core
    socl, scntl0 = processor.slot("socl"), processor.slot("scntl0")
    sets = instruction.kind is BusOperationKind.SET
    signals = (Signal.ATN if instruction.attention else 0) | (Signal.ACK if instruction.acknowledge else 0)

    def set_or_clear(_second: int) -> bool | None:
        values[socl] = values[socl] | signals if sets else values[socl] & ~signals
        if instruction.carry:
            processor.carry = int(sets)
        if instruction.target:
            values[scntl0] = values[scntl0] | _TARGET_MODE if sets else values[scntl0] & ~_TARGET_MODE
        if instruction.attention:
            core.set_attention() if sets else core.clear_attention()
        if instruction.acknowledge and not sets:
            core.clear_acknowledge()
        # The target may have gone, unexpectedly.
        return not processor.is_running

    return set_or_clear

"""Writes the Python of a run: see ``runs``.

Each instruction becomes a few lines. ``values`` is what the registers hold, by their slots; the registers a program
can see its own progress in - DSP, DBC, DSPS - are brought up to date only where somebody may look: before functions of
the processor are called, and where the run is left.

Ref: LSI53C895A Technical Manual, chapter 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vfio_user.hardware.lsi53c8xx.interrupts import Phase
from vfio_user.hardware.lsi53c8xx.scripts import (
    Addressing,
    BlockMove,
    BusOperation,
    Instruction,
    LoadStore,
    Operator,
    RegisterMove,
    RegisterOperation,
    TransferControl,
    TransferKind,
    decode,
    sign_extend,
)
from vfio_user.pci.registers import HookKind

if TYPE_CHECKING:
    from vfio_user.devices.lsi53c8xx.processor import ScriptsProcessor

__all__ = ["plain_word", "write_run"]

#: Instructions that become simpler by being in a run, for it to be worth while.
_LEAST_GAIN = 2

#: Moves of data in a row at most: as many as Linux' program has.
_MOST_MOVES = 128

#: Instructions of a run at most. Longer ones would take longer to make than they save.
_LONGEST = 64

_WORD = 0xFFFF_FFFF
_SFBR = 0x08

#: Registers of 32 bits without effects, that programs load and store all the time.
_PLAIN_WORDS = ("dsa", "temp", "scratcha", "scratchb", "scratch")

#: Those that leave the carry alone.
_SYMBOLS = {Operator.MOVE: "", Operator.OR: "|", Operator.XOR: "^", Operator.AND: "&"}
_READ_HOOKS = (HookKind.ON_READ, HookKind.AFTER_READ)


def plain_word(processor: ScriptsProcessor, offset: int) -> int | None:
    """The slot of the register at an offset, if it is one of 32 bits in which nothing but its value matters."""
    for name in _PLAIN_WORDS:
        register = type(processor.registers).layout.registers[name]
        index, rest = divmod(offset - register.offset, 4)
        if 0 <= index < register.elements and not rest:
            return processor.slot(name) + index
    return None


def write_run(
    processor: ScriptsProcessor, address: int, patched: set[int]
) -> tuple[Callable[[], bool | None] | None, int, frozenset[int], list[bool]]:
    """Makes the run that begins at an address.

    Args:
        processor: whose.
        address: a multiple of 4, in the chip's RAM.
        patched: words of the RAM that are not to be part of it.

    Returns:
        Its function, None if nothing is gained by one; the number of its instructions; the words of the RAM they are
        in; and what is not empty once the run is not to be gone on with. See ``runs.Run``.
    """
    return _RunWriter(processor, patched).write(address)


class _RunWriter:
    """Writes one run.

    Each method for a kind of instruction returns the address of the one to follow; None when the run is left.
    """

    def __init__(self, processor: ScriptsProcessor, patched: set[int]) -> None:
        self._processor = processor
        self._memory = memory = processor.memory
        self._patched = patched
        self._lines: list[str] = []
        self._words: set[int] = set()
        self._gain = self._length = 0
        #: What DBC and DSPS have to show: the last instruction, unless that was carried out by a function.
        self._shown: tuple[int, int] | None = None
        windows = [(memory.ram_base, len(memory.ram)), (memory.registers_base, 0x100)]
        windows = [(base, size) for base, size in windows if base < 1 << 64]
        #: Addresses between these may be the chip's own.
        self._low, self._high = min(base for base, _ in windows), max(base + size for base, size in windows)
        slot = processor.slot
        self._dsp, self._dbc, self._dsps, self._temp = slot("dsp"), slot("dbc"), slot("dsps"), slot("temp")
        self._sfbr, self._dsa, self._drs = slot("sfbr"), slot("dsa"), slot("drs")
        self._mmrs, self._mmws = slot("mmrs"), slot("mmws")
        self._ended: list[bool] = []
        self._names: dict[str, Any] = {
            "values": processor.values,
            "core": processor.core,
            "processor": processor,
            "ram": memory.ram_words,
            "code": memory.code,
            "code_written": memory.code_written,
            "read": memory.dma.read_u32_nowait,
            "write": memory.dma.write_u32_nowait,
            "fly": processor.interrupts.post_on_the_fly,
            "ended": self._ended,
        }

    def write(self, address: int) -> tuple[Callable[[], bool | None] | None, int, frozenset[int], list[bool]]:
        """See ``write_run``."""
        seen: set[int] = set()
        at: int | None = address
        while at is not None:
            words = self._fetch(at) if at not in seen and self._length < _LONGEST else None
            instruction = None if words is None else decode(words[0])
            if words is None or instruction is None:
                self._leave(str(at))
                break
            seen.add(at)
            self._length += 1
            at = self._instruction(at, *words, instruction)
        if self._gain < _LEAST_GAIN:
            return None, 0, frozenset(self._words), self._ended
        arguments = ", ".join(f"{name}={name}" for name in self._names)
        text = "\n".join([f"def run({arguments}):", *(f"    {line}" for line in self._lines)])
        # Nothing in the text comes from outside but numbers.
        exec(compile(text, f"<SCRIPTS at {address:#x}>", "exec"), self._names)  # noqa: S102
        function: Callable[[], bool | None] = self._names["run"]
        return function, self._length, frozenset(self._words), self._ended

    def _fetch(self, at: int) -> tuple[int, int] | None:
        """The words of the instruction at an address; None where it cannot be part of the run."""
        offset = at - self._memory.ram_base
        if offset & 3 or not 0 <= offset <= len(self._memory.ram) - 8:
            return None
        word = offset >> 2
        if word in self._patched or word + 1 in self._patched:
            return None
        self._words |= {word, word + 1}
        ram = self._memory.ram_words
        return ram[word], ram[word + 1]

    # ---- Lines ----

    def _add(self, *lines: str) -> None:
        self._lines += lines

    def _leave(self, address: str, indent: str = "") -> None:
        """Goes on at an address."""
        self._add(f"{indent}values[{self._dsp}] = {address}")
        if self._shown is not None:
            first, second = self._shown
            self._add(f"{indent}values[{self._dbc}] = {first}", f"{indent}values[{self._dsps}] = {second}")
        self._add(f"{indent}return None")

    def _give_up(self, at: int, indent: str = "") -> None:
        """Leaves the instruction at an address to the processor, which will have all that shows brought up to date."""
        self._add(f"{indent}values[{self._dsp}] = {at}", f"{indent}return False")

    def _call(self, at: int, first: int, second: int, *, ends: bool) -> int | None:
        """Has an instruction carried out by its function."""
        name = f"do_{at:x}"
        self._names[name] = self._processor.function_of(first)
        self._add(
            f"values[{self._dsp}] = {at + 8}",
            f"values[{self._dbc}] = {first}",
            f"values[{self._dsps}] = {second}",
            f"if {name}({second}):",
            "    return True",
        )
        self._shown = None
        if ends:
            self._add("return None")
            return None
        # It may have jumped, and it may have written over the run.
        self._add(f"if ended or values[{self._dsp}] != {at + 8}:", "    return None")
        return at + 8

    # ---- Instructions ----

    def _instruction(self, at: int, first: int, second: int, instruction: Instruction) -> int | None:
        match instruction:
            case TransferControl():
                return self._transfer_control(at, first, second, instruction)
            case RegisterMove():
                return self._register_move(at, first, second, instruction)
            case LoadStore():
                return self._load_store(at, first, second, instruction)
            case BlockMove():
                number = self._repeats(at, first, second, instruction)
                if number > 1:
                    return self._moves(at, first, second, number)
                return self._call(at, first, second, ends=False)
            case BusOperation():
                return self._call(at, first, second, ends=False)
            case _:
                self._give_up(at)
                return None

    def _repeats(self, at: int, first: int, second: int, instruction: BlockMove) -> int:
        """How many moves of data there are by entries that follow each other, as scattered memory has them."""
        if instruction.addressing is not Addressing.TABLE or instruction.phase > Phase.DATA_IN:
            return 1
        number, last = 1, second + 8 * (_MOST_MOVES - 1)
        if (second ^ last) >> 23:
            return 1  # offsets that change their sign
        while number < _MOST_MOVES and self._fetch(at + 8 * number) == (first, second + 8 * number):
            number += 1
        return number

    def _moves(self, at: int, first: int, second: int, number: int) -> int:
        self._names["several"] = self._processor.mover.several
        self._add(
            f"done = several({first}, {second}, {number})",
            f"if done < {number}:",
            f"    values[{self._dsp}] = {at} + 8 * done",
            "    return False",
        )
        self._gain += number
        self._length += number - 1
        self._shown = None
        return at + 8 * number

    def _transfer_control(self, at: int, first: int, second: int, instruction: TransferControl) -> int | None:
        following = at + 8
        target = following + sign_extend(second) & _WORD if instruction.relative else second
        if instruction.wait:
            self._add("if core.phase is None:")
            self._give_up(at, "    ")
        condition = self._condition(instruction)
        if instruction.kind is TransferKind.INTERRUPT and not instruction.on_the_fly:
            if condition == "True":
                self._give_up(at)
                return None
            if condition != "False":
                self._add(f"if {condition}:")
                self._give_up(at, "    ")
            condition = "False"
        self._shown = first, second
        self._gain += 1
        if condition == "False":
            return following
        if instruction.kind is TransferKind.INTERRUPT:
            self._add("fly()" if condition == "True" else f"if {condition}: fly()")
            return following
        indent = "" if condition == "True" else "    "
        if indent:
            self._add(f"if {condition}:")
        if instruction.kind is TransferKind.CALL:
            self._add(f"{indent}values[{self._temp}] = {following}")
        if not indent and instruction.kind is not TransferKind.RETURN:
            return target
        self._leave(f"values[{self._temp}]" if instruction.kind is TransferKind.RETURN else str(target), indent)
        return following if indent else None

    def _condition(self, instruction: TransferControl) -> str:
        """When it acts."""
        parts = []
        if instruction.phase is not None:
            name = f"phase_{instruction.phase.name}"
            self._names[name] = instruction.phase
            parts.append(f"core.latched is {name}")
        if instruction.data is not None:
            mask = ~instruction.mask & 0xFF
            parts.append(f"values[{self._sfbr}] & {mask} == {instruction.data & mask}")
        if instruction.carry:
            parts.append("processor.carry")
        if not parts:
            return str(instruction.if_true)
        return " and ".join(parts) if instruction.if_true else f"not ({' or '.join(parts)})"

    def _register_move(self, at: int, first: int, second: int, instruction: RegisterMove) -> int | None:
        register, operator = instruction.register, instruction.operator
        to_sfbr = instruction.operation is RegisterOperation.REGISTER_TO_SFBR or register == _SFBR
        from_sfbr = instruction.operation is RegisterOperation.SFBR_TO_REGISTER or register == _SFBR
        sfbr = f"values[{self._sfbr}]"
        moves_data = operator is Operator.MOVE and instruction.operation is not RegisterOperation.REGISTER_TO_SFBR
        operand = "" if moves_data else sfbr if from_sfbr else self._byte(register)
        slot = plain_word(self._processor, register & ~3)
        if operand is None or operator not in _SYMBOLS or (not to_sfbr and slot is None):
            return self._call(at, first, second, ends=not to_sfbr)
        data = sfbr if instruction.use_sfbr else str(instruction.data)
        if operator is Operator.MOVE:
            result = data if moves_data else operand
        else:
            result = operand if data == "0" and operator is Operator.OR else f"({operand} {_SYMBOLS[operator]} {data})"
        self._gain += 1
        self._shown = first, second
        if to_sfbr:
            self._add(f"{sfbr} = {result}")
        else:
            shift = 8 * (register & 3)
            kept = ~(0xFF << shift) & _WORD
            self._add(f"values[{slot}] = values[{slot}] & {kept} | {result} << {shift}")
        return at + 8

    def _byte(self, register: int) -> str | None:
        """What reads a byte of the registers; None if that has effects, or may show how far the program is."""
        slot = plain_word(self._processor, register & ~3)
        if slot is not None:
            return f"(values[{slot}] >> {8 * (register & 3)} & 255)"
        registers = self._processor.registers
        for name, found in type(registers).layout.registers.items():
            if found.offset == register and found.size == found.elements == 1:
                combined = found.combined
                if combined.hidden or combined.clears_on_read or combined.sets_on_read:
                    return None
                if any(bound.hook.kind in _READ_HOOKS for bound in registers.bound_hooks(name)):
                    return None
                return f"values[{found.slot}]"
        return None

    def _load_store(self, at: int, first: int, second: int, instruction: LoadStore) -> int | None:
        slot = plain_word(self._processor, instruction.register) if instruction.count == 4 else None
        selector = self._drs if instruction.relative else self._mmrs if instruction.is_load else self._mmws
        word = (second - self._memory.ram_base) >> 2
        in_ram = not instruction.relative and 0 <= second - self._memory.ram_base < len(self._memory.ram)
        if slot is None or (not instruction.relative and second & 3):
            # A load may change any register, how to go on among them.
            return self._call(at, first, second, ends=instruction.is_load)
        self._gain += 1
        if in_ram:
            self._add(f"if values[{selector}]:")
            self._give_up(at, "    ")
            self._shown = first, second
            if instruction.is_load:
                self._add(f"values[{slot}] = ram[{word}]")
            else:
                self._add(f"ram[{word}] = values[{slot}]", f"if code[{word}]:", f"    code_written({word}, {word})")
                self._leave(str(at + 8), "    ")
            return at + 8
        address = f"values[{self._dsa}] + {sign_extend(second)} & {_WORD}" if instruction.relative else str(second)
        self._add(f"address = {address} | values[{selector}] << 32")
        own = f"{self._low} <= address < {self._high}"
        if instruction.is_load:
            self._add("word = read(address)", f"if word is None or {own}:")
        else:
            self._add(f"if {own} or not write(address, values[{slot}]):")
        self._give_up(at, "    ")
        if instruction.is_load:
            self._add(f"values[{slot}] = word")
        self._shown = first, second
        return at + 8

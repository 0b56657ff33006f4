"""SCRIPTS, the instructions of a 53C8xx's processor: what the first word of each means.

An instruction has two words, a memory move three. The first word says everything but addresses and interrupt codes, so
``decode`` needs nothing else::

    31 30 29
    0  0  .    block move: bytes between the bus and memory
    0  1  .    0xx and 100 in bits 29-27: the SCSI bus; 101 to 111: registers
    1  0  .    transfer control: jump, call, return, interrupt
    1  1  0    memory move
    1  1  1    load or store: registers from or to memory

Ref: LSI53C895A Technical Manual, chapter 5, "SCSI SCRIPTS Instruction Set".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from vfio_user.hardware.lsi53c8xx.interrupts import Phase

__all__ = [
    "Addressing",
    "BlockMove",
    "BusOperation",
    "BusOperationKind",
    "Instruction",
    "LoadStore",
    "MemoryMove",
    "Operator",
    "RegisterMove",
    "RegisterOperation",
    "TransferControl",
    "TransferKind",
    "decode",
    "sign_extend",
]


class Addressing(Enum):
    """Where a block move finds address and count. Ref: 5.3.1."""

    DIRECT = "direct"  # the second word is the address
    INDIRECT = "indirect"  # ... the address of the address
    TABLE = "table indirect"  # ... an offset from DSA, of count and address


@dataclass(frozen=True, slots=True)
class BlockMove:
    """MOVE and CHMOV. Ref: 5.3, "Block Move Instructions".

    Attributes:
        phase: the bus must be in.
        count: bytes; of a table indirect move the table says it.
        addressing: see there.
        is_plain: bit 27: for an initiator MOVE, rather than CHMOV.
    """

    phase: Phase
    count: int
    addressing: Addressing
    is_plain: bool


class BusOperationKind(IntEnum):
    """What is done on the bus, by an initiator; by a target: reselect, disconnect, wait select. Ref: 5.4."""

    SELECT = 0
    WAIT_DISCONNECT = 1
    WAIT_RESELECT = 2
    SET = 3
    CLEAR = 4


@dataclass(frozen=True, slots=True)
class BusOperation:
    """SELECT, WAIT DISCONNECT, WAIT RESELECT, SET and CLEAR. Ref: 5.4, "I/O Instructions".

    Attributes:
        kind: which of them.
        relative: the second word is an offset from the next instruction.
        table: id and transfer parameters come from the table at DSA.
        attention: SELECT asserts ATN; SET and CLEAR mean ATN.
        destination: the id to select.
        carry: SET and CLEAR mean the carry.
        target: ... target mode.
        acknowledge: ... ACK.
    """

    kind: BusOperationKind
    relative: bool
    table: bool
    attention: bool
    destination: int
    carry: bool
    target: bool
    acknowledge: bool


class RegisterOperation(IntEnum):
    """What is combined, and where the result goes. Ref: 5.5."""

    SFBR_TO_REGISTER = 5
    REGISTER_TO_SFBR = 6
    MODIFY = 7


class Operator(IntEnum):
    """How. Ref: table 5.3."""

    MOVE = 0
    SHIFT_LEFT = 1
    OR = 2
    XOR = 3
    AND = 4
    SHIFT_RIGHT = 5
    ADD = 6
    ADD_WITH_CARRY = 7


@dataclass(frozen=True, slots=True)
class RegisterMove:
    """MOVE of a register. Ref: 5.5, "Read/Write Instructions".

    Attributes:
        operation: see there.
        operator: see there.
        register: the offset of its byte.
        data: the second operand.
        use_sfbr: SFBR is the second operand instead.
    """

    operation: RegisterOperation
    operator: Operator
    register: int
    data: int
    use_sfbr: bool


class TransferKind(IntEnum):
    """What happens when the condition holds. Ref: 5.6."""

    JUMP = 0
    CALL = 1
    RETURN = 2
    INTERRUPT = 3


@dataclass(frozen=True, slots=True)
class TransferControl:
    """JUMP, CALL, RETURN, INT and INTFLY. Ref: 5.6, "Transfer Control Instructions".

    Attributes:
        kind: see there.
        relative: the second word is an offset from the next instruction.
        on_the_fly: INTFLY: the processor goes on.
        if_true: it happens if everything compared is as said; otherwise, if nothing is.
        wait: WHEN: waits for a phase before it compares.
        phase: the bus is to be in; None: is not compared.
        data: SFBR is to be; None: is not compared.
        mask: bits of SFBR that are not compared.
        carry: the carry is to be set; False: is not compared.
    """

    kind: TransferKind
    relative: bool
    on_the_fly: bool
    if_true: bool
    wait: bool
    phase: Phase | None
    data: int | None
    mask: int
    carry: bool


@dataclass(frozen=True, slots=True)
class MemoryMove:
    """MOVE MEMORY; its third word is the destination. Ref: 5.7, "Memory Move Instructions".

    Attributes:
        count: bytes.
    """

    count: int


@dataclass(frozen=True, slots=True)
class LoadStore:
    """LOAD and STORE. Ref: 5.8, "Load and Store Instructions".

    Attributes:
        is_load: memory to registers.
        relative: the second word is an offset from DSA.
        register: the offset of the first byte.
        count: bytes, 1 to 4.
    """

    is_load: bool
    relative: bool
    register: int
    count: int


Instruction = BlockMove | BusOperation | RegisterMove | TransferControl | MemoryMove | LoadStore


def sign_extend(word: int) -> int:
    """The 24-bit signed offset in the second word of a relative or table indirect instruction."""
    return ((word & 0xFF_FFFF) ^ 0x80_0000) - 0x80_0000


def decode(word: int) -> Instruction | None:
    """What the first word of an instruction says; None for one that is illegal."""
    kind = word >> 30
    if kind == 0:
        return _block_move(word)
    if kind == 1:
        return _bus_operation(word) if word >> 27 & 7 < RegisterOperation.SFBR_TO_REGISTER else _register_move(word)
    if kind == 2:
        return _transfer_control(word)
    return _load_store(word) if word >> 29 & 1 else MemoryMove(word & 0xFF_FFFF)


def _block_move(word: int) -> BlockMove:
    if word >> 28 & 1:
        addressing = Addressing.TABLE
    else:
        addressing = Addressing.INDIRECT if word >> 29 & 1 else Addressing.DIRECT
    return BlockMove(Phase(word >> 24 & 7), word & 0xFF_FFFF, addressing, bool(word >> 27 & 1))


def _bus_operation(word: int) -> BusOperation:
    return BusOperation(
        kind=BusOperationKind(word >> 27 & 7),
        relative=bool(word >> 26 & 1),
        table=bool(word >> 25 & 1),
        attention=bool(word >> 24 & 1) if word >> 27 & 7 == BusOperationKind.SELECT else bool(word >> 3 & 1),
        destination=word >> 16 & 15,
        carry=bool(word >> 10 & 1),
        target=bool(word >> 9 & 1),
        acknowledge=bool(word >> 6 & 1),
    )


def _register_move(word: int) -> RegisterMove:
    # The eighth bit of the register's address came later, and stands where there was room.
    register = word >> 16 & 0x7F | word & 0x80
    return RegisterMove(
        RegisterOperation(word >> 27 & 7), Operator(word >> 24 & 7), register, word >> 8 & 0xFF, bool(word >> 23 & 1)
    )


def _transfer_control(word: int) -> TransferControl | None:
    if word >> 29 & 1:
        return None
    kind = TransferKind(word >> 27 & 3)
    return TransferControl(
        kind=kind,
        relative=bool(word >> 23 & 1),
        on_the_fly=kind is TransferKind.INTERRUPT and bool(word >> 20 & 1),
        if_true=bool(word >> 19 & 1),
        wait=bool(word >> 16 & 1),
        phase=Phase(word >> 24 & 7) if word >> 17 & 1 else None,
        data=word & 0xFF if word >> 18 & 1 else None,
        mask=word >> 8 & 0xFF,
        carry=bool(word >> 21 & 1),
    )


def _load_store(word: int) -> LoadStore | None:
    register, count = word >> 16 & 0xFF, word & 7
    # They lie within one aligned word.
    if not 1 <= count <= 4 - (register & 3):
        return None
    return LoadStore(bool(word >> 24 & 1), bool(word >> 28 & 1), register, count)

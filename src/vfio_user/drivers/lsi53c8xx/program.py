"""The SCRIPTS program of ``ScsiInitiator``, and the memory it works on.

Theory of operation. Every command has a *request block*, a page of 256 bytes whose address has the command's tag as its
second byte; so a target that reselects says by its tag where the block is. DSA points at the block of the command
that is connected, and table indirect instructions find there what to send and where to put what comes::

    idle ──> slot ──> (empty) ──> wait reselect ──> reselected ──┐
     ^        └─────> load DSA, select ──> selected ─────────────┤
     │ status, or a disconnect: wait for the bus to be free      v
     └─────────────────────────────────────────────────────── dispatch, by the phase of the bus

New commands come through *slots*, which are code: one that is empty jumps to ``wait``, one that is full selects its
target. ``idle`` is a jump to the next slot. When its target was selected, a slot moves that jump on and empties itself;
when a target reselected first, it stays as it is, and its turn comes again. The driver fills a slot and sets SIGP,
which ends a wait.

A command that has ended adds one to a counter in its block, and interrupts on the fly: so the driver sees that each
ends, and that it ends once.
"""

from __future__ import annotations

from vfio_user.drivers.lsi53c8xx.assembler import Script, if_data, if_phase
from vfio_user.hardware.lsi53c8xx.interrupts import Phase
from vfio_user.hardware.lsi53c8xx.messages import Message
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c895aRegisters as Chip
from vfio_user.hardware.lsi53c8xx.scripts import Operator, RegisterOperation

__all__ = ["BLOCK_SIZE", "SLOT_SIZE", "Code", "RequestBlock", "Slot", "assemble", "make_slot"]

#: Bytes of a request block.
BLOCK_SIZE = 256

#: Bytes of a slot.
SLOT_SIZE = 64


class RequestBlock:
    """Offsets in a request block. Pairs are a count and an address, as table indirect moves have them."""

    SELECT = 0x00
    MESSAGE_PAIR = 0x08
    COMMAND_PAIR = 0x10
    DATA_PAIR = 0x18
    STATUS_PAIR = 0x20
    ENDED = 0x28  # how many commands have ended that used this block
    STATUS = 0x30
    MESSAGE = 0x38
    COMMAND = 0x40


class Slot:
    """Offsets in a slot."""

    ENTRY = 0x04  # where it jumps: to ``wait`` while it is empty, or on into itself
    FULL = 0x08
    NEXT = 0x38
    BLOCK = 0x3C


class Code:
    """Codes the program interrupts with."""

    STRANGE_PHASE = 1
    STRANGE_MESSAGE = 2
    STRANGE_RESELECTION = 3


_SCRATCHA, _SCRATCHB, _DSA = Chip.scratcha.offset, Chip.scratchb.offset, Chip.dsa.offset
_SCNTL2, _CTEST2 = Chip.scntl2.offset, Chip.ctest2.offset
_FROM_SFBR, _TO_SFBR, _MODIFY = RegisterOperation


def assemble(base: int, slots: int) -> tuple[bytes, dict[str, int]]:
    """Makes the program.

    Args:
        base: where it is going to be, less than a page.
        slots: where the first slot is going to be.

    Returns:
        The program, and the addresses of its parts by name.
    """
    labels: dict[str, int] = {}
    script = _program(base, slots, labels)
    # Once more, now that it is known where everything is.
    script = _program(base, slots, labels)
    return script.code, labels


def make_slot(at: int, after: int, labels: dict[str, int]) -> bytes:
    """A slot that is empty.

    Args:
        at: its address.
        after: that of the next one.
        labels: of the program.
    """
    slot = Script(at)
    slot.jump(labels["wait"])
    slot.load(_DSA, 4, at + Slot.BLOCK)
    slot.select_table(RequestBlock.SELECT, otherwise=labels["reselected"])
    slot.memory_move(4, at + Slot.NEXT, labels["idle"] + 4)
    slot.memory_move(4, labels["wait address"], at + Slot.ENTRY)
    slot.jump(labels["selected"])
    assert slot.here == at + Slot.NEXT
    slot.emit(after, 0)
    return slot.code


def _program(base: int, slots: int, labels: dict[str, int]) -> Script:
    script = Script(base)

    def label(name: str) -> None:
        labels[name] = script.here

    def address(name: str) -> int:
        return labels.get(name, base)

    def go_idle() -> None:
        script.register(_MODIFY, Operator.AND, _SCNTL2, 0x7F)  # the disconnect is expected
        script.clear(ack=True)
        script.wait_disconnect()

    label("idle")
    script.jump(slots)
    label("wait")
    script.wait_reselect(otherwise=address("signalled"))
    label("reselected")
    script.move(Phase.MESSAGE_IN, 1, address("message"))
    script.clear(ack=True)
    script.interrupt(Code.STRANGE_RESELECTION, if_phase(Phase.MESSAGE_IN, true=False, wait=True))
    script.move(Phase.MESSAGE_IN, 1, address("message"))
    script.interrupt(Code.STRANGE_RESELECTION, if_data(Message.SIMPLE_QUEUE_TAG, true=False))
    script.clear(ack=True)
    script.move(Phase.MESSAGE_IN, 1, address("message"))
    script.register(_FROM_SFBR, Operator.OR, _DSA + 1)
    script.clear(ack=True)
    script.jump(address("dispatch"))
    label("signalled")
    script.register(_TO_SFBR, Operator.OR, _CTEST2)  # which ends the signal
    script.jump(address("idle"))
    label("selected")
    script.move_table(Phase.MESSAGE_OUT, RequestBlock.MESSAGE_PAIR)
    label("dispatch")
    script.jump(address("message in"), if_phase(Phase.MESSAGE_IN, wait=True))
    script.jump(address("data in"), if_phase(Phase.DATA_IN))
    script.jump(address("data out"), if_phase(Phase.DATA_OUT))
    script.jump(address("status"), if_phase(Phase.STATUS))
    script.interrupt(Code.STRANGE_PHASE, if_phase(Phase.COMMAND, true=False))
    script.move_table(Phase.COMMAND, RequestBlock.COMMAND_PAIR)
    script.jump(address("dispatch"))
    for name, phase in (("data in", Phase.DATA_IN), ("data out", Phase.DATA_OUT)):
        label(name)
        script.move_table(phase, RequestBlock.DATA_PAIR)
        script.store(_SCRATCHB, 4, RequestBlock.DATA_PAIR, relative=True)  # nothing is left
        script.jump(address("dispatch"))
    label("status")
    script.move_table(Phase.STATUS, RequestBlock.STATUS_PAIR)
    script.interrupt(Code.STRANGE_PHASE, if_phase(Phase.MESSAGE_IN, true=False, wait=True))
    script.move(Phase.MESSAGE_IN, 1, address("message"))
    script.interrupt(Code.STRANGE_MESSAGE, if_data(Message.COMMAND_COMPLETE, true=False))
    go_idle()
    script.load(_SCRATCHA, 4, RequestBlock.ENDED, relative=True)
    script.register(_MODIFY, Operator.ADD, _SCRATCHA, 1)
    for byte in (1, 2, 3):
        script.register(_MODIFY, Operator.ADD_WITH_CARRY, _SCRATCHA + byte, 0)
    script.store(_SCRATCHA, 4, RequestBlock.ENDED, relative=True)
    script.interrupt_on_the_fly()
    script.jump(address("idle"))
    label("message in")
    script.move(Phase.MESSAGE_IN, 1, address("message"))
    script.jump(address("gone"), if_data(Message.DISCONNECT))
    # The data pair says what is left at any time, so the pointers are saved always.
    script.interrupt(Code.STRANGE_MESSAGE, if_data(Message.SAVE_DATA_POINTERS, true=False))
    script.clear(ack=True)
    script.jump(address("dispatch"))
    label("gone")
    go_idle()
    script.jump(address("idle"))
    label("wait address")
    script.emit(address("wait"))
    label("message")
    script.emit(0)
    return script

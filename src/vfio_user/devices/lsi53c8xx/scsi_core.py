"""The SCSI bus as the chip's SCSI core sees it: who is connected, which phase the target is in, and its bytes.

Theory of operation. The other side of the bus are targets that carry out tasks (``vfio_user.devices.scsi``), and know
nothing of phases and messages. This module is what a target does on a parallel bus::

    select ──> MESSAGE OUT ──> COMMAND ──> DATA IN, DATA OUT ──> STATUS ──> MESSAGE IN: COMMAND COMPLETE ──> bus free
                   │ ^            │
                   v │            └ storage has to be waited for ──> MESSAGE IN: DISCONNECT ──> bus free
               MESSAGE IN                                            ... reselect ──> MESSAGE IN: IDENTIFY, tag ──> ...

It is in a phase from the moment it asserts REQ there; ``phase`` is None while it does not, because it is at work with
the initiator still connected. Where it goes next is decided in one place, ``_advance``, when bytes were moved, ACK was
deasserted, ATN was asserted, or a task went on. Its decision in the order of what matters: ATN, messages it has to say,
bus free, command, data, status.

The initiator's side - what its registers and instructions do about all that - is not here.

Some initiators were only ever tried with QEMU, SeaBIOS for one, so what works there works here: a message from an
initiator that selected without ATN, bytes behind the end of a command, and bus free while ACK was not seen to end.

Spec: SPI-4 clauses 10 (phases), 16 (messages).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vfio_user.devices.lsi53c8xx.messages import MessageOut, read_messages
from vfio_user.devices.lsi53c8xx.nexus import Ending, Nexus
from vfio_user.devices.scsi.target import ScsiBus, Target
from vfio_user.devices.scsi.task import Buffer, Task, TaskPhase
from vfio_user.hardware.lsi53c8xx.interrupts import Phase
from vfio_user.hardware.lsi53c8xx.messages import Message
from vfio_user.hardware.scsi.cdb import cdb_length

__all__ = ["ScsiCore"]

#: Bytes a message out phase may have. Messages are a few bytes; who sends on and on is not kept.
_MAX_MESSAGE = 1024

#: How many disconnected targets are looked through for such as will never come back; twice as many as are left then.
_FIRST_SWEEP = 256

#: Bytes of the longest command.
_MAX_CDB = 16


class ScsiCore:
    """See the module.

    Args:
        bus: the targets.
        changed: called when the target went on by itself: a phase, or the bus, to wait for may be there.
        disconnected: called when the bus has become free: as a message had said it would, or not.

    Attributes:
        own_id: the initiator's.
        nexus: who is connected; None while the bus is free.
        phase: the phase the target asserts REQ in; None while it does not.
        latched: the last such phase.
        attention: the initiator asserts ATN.
        acknowledge: ... and ACK, for the last byte of a message it has received.
    """

    def __init__(self, bus: ScsiBus, *, changed: Callable[[], None], disconnected: Callable[[bool], None]) -> None:
        self.bus = bus
        self.own_id = 7
        self.nexus: Nexus | None = None
        self.phase: Phase | None = None
        self.latched = Phase.DATA_OUT
        self.attention = False
        self.acknowledge = False
        self._tell_changed = changed
        self._tell_disconnected = disconnected
        self._message_in = bytearray()
        self._message_out = bytearray()
        self._disconnected: list[Nexus] = []
        self._ready: list[Nexus] = []
        self._sweep_at = _FIRST_SWEEP

    # ---- Connecting ----

    def select(self, target: int, *, attention: bool) -> bool:
        """Selects a target, the bus being free.

        Returns:
            Whether there is one.
        """
        if target not in self.bus.targets:
            return False
        self.nexus = Nexus(target)
        self.attention = attention
        self._advance()
        return True

    @property
    def wants_reselect(self) -> bool:
        """A target waits for the bus to be free, to reselect."""
        return bool(self._ready)

    def reselect(self) -> int:
        """Lets the target that has waited longest reselect, the bus being free; returns its id."""
        nexus = self._ready.pop(0)
        self._disconnected.remove(nexus)
        self.nexus = nexus
        nexus.ending = Ending.NONE
        self._message_in.append(Message.IDENTIFY | nexus.lun)
        if nexus.tag is not None:
            self._message_in += bytes([Message.SIMPLE_QUEUE_TAG, nexus.tag])
        self._advance()
        return nexus.target

    # ---- Moving bytes, in the phase the bus is in ----

    def take(self, length: int) -> Buffer:
        """Takes up to ``length`` bytes, one at least, in an input phase."""
        nexus = self.nexus
        assert nexus is not None
        phase = self.phase
        if phase is Phase.DATA_IN:
            assert nexus.task is not None
            nexus.has_moved = True
            return nexus.task.read(length)
        if phase is Phase.MESSAGE_IN:
            piece = bytes(self._message_in[:length])
            del self._message_in[:length]
            # ACK stays asserted until the initiator clears it: before, it may assert ATN to reject the message.
            self.acknowledge = not self._message_in
            return piece
        assert phase is Phase.STATUS
        assert nexus.task is not None
        nexus.has_status = True
        status = nexus.task.status
        self.bus.targets[nexus.target].status_taken(nexus.task)
        self._message_in.append(Message.COMMAND_COMPLETE)
        nexus.ending = Ending.COMPLETE
        self._advance()
        return bytes([0 if status is None else int(status)])

    def room(self, length: int) -> int:
        """How many of ``length`` bytes the target takes in the output phase the bus is in."""
        nexus = self.nexus
        assert nexus is not None
        if self.phase is Phase.DATA_OUT:
            assert nexus.task is not None
            return min(length, nexus.task.remaining)
        if self.phase is Phase.COMMAND:
            return min(length, _MAX_CDB - len(nexus.cdb))
        return length

    def follow(self, wanted: int) -> bool:
        """A target that was selected without ATN is in COMMAND; if the initiator sends a message, it takes that."""
        nexus = self.nexus
        if wanted == Phase.MESSAGE_OUT and self.phase is Phase.COMMAND and nexus is not None and not nexus.cdb:
            self.phase = self.latched = Phase.MESSAGE_OUT
            return True
        return False

    def give(self, data: Buffer, *, last: bool) -> None:
        """Gives bytes, no more than there is ``room`` for, in an output phase.

        Args:
            data: the bytes.
            last: a block move ends with them; the chip deasserts ATN before the last byte of a message.
        """
        nexus = self.nexus
        assert nexus is not None
        phase = self.phase
        if phase is Phase.DATA_OUT:
            assert nexus.task is not None
            nexus.has_moved = True
            nexus.task.write(data)
        elif phase is Phase.MESSAGE_OUT:
            if len(self._message_out) < _MAX_MESSAGE:
                self._message_out += data
            if last:
                self.attention = False
                self._advance()
        else:
            nexus.cdb += data
            if (last or len(nexus.cdb) == _MAX_CDB) and len(nexus.cdb) >= cdb_length(nexus.cdb[0]):
                self._start(nexus)

    # ---- Signals of the initiator ----

    def set_attention(self) -> None:
        """Asserts ATN. The target sees it before its next phase, or before the next byte, outside data phases."""
        self.attention = True

    def clear_attention(self) -> None:
        """Deasserts ATN."""
        if self.attention:
            self.attention = False
            if self.phase is Phase.MESSAGE_OUT:
                self._advance()

    def clear_acknowledge(self) -> None:
        """Deasserts ACK: the target goes on."""
        if self.acknowledge:
            self.acknowledge = False
            self._advance()

    # ---- What ends connections ----

    def free(self) -> None:
        """The initiator lets go of the bus, as in a software reset. The task of the one that was connected is lost."""
        if self.nexus is not None:
            self._drop(self.nexus)
            self._bus_free(expected=True)

    def reset_bus(self) -> None:
        """RST: every target forgets its tasks."""
        self.nexus = None
        self.phase = None
        self.latched = Phase.DATA_OUT
        self.attention = self.acknowledge = False
        self._disconnected.clear()
        self._ready.clear()
        self._message_in.clear()
        self._message_out.clear()
        self.bus.reset()

    def _bus_free(self, *, expected: bool) -> None:
        self.nexus = None
        self.phase = None
        self.attention = self.acknowledge = False
        self._message_in.clear()
        self._message_out.clear()
        self._tell_disconnected(expected)

    # ---- The target ----

    def _advance(self) -> None:
        """Decides what the target does next."""
        nexus = self.nexus
        if nexus is None:
            return
        phase: Phase | None
        if self.attention:
            phase = Phase.MESSAGE_OUT
        else:
            if self._message_out:
                said = bytes(self._message_out)
                self._message_out.clear()
                if not self._hear(nexus, read_messages(said)):
                    return
            phase = self._next_phase(nexus)
            if phase is None and self.nexus is None:
                return
        self.phase = phase
        if phase is not None:
            self.latched = phase

    def _next_phase(self, nexus: Nexus) -> Phase | None:
        task = nexus.task
        if self._message_in:
            return Phase.MESSAGE_IN
        if nexus.ending is not Ending.NONE:
            if nexus.ending is Ending.DISCONNECT:
                self._disconnected.append(nexus)
                if len(self._disconnected) > self._sweep_at:
                    self._sweep()
                assert task is not None
                if task.phase is not TaskPhase.BUSY:
                    self._ready.append(nexus)
            self._bus_free(expected=True)
            return None
        if task is None:
            return Phase.COMMAND
        wanted = task.phase
        if wanted is not TaskPhase.BUSY:
            if wanted is TaskPhase.STATUS:
                return Phase.STATUS
            return Phase.DATA_IN if wanted is TaskPhase.DATA_IN else Phase.DATA_OUT
        # Amid the data, storage is waited for on the bus: to come back takes longer than most reads.
        if nexus.may_disconnect and (not nexus.has_moved or not task.remaining):
            nexus.has_moved = False
            self._message_in += bytes([Message.SAVE_DATA_POINTERS, Message.DISCONNECT])
            nexus.ending = Ending.DISCONNECT
            return Phase.MESSAGE_IN
        return None

    def _hear(self, nexus: Nexus, said: MessageOut) -> bool:
        """Does what the initiator's messages say; False if the bus is free by it."""
        if said.lun is not None and nexus.task is None:
            nexus.lun, nexus.may_disconnect = said.lun, said.may_disconnect
        if said.tag is not None and nexus.task is None:
            nexus.tag, nexus.attribute = said.tag, said.attribute
        self._message_in += said.answers
        if said.end is None:
            return True
        self._end(nexus, said.end)
        self._bus_free(expected=False)
        return False

    def _end(self, nexus: Nexus, message: Message) -> None:
        target = self.bus.targets[nexus.target]
        self._drop(nexus)
        mine = [known for known in self._disconnected if known.target == nexus.target]
        if message is Message.BUS_DEVICE_RESET:
            target.reset()
        else:
            mine = [known for known in mine if known.lun == nexus.lun]
            if message is Message.LOGICAL_UNIT_RESET:
                target.reset_unit(nexus.lun)
            elif message is Message.CLEAR_QUEUE:
                target.clear_task_set(nexus.lun, self.own_id)
            elif message is Message.ABORT_TAG:
                mine = [known for known in mine if known.tag == nexus.tag]
        for known in mine:
            self._drop(known)

    def _drop(self, nexus: Nexus) -> None:
        """The target forgets a task."""
        if nexus.task is not None:
            self.bus.targets[nexus.target].abort(nexus.task)
        for known in (self._disconnected, self._ready):
            if nexus in known:
                known.remove(nexus)

    def _sweep(self) -> None:
        """Forgets those whose tasks a logical unit dropped by itself, for an overlapped command or a preemption."""
        for nexus in [each for each in self._disconnected if each.task is not None and each.task.dropped]:
            self._drop(nexus)
        self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._disconnected))

    def _start(self, nexus: Nexus) -> None:
        """The command is complete."""
        self.phase = None
        task = Task(
            nexus.lun,
            bytes(nexus.cdb[: cdb_length(nexus.cdb[0])]),
            tag=nexus.tag,
            attribute=nexus.attribute,
            may_wait=nexus.may_disconnect,
            initiator=self.own_id,
        )
        nexus.task = task
        target: Target = self.bus.targets[nexus.target]
        target.start(task, partial(self._task_changed, nexus))
        if self.nexus is nexus and self.phase is None:
            self._advance()

    def _task_changed(self, nexus: Nexus, task: Task) -> None:
        if self.nexus is nexus:
            # Messages, and ACK for one, come first; a target that said it disconnects does.
            if not self._message_in and not self.acknowledge and self.phase is not Phase.MESSAGE_OUT:
                self._advance()
                self._tell_changed()
        elif nexus in self._disconnected and nexus not in self._ready and task.phase is not TaskPhase.BUSY:
            self._ready.append(nexus)
            self._tell_changed()

    # ---- Saving ----

    def save(self) -> dict[str, Any]:
        """Everything, targets included, as plain values."""
        return {
            "bus": self.bus.save(),
            "nexus": None if self.nexus is None else self.nexus.save(),
            "phase": None if self.phase is None else int(self.phase),
            "latched": int(self.latched),
            "attention": self.attention,
            "acknowledge": self.acknowledge,
            "message_in": bytes(self._message_in),
            "message_out": bytes(self._message_out),
            "disconnected": [nexus.save() for nexus in self._disconnected],
            "ready": [self._disconnected.index(nexus) for nexus in self._ready],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Puts that back. Tasks run once ``resume`` is called."""
        self.bus.load(state["bus"])
        self.nexus = None if state["nexus"] is None else Nexus.load(state["nexus"])
        self.phase = None if state["phase"] is None else Phase(state["phase"])
        self.latched = Phase(state["latched"])
        self.attention, self.acknowledge = state["attention"], state["acknowledge"]
        self._message_in, self._message_out = bytearray(state["message_in"]), bytearray(state["message_out"])
        self._disconnected = [Nexus.load(saved) for saved in state["disconnected"]]
        self._ready = [self._disconnected[index] for index in state["ready"]]

    def resume(self) -> None:
        """After ``load``: lets targets go on with their tasks."""
        for nexus in ([] if self.nexus is None else [self.nexus]) + self._disconnected:
            if nexus.task is not None and nexus.task.status is None:
                self.bus.targets[nexus.target].resume(nexus.task, partial(self._task_changed, nexus))

"""What a target makes of the messages an initiator sends it.

``read_messages`` cuts the bytes of a message out phase up. What each means for the connection stands in ``MessageOut``:
the target's identity and queue tag, the answers it is going to give, and whether the connection ends.

Spec: SPI-4 16, "SCSI messages"; 16.3 and 17 for what negotiations agree on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vfio_user.hardware.lsi53c8xx.messages import ExtendedMessage, Message
from vfio_user.hardware.scsi.codes import TaskAttribute

__all__ = ["MessageOut", "read_messages"]

_ATTRIBUTES = {
    Message.SIMPLE_QUEUE_TAG: TaskAttribute.SIMPLE,
    Message.HEAD_OF_QUEUE_TAG: TaskAttribute.HEAD_OF_QUEUE,
    Message.ORDERED_QUEUE_TAG: TaskAttribute.ORDERED,
}

#: Messages that end the connection, and tasks with it.
_ENDS = (
    Message.ABORT,
    Message.ABORT_TAG,
    Message.BUS_DEVICE_RESET,
    Message.CLEAR_QUEUE,
    Message.LOGICAL_UNIT_RESET,
)

#: Messages there is nothing to do about.
_NO_ANSWER = (
    Message.NO_OPERATION,
    Message.MESSAGE_REJECT,
    Message.INITIATOR_DETECTED_ERROR,
    Message.MESSAGE_PARITY_ERROR,
)

#: Bytes of each negotiation from its third byte on, and what is agreed to at most of those after: the fastest period,
#: the longest offset, 16 bits; of options (dual edges, packets) none. Ref: what an Ultra2 target can do.
_NEGOTIATIONS = {
    ExtendedMessage.SYNCHRONOUS_DATA_TRANSFER: 3,
    ExtendedMessage.WIDE_DATA_TRANSFER: 2,
    ExtendedMessage.PARALLEL_PROTOCOL: 6,
}
_FASTEST_PERIOD = 0x0A
_LONGEST_OFFSET = 31
_WIDEST = 1


@dataclass(frozen=True, slots=True)
class MessageOut:
    """What was said in a message out phase.

    Attributes:
        lun: IDENTIFY named it; None where it was not sent.
        may_disconnect: ... and allowed the target to disconnect.
        tag: of the task; None for an untagged one.
        attribute: its order.
        answers: what the target says to it.
        end: the message that ends the connection; None if none does.
    """

    lun: int | None = None
    may_disconnect: bool = False
    tag: int | None = None
    attribute: TaskAttribute = TaskAttribute.SIMPLE
    answers: bytes = b""
    end: Message | None = None


@lru_cache(maxsize=512)  # more than the tags of a target: a driver says the same with every command
def read_messages(data: bytes) -> MessageOut:
    """Reads the bytes of a message out phase. What cannot be understood is rejected, with all that follows."""
    said: dict[str, Any] = {}
    answers = bytearray()
    at = 0
    while at < len(data):
        code = data[at]
        if code & Message.IDENTIFY:
            said.update(lun=code & 0x3F, may_disconnect=bool(code & 0x40))
            at += 1
        elif code in _ATTRIBUTES and at + 1 < len(data):
            said.update(tag=data[at + 1], attribute=_ATTRIBUTES[Message(code)])
            at += 2
        elif code == Message.EXTENDED and at + 2 < len(data) and at + 2 + (data[at + 1] or 256) <= len(data):
            end = at + 2 + (data[at + 1] or 256)
            answers += _answer(data[at + 2 : end])
            at = end
        elif code in _ENDS:
            said.update(end=Message(code))
            break
        elif code in _NO_ANSWER:
            at += 1
        else:
            answers.append(Message.MESSAGE_REJECT)
            break
    return MessageOut(**said, answers=bytes(answers))


def _answer(body: bytes) -> bytes:
    """The answer to an extended message, given from its third byte on."""
    if body[0] not in _NEGOTIATIONS or len(body) != _NEGOTIATIONS[ExtendedMessage(body[0])]:
        return bytes([Message.MESSAGE_REJECT])
    agreed = bytearray(body)
    if body[0] == ExtendedMessage.WIDE_DATA_TRANSFER:
        agreed[1] = min(body[1], _WIDEST)
    elif body[0] == ExtendedMessage.SYNCHRONOUS_DATA_TRANSFER:
        agreed[1:] = max(body[1], _FASTEST_PERIOD), min(body[2], _LONGEST_OFFSET)
    else:
        agreed[1:] = max(body[1], _FASTEST_PERIOD), 0, min(body[3], _LONGEST_OFFSET), min(body[4], _WIDEST), 0
    return bytes([Message.EXTENDED, len(agreed)]) + agreed

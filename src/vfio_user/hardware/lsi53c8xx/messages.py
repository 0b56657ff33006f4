"""Messages between initiator and target on a parallel SCSI bus. Spec: SPI-4 16, "SCSI messages"."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ExtendedMessage", "Message"]


class Message(IntEnum):
    """The first byte of a message."""

    COMMAND_COMPLETE = 0x00
    EXTENDED = 0x01
    SAVE_DATA_POINTERS = 0x02
    RESTORE_POINTERS = 0x03
    DISCONNECT = 0x04
    INITIATOR_DETECTED_ERROR = 0x05
    ABORT = 0x06  # SPI-4: ABORT TASK SET
    MESSAGE_REJECT = 0x07
    NO_OPERATION = 0x08
    MESSAGE_PARITY_ERROR = 0x09
    BUS_DEVICE_RESET = 0x0C  # SPI-4: TARGET RESET
    ABORT_TAG = 0x0D  # SPI-4: ABORT TASK
    CLEAR_QUEUE = 0x0E  # SPI-4: CLEAR TASK SET
    LOGICAL_UNIT_RESET = 0x17
    SIMPLE_QUEUE_TAG = 0x20
    HEAD_OF_QUEUE_TAG = 0x21
    ORDERED_QUEUE_TAG = 0x22
    IDENTIFY = 0x80


class ExtendedMessage(IntEnum):
    """The third byte of an extended message."""

    SYNCHRONOUS_DATA_TRANSFER = 0x01
    WIDE_DATA_TRANSFER = 0x03
    PARALLEL_PROTOCOL = 0x04

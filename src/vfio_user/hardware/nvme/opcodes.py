"""The commands of an I/O controller of the NVM command set, by opcode."""

from __future__ import annotations

import enum

__all__ = ["AdminOpcode", "DataDirection", "NvmOpcode", "data_direction"]


class AdminOpcode(enum.IntEnum):
    """Commands of the admin queue. Spec: 5, figure 138."""

    DELETE_IO_SUBMISSION_QUEUE = 0x00
    CREATE_IO_SUBMISSION_QUEUE = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_IO_COMPLETION_QUEUE = 0x04
    CREATE_IO_COMPLETION_QUEUE = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNCHRONOUS_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    FIRMWARE_COMMIT = 0x10
    FIRMWARE_IMAGE_DOWNLOAD = 0x11
    DEVICE_SELF_TEST = 0x14
    NAMESPACE_ATTACHMENT = 0x15
    KEEP_ALIVE = 0x18
    DOORBELL_BUFFER_CONFIG = 0x7C
    FORMAT_NVM = 0x80


class NvmOpcode(enum.IntEnum):
    """Commands of I/O queues. Spec: NVM Command Set 3, figure 10; Base 7, figure 390."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_UNCORRECTABLE = 0x04
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    COPY = 0x19


class DataDirection(enum.IntEnum):
    """Which way a command's data goes: the two least significant bits of its opcode. Spec: 3.3.3.1, figure 88."""

    NONE = 0
    HOST_TO_CONTROLLER = 1
    CONTROLLER_TO_HOST = 2
    BOTH = 3


def data_direction(opcode: int) -> DataDirection:
    """See ``DataDirection``."""
    return DataDirection(opcode & 3)

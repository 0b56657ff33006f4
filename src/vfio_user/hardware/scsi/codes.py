"""The numbers of SCSI: operation codes, statuses, sense keys, additional sense codes.

Ref: SAM-5 clause 5, SPC-4 annexes E and F.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["AdditionalSense", "DeviceType", "OperationCode", "SenseKey", "Status", "TaskAttribute"]


class Status(IntEnum):
    """How a command ended. Spec: SAM-5 5.3.1."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class TaskAttribute(IntEnum):
    """How a task is ordered among the others of its logical unit. Spec: SAM-5 8.6; values of SPL and virtio."""

    SIMPLE = 0
    HEAD_OF_QUEUE = 1
    ORDERED = 2
    ACA = 4


class DeviceType(IntEnum):
    """PERIPHERAL DEVICE TYPE of INQUIRY data. Spec: SPC-4 table 145."""

    DISK = 0x00
    CD_ROM = 0x05
    WELL_KNOWN = 0x1E
    NONE = 0x1F


class SenseKey(IntEnum):
    """What kind of thing went wrong. Spec: SPC-4 4.5.6."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE


class AdditionalSense(IntEnum):
    """ADDITIONAL SENSE CODE in the high byte, its QUALIFIER in the low one. Spec: SPC-4 annex E."""

    NONE = 0x0000
    OPERATION_IN_PROGRESS = 0x0016
    NOT_READY_INITIALIZING_COMMAND_REQUIRED = 0x0402
    WRITE_ERROR = 0x0C00
    UNRECOVERED_READ_ERROR = 0x1100
    PARAMETER_LIST_LENGTH_ERROR = 0x1A00
    MISCOMPARE_DURING_VERIFY = 0x1D00
    INVALID_OPERATION_CODE = 0x2000
    LBA_OUT_OF_RANGE = 0x2100
    INVALID_FIELD_IN_CDB = 0x2400
    LOGICAL_UNIT_NOT_SUPPORTED = 0x2500
    INVALID_FIELD_IN_PARAMETER_LIST = 0x2600
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION = 0x2604
    WRITE_PROTECTED = 0x2700
    SPACE_ALLOCATION_FAILED_WRITE_PROTECT = 0x2707
    MEDIUM_MAY_HAVE_CHANGED = 0x2800
    POWER_ON_OR_RESET = 0x2900
    POWER_ON = 0x2901
    BUS_RESET = 0x2902
    BUS_DEVICE_RESET = 0x2903
    MODE_PARAMETERS_CHANGED = 0x2A01
    RESERVATIONS_PREEMPTED = 0x2A03
    RESERVATIONS_RELEASED = 0x2A04
    REGISTRATIONS_PREEMPTED = 0x2A05
    CAPACITY_CHANGED = 0x2A09
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = 0x2F00
    INCOMPATIBLE_MEDIUM = 0x3000
    SAVING_PARAMETERS_NOT_SUPPORTED = 0x3900
    MEDIUM_NOT_PRESENT = 0x3A00
    REPORTED_LUNS_DATA_CHANGED = 0x3F0E
    INTERNAL_TARGET_FAILURE = 0x4400
    DATA_PHASE_ERROR = 0x4B00
    OVERLAPPED_COMMANDS = 0x4E00
    MEDIUM_REMOVAL_PREVENTED = 0x5302
    INSUFFICIENT_REGISTRATION_RESOURCES = 0x5504
    ILLEGAL_MODE_FOR_THIS_TRACK = 0x6400

    @property
    def asc(self) -> int:
        """ADDITIONAL SENSE CODE."""
        return self >> 8

    @property
    def ascq(self) -> int:
        """ADDITIONAL SENSE CODE QUALIFIER."""
        return self & 0xFF


class OperationCode(IntEnum):
    """The first byte of a command descriptor block. A service action, where there is one, is not part of it."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    RESERVE_6 = 0x16
    RELEASE_6 = 0x17
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    SEND_DIAGNOSTIC = 0x1D
    PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1E
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    SEEK_10 = 0x2B
    WRITE_AND_VERIFY_10 = 0x2E
    VERIFY_10 = 0x2F
    SYNCHRONIZE_CACHE_10 = 0x35
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    READ_TOC = 0x43
    GET_CONFIGURATION = 0x46
    GET_EVENT_STATUS_NOTIFICATION = 0x4A
    LOG_SENSE = 0x4D
    READ_DISC_INFORMATION = 0x51
    READ_TRACK_INFORMATION = 0x52
    MODE_SELECT_10 = 0x55
    RESERVE_10 = 0x56
    RELEASE_10 = 0x57
    MODE_SENSE_10 = 0x5A
    PERSISTENT_RESERVE_IN = 0x5E
    PERSISTENT_RESERVE_OUT = 0x5F
    READ_16 = 0x88
    WRITE_16 = 0x8A
    WRITE_AND_VERIFY_16 = 0x8E
    VERIFY_16 = 0x8F
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    MAINTENANCE_IN = 0xA3
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    READ_DISC_STRUCTURE = 0xAD
    WRITE_AND_VERIFY_12 = 0xAE
    VERIFY_12 = 0xAF
    SET_CD_SPEED = 0xBB
    MECHANISM_STATUS = 0xBD

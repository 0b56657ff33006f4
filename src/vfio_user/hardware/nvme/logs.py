"""Log pages and asynchronous events. Spec: 5.16.1 (log pages), 5.2 (asynchronous events)."""

from __future__ import annotations

import enum

from vfio_user.hardware.nvme.structure import Number, Numbers, Raw, Structure, Text

__all__ = [
    "AsyncEventType",
    "CommandEffects",
    "CommandEffectsLog",
    "CriticalWarning",
    "ErrorEvent",
    "ErrorLogEntry",
    "FirmwareSlotLog",
    "LogPage",
    "NoticeEvent",
    "SelfTestLog",
    "SelfTestResult",
    "SmartEvent",
    "SmartLog",
    "async_event",
]


class LogPage(enum.IntEnum):
    """LID. Spec: figure 202."""

    SUPPORTED_LOG_PAGES = 0x00
    ERROR_INFORMATION = 0x01
    SMART = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACE_LIST = 0x04
    COMMANDS_SUPPORTED_AND_EFFECTS = 0x05
    DEVICE_SELF_TEST = 0x06
    FEATURES_SUPPORTED_AND_EFFECTS = 0x12


class AsyncEventType(enum.IntEnum):
    """Types of asynchronous events. Spec: figure 146."""

    ERROR = 0
    SMART = 1
    NOTICE = 2
    IMMEDIATE = 3
    IO_COMMAND_SPECIFIC = 6
    VENDOR_SPECIFIC = 7


class ErrorEvent(enum.IntEnum):
    """Asynchronous event information of errors. Spec: figure 147."""

    INVALID_DOORBELL_REGISTER = 0
    INVALID_DOORBELL_VALUE = 1
    DIAGNOSTIC_FAILURE = 2
    PERSISTENT_INTERNAL_ERROR = 3
    TRANSIENT_INTERNAL_ERROR = 4
    FIRMWARE_IMAGE_LOAD_ERROR = 5


class SmartEvent(enum.IntEnum):
    """Asynchronous event information of SMART. Spec: figure 148."""

    RELIABILITY = 0
    TEMPERATURE_THRESHOLD = 1
    SPARE_BELOW_THRESHOLD = 2


class NoticeEvent(enum.IntEnum):
    """Asynchronous event information of notices. Spec: figure 149."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0
    FIRMWARE_ACTIVATION_STARTING = 1


def async_event(event_type: int, information: int, log_page: int) -> int:
    """Dword 0 of the completion of an asynchronous event request. Spec: figure 145."""
    return event_type | information << 8 | log_page << 16


class ErrorLogEntry(Structure):
    """One entry of log 01h. Spec: figure 206."""

    SIZE = 64
    error_count = Number(0, 8, "which error since the controller was made; 0 for an unused entry")
    sqid = Number(8, 2, "submission queue; FFFFh for none")
    cid = Number(10, 2, "command; FFFFh for none")
    status_field = Number(12, 2, "status and phase, as in the completion")
    parameter_error_location = Number(14, 2, "byte 7:0 and bit 10:8 of the command; FFFFh for none")
    lba = Number(16, 8, "first block")
    nsid = Number(24, 4, "namespace")
    vendor_specific = Number(28, 1, "log page with more")
    trtype = Number(29, 1, "transport, 0 for PCIe")
    command_specific = Number(32, 8, "of the command")
    transport_specific = Number(40, 2, "of the transport")


class CriticalWarning(enum.IntFlag):
    """What the SMART log warns of. Spec: figure 207."""

    AVAILABLE_SPARE = 1 << 0
    TEMPERATURE = 1 << 1
    RELIABILITY_DEGRADED = 1 << 2
    READ_ONLY = 1 << 3
    VOLATILE_BACKUP_FAILED = 1 << 4


class SmartLog(Structure):
    """Log 02h. Spec: figure 207."""

    SIZE = 512
    critical_warning = Number(0, 1)
    composite_temperature = Number(1, 2, "kelvin")
    available_spare = Number(3, 1, "percent")
    available_spare_threshold = Number(4, 1, "percent")
    percentage_used = Number(5, 1)
    endurance_group_warning = Number(6, 1)
    data_units_read = Number(32, 16, "thousands of 512 bytes, rounded up")
    data_units_written = Number(48, 16, "thousands of 512 bytes, rounded up")
    host_read_commands = Number(64, 16)
    host_write_commands = Number(80, 16)
    controller_busy_time = Number(96, 16, "minutes")
    power_cycles = Number(112, 16)
    power_on_hours = Number(128, 16)
    unsafe_shutdowns = Number(144, 16)
    media_errors = Number(160, 16)
    error_log_entries = Number(176, 16, "since the controller was made")
    warning_temperature_time = Number(192, 4, "minutes")
    critical_temperature_time = Number(196, 4, "minutes")
    temperature_sensors = Numbers(200, 2, 8, "kelvin; 0 for none")


class FirmwareSlotLog(Structure):
    """Log 03h. Spec: figure 209."""

    SIZE = 512
    afi = Number(0, 1, "active slot 2:0, slot after the next reset 6:4")
    frs1 = Text(8, 8, "revision in slot 1")
    frs2 = Text(16, 8, "revision in slot 2")
    frs3 = Text(24, 8, "revision in slot 3")


class CommandEffects(enum.IntFlag):
    """One entry of log 05h. Spec: figure 211."""

    SUPPORTED = 1 << 0
    LOGICAL_BLOCK_CONTENT_CHANGE = 1 << 1
    NAMESPACE_CAPABILITY_CHANGE = 1 << 2
    NAMESPACE_INVENTORY_CHANGE = 1 << 3
    CONTROLLER_CAPABILITY_CHANGE = 1 << 4
    EXECUTE_ALONE_IN_NAMESPACE = 1 << 16
    EXECUTE_ALONE = 2 << 16


class CommandEffectsLog(Structure):
    """Log 05h. Spec: figure 210."""

    SIZE = 4096
    admin = Numbers(0, 4, 256, "CommandEffects by opcode")
    io = Numbers(1024, 4, 256, "CommandEffects by opcode")


class SelfTestResult(Structure):
    """One result in log 06h. Spec: figure 214."""

    SIZE = 28
    status = Number(0, 1, "result 3:0 (0 good, 1 aborted by command, 2 by reset, Fh unused), self-test code 7:4")
    segment = Number(1, 1, "the first segment that failed")
    valid = Number(2, 1, "which of the rest is valid: bit 0 nsid, 1 failing LBA, 2 SCT, 3 SC")
    power_on_hours = Number(4, 8)
    nsid = Number(12, 4)
    failing_lba = Number(16, 8)
    status_code_type = Number(24, 1)
    status_code = Number(25, 1)


class SelfTestLog(Structure):
    """Log 06h. Spec: figure 213."""

    SIZE = 564
    current_operation = Number(0, 1, "self-test code in progress, 0 for none")
    current_completion = Number(1, 1, "percent")
    results = Raw(4, 560, "20 SelfTestResult, the newest first")

"""Features: what Set Features changes and Get Features reads. Spec: 5.16, 5.27; figure 317."""

from __future__ import annotations

import enum

__all__ = ["AsyncEventConfiguration", "Feature", "FeatureCapabilities", "Select"]


class Feature(enum.IntEnum):
    """FID."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    LBA_RANGE_TYPE = 0x03
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR_CONFIGURATION = 0x09
    WRITE_ATOMICITY_NORMAL = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    AUTONOMOUS_POWER_STATE_TRANSITION = 0x0C
    HOST_MEMORY_BUFFER = 0x0D
    TIMESTAMP = 0x0E
    KEEP_ALIVE_TIMER = 0x0F
    HOST_CONTROLLED_THERMAL_MANAGEMENT = 0x10
    NON_OPERATIONAL_POWER_STATE = 0x11
    HOST_BEHAVIOR_SUPPORT = 0x16
    COMMAND_SET_PROFILE = 0x19
    SOFTWARE_PROGRESS_MARKER = 0x80
    HOST_IDENTIFIER = 0x81


class Select(enum.IntEnum):
    """SEL of Get Features: which value."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    SUPPORTED_CAPABILITIES = 3


class FeatureCapabilities(enum.IntFlag):
    """What Get Features returns for ``Select.SUPPORTED_CAPABILITIES``."""

    SAVEABLE = 1 << 0
    NAMESPACE_SPECIFIC = 1 << 1
    CHANGEABLE = 1 << 2


class AsyncEventConfiguration(enum.IntFlag):
    """Which asynchronous events the host wants. Spec: figure 326."""

    CRITICAL_WARNINGS = 0xFF
    NAMESPACE_ATTRIBUTE = 1 << 8
    FIRMWARE_ACTIVATION = 1 << 9
    TELEMETRY_LOG = 1 << 10

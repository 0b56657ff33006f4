"""Extended capabilities about the link and time on it: LTR, L1 substates, precision time, port containment.

Spec: PCI Express Base 7.8.2 (LTR), 7.8.3 (L1 PM substates), 7.9.15 (precision time), 7.9.14 (containment).
"""

from __future__ import annotations

import enum

from vfio_user.pci.capabilities.base import ExtendedCapability
from vfio_user.pci.config_registers import STICKY
from vfio_user.pci.registers import RO, RW1C, W1P, Field, Register, before_write, on_change, on_write

__all__ = [
    "ContainmentReason",
    "DownstreamPortContainment",
    "L1PmSubstates",
    "LatencyTolerance",
    "PrecisionTime",
]


class LatencyTolerance(ExtendedCapability):
    """Latency tolerance reporting: the greatest latencies software lets the device report.

    Args:
        at: offset in configuration space; None places it.
    """

    cap_id = 0x18

    max_snoop = Register(0x04, width=16, fields=[Field("value", (9, 0)), Field("scale", (12, 10))])
    max_no_snoop = Register(0x06, width=16, fields=[Field("value", (9, 0)), Field("scale", (12, 10))])

    @on_change("max_snoop")
    def _tell_snoop(self) -> None:
        self.notify("max_snoop")

    @on_change("max_no_snoop")
    def _tell_no_snoop(self) -> None:
        self.notify("max_no_snoop")


class L1PmSubstates(ExtendedCapability):
    """L1 PM substates.

    Args:
        pcipm_l1_2: the substates it supports, by PCI-PM and by ASPM.
        pcipm_l1_1: see above.
        aspm_l1_2: see above.
        aspm_l1_1: see above.
        common_mode_restore_time: microseconds, 0 to 255.
        power_on_scale: 0 to 2: power_on_value counts 2, 10 or 100 microseconds.
        power_on_value: 0 to 31.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: a number does not fit its field.
    """

    cap_id = 0x1E

    capability = Register(
        0x04,
        access=RO,
        fields=[
            Field("pcipm_l1_2", 0),
            Field("pcipm_l1_1", 1),
            Field("aspm_l1_2", 2),
            Field("aspm_l1_1", 3),
            Field("substates", 4, reset=1),
            Field("common_mode_restore_time", (15, 8)),
            Field("power_on_scale", (17, 16)),
            Field("power_on_value", (23, 19)),
        ],
    )
    control_1 = Register(
        0x08,
        fields=[
            Field("pcipm_l1_2", 0),
            Field("pcipm_l1_1", 1),
            Field("aspm_l1_2", 2),
            Field("aspm_l1_1", 3),
            Field("common_mode_restore_time", (15, 8), access=RO, doc="of downstream ports"),
            Field("ltr_threshold_value", (25, 16)),
            Field("ltr_threshold_scale", (31, 29)),
        ],
    )
    control_2 = Register(
        0x0C,
        fields=[Field("power_on_scale", (1, 0)), Field("power_on_value", (7, 3), reset=5)],
    )

    def __init__(
        self,
        *,
        pcipm_l1_2: bool = True,
        pcipm_l1_1: bool = True,
        aspm_l1_2: bool = True,
        aspm_l1_1: bool = True,
        common_mode_restore_time: int = 0,
        power_on_scale: int = 0,
        power_on_value: int = 5,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        self.check_range(
            common_mode_restore_time=(common_mode_restore_time, 0xFF),
            power_on_scale=(power_on_scale, 2),
            power_on_value=(power_on_value, 0x1F),
        )
        self._states = aspm_l1_1 << 3 | aspm_l1_2 << 2 | pcipm_l1_1 << 1 | pcipm_l1_2
        self._times = power_on_value << 19 | power_on_scale << 16 | common_mode_restore_time << 8

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.capability = self._times | 1 << 4 | self._states

    @before_write("control_1")
    def _limit(self, value: int) -> int:
        return value & ~0xF | value & self._states

    @on_change("control_1")
    def _tell(self) -> None:
        self.notify("control_1")


class PrecisionTime(ExtendedCapability):
    """Precision time measurement.

    Args:
        requester: it asks for time, as endpoints do.
        responder: it answers.
        root: it is a source of time.
        granularity: of its clock, nanoseconds; 0 says nothing, 255 means more than 254.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: ``granularity`` does not fit 8 bits, or ``root`` comes without ``responder``.
    """

    cap_id = 0x1F

    capability = Register(
        0x04,
        access=RO,
        fields=[Field("requester", 0), Field("responder", 1), Field("root", 2), Field("granularity", (15, 8))],
    )
    control = Register(
        0x08,
        fields=[Field("enable", 0), Field("root_select", 1), Field("effective_granularity", (15, 8))],
    )

    def __init__(
        self,
        *,
        requester: bool = True,
        responder: bool = False,
        root: bool = False,
        granularity: int = 0,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        self.check_range(granularity=(granularity, 0xFF))
        if root and not responder:
            raise self.refuse("root=True needs responder=True: a source of time answers")
        self._bits = granularity << 8 | root << 2 | responder << 1 | requester
        # "If this Function is not root capable, [root select] is hardwired to 0"; only requesters are told the
        # granularity of the clock they end up with.
        self._writable = 1 | root << 1 | (0xFF00 if requester else 0)

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.capability = self._bits

    @before_write("control")
    def _limit(self, value: int) -> int:
        return value & self._writable

    @on_change("control")
    def _tell(self) -> None:
        self.notify("control")


class ContainmentReason(enum.IntEnum):
    """Why a port contained itself."""

    UNMASKED_UNCORRECTABLE = 0
    NONFATAL_MESSAGE = 1
    FATAL_MESSAGE = 2
    EXTENDED = 3


class DownstreamPortContainment(ExtendedCapability):
    """Downstream port containment (DPC). Of ports, not of endpoints; here for those who model one.

    Args:
        interrupt_message: the vector of its interrupt, 0 to 31.
        software_trigger: software can trigger it.
        poisoned_egress_blocking: it can block poisoned packets.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: ``interrupt_message`` does not fit 5 bits.
    """

    cap_id = 0x1D

    capability = Register(
        0x04,
        width=16,
        access=RO,
        fields=[
            Field("interrupt_message", (4, 0)),
            Field("root_port_extensions", 5),
            Field("poisoned_egress_blocking", 6),
            Field("software_trigger", 7),
            Field("pio_log_size", (11, 8)),
            Field("dl_active_correctable", 12),
        ],
    )
    control = Register(
        0x06,
        width=16,
        fields=[
            Field("trigger_enable", (1, 0), doc="0 off, 1 fatal errors, 2 nonfatal ones too"),
            Field("completion_control", 2),
            Field("interrupt_enable", 3),
            Field("correctable_enable", 4),
            Field("poisoned_egress_blocking", 5),
            Field("software_trigger", 6, access=W1P),
            Field("dl_active_correctable", 7, access=RO),
        ],
    )
    status = Register(
        0x08,
        width=16,
        access=RO,
        fields=[
            Field("triggered", 0, access=RW1C, sticky=STICKY),
            Field("reason", (2, 1), values=ContainmentReason, sticky=STICKY),
            Field("interrupt", 3, access=RW1C, sticky=STICKY),
            Field("busy", 4),
            Field("reason_extension", (6, 5), sticky=STICKY),
            Field("pio_first_error", (12, 8), sticky=STICKY),
        ],
    )
    source_id = Register(0x0A, width=16, access=RO, sticky=STICKY)

    def __init__(
        self,
        *,
        interrupt_message: int = 0,
        software_trigger: bool = True,
        poisoned_egress_blocking: bool = False,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        self.check_range(interrupt_message=(interrupt_message, 0x1F))
        self._bits = software_trigger << 7 | poisoned_egress_blocking << 6 | interrupt_message

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.capability = self._bits

    def trigger(self, reason: ContainmentReason, *, source_id: int = 0, extension: int = 0) -> bool:
        """Contains the port: status, reason and source are latched until software clears the status.

        Args:
            reason: why.
            source_id: routing id of the function that reported the error, for the two messages.
            extension: the reason extension, with EXTENDED: 1 is software.

        Returns:
            Whether it did: containment is off, or in effect already, otherwise.
        """
        if not self.control.trigger_enable or self.status.triggered:
            return False
        self.status.triggered = 1
        self.status.reason = reason
        self.status.reason_extension = extension
        self.source_id = source_id
        if self.control.interrupt_enable:
            self.status.interrupt = 1
        return True

    @before_write("control.poisoned_egress_blocking")
    def _limit(self, value: int) -> int:
        return value if self.capability.poisoned_egress_blocking else 0

    @on_write("control.software_trigger")
    def _software_trigger(self, value: int) -> None:
        if value and self.capability.software_trigger and self.trigger(ContainmentReason.EXTENDED, extension=1):
            self.notify("status")

    @on_change("control")
    def _tell(self) -> None:
        self.notify("control")

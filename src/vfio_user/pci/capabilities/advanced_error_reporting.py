"""Advanced error reporting (AER): which errors happened, which are masked, how severe each is - and injecting them.

A driver's error handlers are hard to reach with healthy hardware. ``inject`` does what hardware does when an error is
detected: status, header log and first error pointer, the bits in device status and in the header's status, and the
decision whether an error message leaves the function.

Spec: PCI Express Base 7.8.4 (registers), 6.2 (signaling, figure 6-2).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence

from vfio_user.pci.capabilities.base import ExtendedCapability
from vfio_user.pci.capabilities.express import PciExpress
from vfio_user.pci.config_registers import STICKY
from vfio_user.pci.registers import RO, RW, RW1C, Access, Field, Register, before_write, on_write

__all__ = ["AdvancedErrorReporting", "CorrectableError", "UncorrectableError"]


class UncorrectableError(enum.IntEnum):
    """Uncorrectable errors; the value is the bit number in status, mask and severity."""

    DATA_LINK_PROTOCOL = 4
    SURPRISE_DOWN = 5
    POISONED_TLP = 12
    FLOW_CONTROL_PROTOCOL = 13
    COMPLETION_TIMEOUT = 14
    COMPLETER_ABORT = 15
    UNEXPECTED_COMPLETION = 16
    RECEIVER_OVERFLOW = 17
    MALFORMED_TLP = 18
    ECRC = 19
    UNSUPPORTED_REQUEST = 20
    ACS_VIOLATION = 21
    UNCORRECTABLE_INTERNAL = 22
    MC_BLOCKED_TLP = 23
    ATOMIC_EGRESS_BLOCKED = 24
    TLP_PREFIX_BLOCKED = 25
    POISONED_TLP_EGRESS_BLOCKED = 26


class CorrectableError(enum.IntEnum):
    """Correctable errors; the value is the bit number in status and mask."""

    RECEIVER = 0
    BAD_TLP = 6
    BAD_DLLP = 7
    REPLAY_NUMBER_ROLLOVER = 8
    REPLAY_TIMER_TIMEOUT = 12
    ADVISORY_NONFATAL = 13
    CORRECTED_INTERNAL = 14
    HEADER_LOG_OVERFLOW = 15


#: Fatal unless software says otherwise.
_FATAL = frozenset(
    {
        UncorrectableError.DATA_LINK_PROTOCOL,
        UncorrectableError.SURPRISE_DOWN,
        UncorrectableError.FLOW_CONTROL_PROTOCOL,
        UncorrectableError.RECEIVER_OVERFLOW,
        UncorrectableError.MALFORMED_TLP,
        UncorrectableError.UNCORRECTABLE_INTERNAL,
    }
)

#: Masked unless software says otherwise: errors older software does not know.
_MASKED = frozenset({UncorrectableError.UNCORRECTABLE_INTERNAL, UncorrectableError.POISONED_TLP_EGRESS_BLOCKED})
_MASKED_CORRECTABLE = frozenset(
    {
        CorrectableError.ADVISORY_NONFATAL,
        CorrectableError.CORRECTED_INTERNAL,
        CorrectableError.HEADER_LOG_OVERFLOW,
    }
)


def _fields(errors: type[enum.IntEnum], access: Access, ones: Collection[enum.IntEnum] = ()) -> list[Field]:
    return [Field(error.name.lower(), error, access=access, reset=error in ones, sticky=STICKY) for error in errors]


class AdvancedErrorReporting(ExtendedCapability):
    """The AER capability of an endpoint.

    Args:
        ecrc_generation: it can add end-to-end CRCs.
        ecrc_checking: it can check them.
        at: offset in configuration space; None places it.
    """

    cap_id = 0x01
    version = 2

    uncorrectable_status = Register(0x04, fields=_fields(UncorrectableError, RW1C))
    uncorrectable_mask = Register(0x08, fields=_fields(UncorrectableError, RW, _MASKED))
    uncorrectable_severity = Register(0x0C, fields=_fields(UncorrectableError, RW, _FATAL), doc="1 fatal, 0 nonfatal")
    correctable_status = Register(0x10, fields=_fields(CorrectableError, RW1C))
    correctable_mask = Register(0x14, fields=_fields(CorrectableError, RW, _MASKED_CORRECTABLE))
    control = Register(
        0x18,
        fields=[
            Field("first_error", (4, 0), access=RO, sticky=STICKY, doc="bit number of the error the header log is of"),
            Field("ecrc_generation_capable", 5, access=RO),
            Field("ecrc_generation", 6, sticky=STICKY),
            Field("ecrc_checking_capable", 7, access=RO),
            Field("ecrc_checking", 8, sticky=STICKY),
        ],
    )
    header_log = Register(0x1C, count=4, access=RO, sticky=STICKY)

    def __init__(self, *, ecrc_generation: bool = False, ecrc_checking: bool = False, at: int | None = None) -> None:
        super().__init__(at=at)
        self._generation = ecrc_generation
        self._checking = ecrc_checking

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.control.ecrc_generation_capable = self._generation
        self.control.ecrc_checking_capable = self._checking

    def inject(
        self, error: UncorrectableError | CorrectableError, header: Sequence[int] = (), *, advisory: bool = False
    ) -> str | None:
        """Does what hardware does when it detects ``error``.

        Args:
            error: what happened.
            header: up to four 32-bit words of the packet that was in error, for the log.
            advisory: an uncorrectable, nonfatal error that is reported as a correctable one (6.2.3.2.4).

        Returns:
            The message the function sends, "ERR_COR", "ERR_NONFATAL" or "ERR_FATAL", also given to
            ``on_error_message``; None if the error is masked or its message is not enabled.
        """
        bit = 1 << error
        if isinstance(error, CorrectableError):
            self.correctable_status |= bit
            return self._report("correctable", masked=bool(self.correctable_mask & bit))
        fatal = bool(self.uncorrectable_severity & bit)
        unsupported = error is UncorrectableError.UNSUPPORTED_REQUEST
        if advisory and not fatal:
            self.correctable_status.advisory_nonfatal = 1
            if self.correctable_mask.advisory_nonfatal:
                self._log(bit, error, header, masked=True)
                return self._report("correctable", masked=True, unsupported=unsupported)
            self._log(bit, error, header, masked=bool(self.uncorrectable_mask & bit))
            return self._report("correctable", masked=False, unsupported=unsupported)
        masked = bool(self.uncorrectable_mask & bit)
        self._log(bit, error, header, masked=masked)
        return self._report("fatal" if fatal else "nonfatal", masked=masked, unsupported=unsupported)

    def _log(self, bit: int, error: UncorrectableError, header: Sequence[int], *, masked: bool) -> None:
        """Sets the status bit; the first unmasked error has the header log until software clears it."""
        taken = self.uncorrectable_status & 1 << self.control.first_error
        self.uncorrectable_status |= bit
        if not masked and not taken:
            self.control.first_error = error
            for index in range(4):
                self.header_log[index] = header[index] if index < len(header) else 0

    def _report(self, severity: str, *, masked: bool, unsupported: bool = False) -> str | None:
        """Sets device status and says which message leaves."""
        host = self.host
        express = host.find(PciExpress)
        enabled = False
        if express is not None:
            enabled = express.report(severity)
            if unsupported:
                # One more enable bit has a say in these.
                enabled = express.report("unsupported_request") and enabled
        command, status = host.header.command, host.header.status
        # SERR# Enable of the command register sends the uncorrectable messages too, whatever device control says.
        by_serr = severity != "correctable" and bool(command.serr_enable)
        if masked or not (enabled or by_serr):
            return None
        if by_serr:
            status.signaled_system_error = 1
        message = {"correctable": "ERR_COR", "nonfatal": "ERR_NONFATAL", "fatal": "ERR_FATAL"}[severity]
        host.events.on_error_message(message)
        return message

    @before_write("control.ecrc_generation")
    def _ecrc_generation_bit(self, value: int) -> int:
        return value if self._generation else 0

    @before_write("control.ecrc_checking")
    def _ecrc_checking_bit(self, value: int) -> int:
        return value if self._checking else 0

    @on_write("uncorrectable_status")
    def _release_log(self) -> None:
        # With its status bit gone the pointer is free for the next error; it reads as it was, which is allowed.
        self.notify("uncorrectable_status")

from __future__ import annotations

import pytest

from vfio_user.pci import (
    AdvancedErrorReporting,
    CorrectableError,
    FunctionEvents,
    PciAttributes,
    PciExpress,
    PciFunction,
    ResetKind,
    UncorrectableError,
    build_function,
)

AER, DEVICE_CONTROL, DEVICE_STATUS = 0x100, 0x48, 0x4A
UNCORRECTABLE, SEVERITY, CORRECTABLE, CONTROL, LOG = AER + 0x04, AER + 0x0C, AER + 0x10, AER + 0x18, AER + 0x1C


class Card(PciAttributes):
    vendor_id, device_id, class_code = 0x1234, 0x11E8, 0xFF0000
    express = PciExpress()
    aer = AdvancedErrorReporting(ecrc_generation=True, ecrc_checking=True)


def make(*, enabled: int = 0xF) -> tuple[Card, PciFunction, list[str]]:
    messages: list[str] = []
    device = Card()
    function = build_function(device, FunctionEvents(on_error_message=messages.append))
    function.config.write(DEVICE_CONTROL, 2, enabled)
    return device, function, messages


def test_correctable_error() -> None:
    device, function, messages = make()
    assert device.aer.inject(CorrectableError.BAD_TLP) == "ERR_COR"
    assert messages == ["ERR_COR"]
    assert function.config.read(CORRECTABLE, 4) == 0x40
    assert function.config.read(DEVICE_STATUS, 2) == 0x1
    function.config.write(CORRECTABLE, 4, 0x40)
    assert function.config.read(CORRECTABLE, 4) == 0


@pytest.mark.parametrize(
    ("error", "message", "status"),
    [
        (UncorrectableError.MALFORMED_TLP, "ERR_FATAL", 0x4),
        (UncorrectableError.COMPLETION_TIMEOUT, "ERR_NONFATAL", 0x2),
        (UncorrectableError.UNSUPPORTED_REQUEST, "ERR_NONFATAL", 0xA),
    ],
)
def test_uncorrectable_errors_go_by_their_severity(error: UncorrectableError, message: str, status: int) -> None:
    device, function, messages = make()
    assert device.aer.inject(error, [0x4A000001, 2, 3, 4]) == message
    assert messages == [message]
    assert function.config.read(UNCORRECTABLE, 4) == 1 << error
    assert function.config.read(DEVICE_STATUS, 2) == status
    assert function.config.read(CONTROL, 1) & 0x1F == error
    assert function.config.read_bytes(LOG, 16).hex() == "0100004a020000000300000004000000"


def test_software_chooses_the_severity() -> None:
    device, function, messages = make()
    function.config.write(SEVERITY, 4, 1 << UncorrectableError.COMPLETION_TIMEOUT)
    device.aer.inject(UncorrectableError.COMPLETION_TIMEOUT)
    device.aer.inject(UncorrectableError.MALFORMED_TLP)
    assert messages == ["ERR_FATAL", "ERR_NONFATAL"]


def test_masked_errors_are_latched_and_not_reported() -> None:
    device, function, messages = make()
    assert device.aer.inject(UncorrectableError.UNCORRECTABLE_INTERNAL, [1]) is None
    assert device.aer.inject(CorrectableError.CORRECTED_INTERNAL) is None
    assert messages == []
    assert function.config.read(UNCORRECTABLE, 4) == 1 << 22
    assert function.config.read(CORRECTABLE, 4) == 1 << 14
    assert function.config.read(DEVICE_STATUS, 2) == 0x5
    assert function.config.read(LOG, 4) == 0


def test_log_belongs_to_the_first_error_until_it_is_cleared() -> None:
    device, function, _ = make()
    device.aer.inject(UncorrectableError.POISONED_TLP, [1, 2])
    device.aer.inject(UncorrectableError.ECRC, [9, 9])
    assert function.config.read(CONTROL, 1) & 0x1F == 12
    assert function.config.read(LOG, 8) == 0x2_0000_0001
    function.config.write(UNCORRECTABLE, 4, 1 << 12)
    device.aer.inject(UncorrectableError.COMPLETER_ABORT, [7])
    assert function.config.read(CONTROL, 1) & 0x1F == 15
    assert function.config.read(LOG, 8) == 7


def test_nothing_is_sent_that_is_not_enabled() -> None:
    device, function, messages = make(enabled=0)
    assert device.aer.inject(CorrectableError.RECEIVER) is None
    assert device.aer.inject(UncorrectableError.MALFORMED_TLP) is None
    assert messages == []
    assert function.config.read(DEVICE_STATUS, 2) == 0x5
    # Unsupported requests need their own bit as well.
    function.config.write(DEVICE_CONTROL, 2, 0x2)
    assert device.aer.inject(UncorrectableError.UNSUPPORTED_REQUEST) is None
    function.config.write(DEVICE_CONTROL, 2, 0xA)
    assert device.aer.inject(UncorrectableError.UNSUPPORTED_REQUEST) == "ERR_NONFATAL"


def test_serr_enable_sends_uncorrectable_messages() -> None:
    device, function, messages = make(enabled=0)
    function.config.write(0x04, 2, 0x100)
    device.aer.inject(CorrectableError.RECEIVER)
    assert messages == []
    device.aer.inject(UncorrectableError.MALFORMED_TLP)
    assert messages == ["ERR_FATAL"]
    assert function.config.read(0x06, 2) & 0x4000


def test_advisory_nonfatal_errors_are_correctable_ones() -> None:
    device, function, messages = make()
    assert device.aer.inject(UncorrectableError.UNEXPECTED_COMPLETION, [5], advisory=True) is None  # masked at reset
    assert function.config.read(LOG, 4) == 0
    function.config.write(AER + 0x14, 4, 0)
    function.config.write(UNCORRECTABLE, 4, 0xFFFF_FFFF)
    assert device.aer.inject(UncorrectableError.UNEXPECTED_COMPLETION, [5], advisory=True) == "ERR_COR"
    assert messages == ["ERR_COR"]
    assert function.config.read(CORRECTABLE, 4) == 1 << 13
    assert function.config.read(UNCORRECTABLE, 4) == 1 << 16
    assert function.config.read(LOG, 4) == 5
    assert device.aer.inject(UncorrectableError.MALFORMED_TLP, advisory=True) == "ERR_FATAL"


@pytest.mark.parametrize("kind", [ResetKind.DEVICE, ResetKind.FLR])
def test_everything_it_knows_survives_resets(kind: ResetKind) -> None:
    device, function, _ = make()
    device.aer.inject(UncorrectableError.POISONED_TLP, [1, 2, 3, 4])
    device.aer.inject(CorrectableError.BAD_DLLP)
    function.config.write(AER + 0x08, 4, 0x0010_0000)
    function.config.write(CONTROL, 4, 0x140)
    before = function.config.read_bytes(AER, 0x2C)
    assert function.config.read(CONTROL, 4) == 0x1EC
    function.reset(kind)
    assert function.config.read_bytes(AER, 0x2C) == before
    function.reset(ResetKind.POWER_ON)
    assert function.config.read(UNCORRECTABLE, 4) == 0


def test_without_reporting_of_errors_by_device_control_nothing_breaks() -> None:
    seen: list[tuple[str, str]] = []
    function = build_function(Card(), FunctionEvents(on_capability=lambda *what: seen.append(what)))
    function.config.write(UNCORRECTABLE, 4, 0xFFFF_FFFF)
    assert seen == [("aer", "uncorrectable_status")]

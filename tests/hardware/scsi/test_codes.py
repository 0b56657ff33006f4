from __future__ import annotations

from vfio_user.hardware.scsi.codes import AdditionalSense, OperationCode, Status


def test_additional_sense_is_two_bytes() -> None:
    code = AdditionalSense.RESERVATIONS_PREEMPTED
    assert (code.asc, code.ascq) == (0x2A, 0x03)
    assert all(each < 1 << 16 for each in AdditionalSense)


def test_no_two_names_are_one() -> None:
    for kind in (AdditionalSense, OperationCode, Status):
        assert len(kind.__members__) == len(list(kind))

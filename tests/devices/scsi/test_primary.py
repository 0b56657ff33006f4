from __future__ import annotations

import struct

import pytest

from tests.devices.scsi.initiator import Initiator
from tests.devices.scsi.storage import Storage
from vfio_user.devices.scsi import CdRom, Disk
from vfio_user.hardware.scsi.cdb import LAYOUTS
from vfio_user.hardware.scsi.codes import AdditionalSense


def report(options: int, code: int = 0, action: int = 0, length: int = 4096) -> bytes:
    return struct.pack(">BBBBHI2x", 0xA3, 0x0C, options, code, action, length)


@pytest.fixture
def initiator() -> Initiator:
    disk = Disk(Storage(512 * 64), vendor="Nobody", product="Nothing", revision="0.1", serial="S/N 1")
    return Initiator(disk).ready()


def test_standard_inquiry_data(initiator: Initiator) -> None:
    data = initiator.good("120000006000")
    assert len(data) == 74
    assert data[:8] == bytes.fromhex("00 00 06 12 45 00 00 32")
    assert data[8:36] == b"Nobody  Nothing         0.1 "
    assert struct.unpack_from(">HHH", data, 58) == (0x00A0, 0x0460, 0x04C0)


def test_inquiry_data_is_cut(initiator: Initiator) -> None:
    for length in (0, 1, 5, 36, 74, 255):
        assert len(initiator.good(struct.pack(">BBBHx", 0x12, 0, 0, length))) == min(length, 74)


def test_a_page_needs_evpd(initiator: Initiator) -> None:
    initiator.illegal("120080001000", 2)
    initiator.illegal("1201c000ff00", 2)


def test_names(initiator: Initiator) -> None:
    assert initiator.good("12018000ff00") == b"\0\x80\0\x05S/N 1"
    data = initiator.good("12018300ff00")
    assert data[:4] == bytes([0, 0x83, 0, len(data) - 4])
    text = b"Nobody  Nothing         S/N 1"
    assert data[4:8] == bytes([2, 1, 0, len(text)])
    assert data[8 : 8 + len(text)] == text
    assert data[8 + len(text) :][:4] == bytes([1, 3, 0, 8])
    assert data[-8] >> 4 == 3  # NAA: locally assigned
    assert len(data) == 4 + 4 + len(text) + 12


def test_two_disks_have_two_names() -> None:
    names = [Initiator(Disk(Storage(512), serial=serial)).good("12018300ff00")[-8:] for serial in ("1", "2", "1")]
    assert names[0] != names[1]
    assert names[0] == names[2]


def test_a_serial_number_nobody_gave() -> None:
    assert len(Initiator(Disk(Storage(512))).good("12018000ff00")) == 4 + 16


def test_request_sense_chooses_its_format(initiator: Initiator) -> None:
    assert initiator.good("03000000ff00")[0] == 0x70
    assert initiator.good("03010000ff00")[0] == 0x72


def test_send_diagnostic(initiator: Initiator) -> None:
    initiator.good("1d0400000000")
    initiator.illegal("1d2000000000", 1, 7)
    initiator.illegal("1d0000000100", 3)


# REPORT SUPPORTED OPERATION CODES.


def test_all_commands_are_reported(initiator: Initiator) -> None:
    data = initiator.good(report(0))
    assert struct.unpack_from(">I", data) == (len(data) - 4,)
    found = {
        (code, action if flags & 1 else None): length
        for code, action, flags, length in struct.iter_unpack(">BxHxBH", data[4:])
    }
    assert found == {key: LAYOUTS[key].length for key in initiator.unit.commands}


def test_one_command(initiator: Initiator) -> None:
    assert initiator.good(report(1, 0x28)) == bytes.fromhex("0003000a 28 f8 ffffffff 1f ffff 04")
    assert initiator.good(report(3, 0x28)) == initiator.good(report(1, 0x28))
    assert initiator.good(report(1, 0x43)) == bytes.fromhex("00010000")
    assert initiator.good(report(3, 0x28, 5)) == bytes.fromhex("00010000")
    assert initiator.good(report(2, 0x9E, 0x10))[:6] == bytes.fromhex("00030010 9e 1f")
    assert initiator.good(report(2, 0x9E, 0x11)) == bytes.fromhex("00010000")


def test_one_command_that_is_asked_for_wrongly(initiator: Initiator) -> None:
    initiator.illegal(report(1, 0x9E), 2, 2)
    initiator.illegal(report(2, 0x28), 2, 2)
    initiator.illegal(report(4), 2, 2)


def test_a_drive_reports_its_own() -> None:
    initiator = Initiator(CdRom()).ready()
    assert initiator.good(report(1, 0x43))[:4] == bytes.fromhex("0003000a")
    assert initiator.good(report(1, 0x2A)) == bytes.fromhex("00010000")
    initiator.illegal("2a" + "00" * 9, 0, None, AdditionalSense.INVALID_OPERATION_CODE)

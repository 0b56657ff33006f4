from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.scsi.initiator import Initiator, cdb
from tests.devices.scsi.storage import Jobs, SlowStorage, Storage
from vfio_user.devices.scsi import CdRom
from vfio_user.hardware.scsi.codes import AdditionalSense, SenseKey, Status
from vfio_user.hardware.scsi.codes import OperationCode as Op

BLOCKS = 1000
NOT_READY = SenseKey.NOT_READY
READY, EJECT, LOAD = "000000000000", "1b0000000200", "1b0000000300"


def toc(kind: int, *, msf: int = 0, track: int = 0, length: int = 255, old: int = 0) -> bytes:
    return cdb("BBB3xBHB", 0x43, msf << 1, kind, track, length, old << 6)


def events(classes: int = 0x10, *, polled: int = 1, length: int = 255) -> bytes:
    return cdb("BBxxBxxHx", 0x4A, polled, classes, length)


def configuration(kind: int = 0, first: int = 0, length: int = 1000) -> bytes:
    return cdb("BBH3xHx", 0x46, kind, first, length)


@pytest.fixture
def disc() -> Storage:
    storage = Storage(BLOCKS * 2048)
    for block in range(BLOCKS):
        storage.bytes[block * 2048 : block * 2048 + 4] = struct.pack(">I", block)
    return storage


@pytest.fixture
def drive(disc: Storage) -> CdRom:
    return CdRom(disc, serial="CD1")


@pytest.fixture
def initiator(drive: CdRom) -> Initiator:
    return Initiator(drive).ready()


def test_identity(initiator: Initiator) -> None:
    data = initiator.good("120000006000")
    assert data[:2] == b"\x05\x80"
    assert data[8:32] == b"vfiouserCD-ROM          "
    assert struct.unpack_from(">H", data, 62) == (0x04E0,)
    assert initiator.good("12010000ff00") == bytes.fromhex("05000003 00 80 83")


@pytest.mark.parametrize("command", [cdb("BxIxHx", Op.READ_10, 7, 2), cdb("BxIIxx", Op.READ_12, 7, 2)])
def test_reading(initiator: Initiator, disc: Storage, command: bytes) -> None:
    assert initiator.good(command) == disc.bytes[7 * 2048 : 9 * 2048]


def test_slow_discs(disc: Storage) -> None:
    slow, jobs = SlowStorage(BLOCKS * 2048), Jobs()
    slow.bytes[:] = disc.bytes
    initiator = Initiator(CdRom(slow, workers=jobs), wait=jobs.step).ready()
    assert initiator.good(cdb("BxIIxx", Op.READ_12, 0, BLOCKS)) == disc.bytes
    assert jobs.done == 8


def test_capacity(initiator: Initiator) -> None:
    assert initiator.good("25" + "00" * 9) == struct.pack(">II", BLOCKS - 1, 2048)
    initiator.illegal(cdb("BxIxHx", Op.READ_10, BLOCKS, 1), 2, None, AdditionalSense.LBA_OUT_OF_RANGE)


def test_nothing_can_be_written(initiator: Initiator) -> None:
    for code in (0x0A, 0x2A, 0xAA, 0x8A, 0x41, 0x42, 0x35):
        initiator.illegal(bytes([code]) + bytes(15), 0, None, AdditionalSense.INVALID_OPERATION_CODE)


# Discs.


def test_table_of_contents(initiator: Initiator) -> None:
    whole = bytes.fromhex("0012 01 01 00140100 00000000 0014aa00 000003e8")
    assert initiator.good(toc(0)) == whole
    assert initiator.good(toc(0, length=4)) == whole[:4]
    assert initiator.good(toc(0, track=1)) == whole
    assert initiator.good(toc(0, track=0xAA)) == bytes.fromhex("000a 01 01 0014aa00 000003e8")
    assert initiator.good(toc(0, msf=1)) == bytes.fromhex("0012 01 01 00140100 00000200 0014aa00 00000f19")
    initiator.illegal(toc(0, track=2), 6)
    assert initiator.good(toc(1)) == bytes.fromhex("000a 01 01 00140100 00000000")
    assert initiator.good(toc(0, old=1)) == bytes.fromhex("000a 01 01 00140100 00000000")
    full = initiator.good(toc(2))
    assert full[:4] == bytes.fromhex("002e 01 01")
    assert [full[4 + 11 * index :][:11].hex() for index in range(4)] == [
        "011400a000000000010000",
        "011400a100000000010000",
        "011400a200000000000f19",
        "0114000100000000000200",
    ]
    initiator.illegal(toc(5), 2, 3)


def test_disc_and_track(initiator: Initiator) -> None:
    disc = initiator.good(cdb("BB5xHx", 0x51, 0, 255))
    assert (len(disc), disc[:8]) == (34, bytes.fromhex("0020 0e 01 01 01 01 20"))
    initiator.illegal(cdb("BB5xHx", 0x51, 1, 255), 1, 2)
    for kind, address in [(0, 0), (0, BLOCKS - 1), (1, 1), (2, 1)]:
        track = initiator.good(cdb("BBIxHx", 0x52, kind, address, 255))
        assert (len(track), track[:7]) == (36, bytes.fromhex("0022 01 01 00 04 01"))
        assert struct.unpack_from(">I12xI", track, 8) == (0, BLOCKS)
    for kind, address in [(0, BLOCKS), (1, 2), (1, 0), (2, 0)]:
        initiator.illegal(cdb("BBIxHx", 0x52, kind, address, 255), 2)
    initiator.illegal(cdb("BBIxHx", 0x52, 3, 1, 255), 1, 1)


def structure(kind: int, *, layer: int = 0, media: int = 0, length: int = 4096) -> bytes:
    return cdb("BBIBBHBx", 0xAD, media, 0, layer, kind, length, 0)


def test_structures_of_a_dvd() -> None:
    blocks = 400_000
    initiator = Initiator(CdRom(Storage(blocks * 2048))).ready()
    physical = initiator.good(structure(0))
    assert (len(physical), physical[:4]) == (2052, bytes.fromhex("0802 0000"))
    assert struct.unpack_from(">III", physical, 8) == (0x3_0000, 0x3_0000 + blocks - 1, 0)
    assert initiator.good(structure(1)) == bytes.fromhex("0006 0000 00000000")
    assert initiator.good(structure(0xFF)) == bytes.fromhex("000a 0000 00400804 01400008")
    initiator.illegal(structure(4), 7)
    initiator.illegal(structure(0, layer=1), 6)
    initiator.illegal(structure(0, media=1), 1, 3)


def test_a_cd_has_no_such_structures(initiator: Initiator) -> None:
    initiator.check(structure(0), SenseKey.ILLEGAL_REQUEST, AdditionalSense.INCOMPATIBLE_MEDIUM)
    initiator.good(EJECT)
    initiator.check(structure(0), NOT_READY, AdditionalSense.MEDIUM_NOT_PRESENT_TRAY_OPEN)


def features(data: bytes) -> dict[int, int]:
    found, rest = {}, data[8:]
    while rest:
        code, flags, length = struct.unpack_from(">HBB", rest)
        found[code], rest = flags & 1, rest[4 + length :]
    return found


def test_configuration(initiator: Initiator, drive: CdRom) -> None:
    data = initiator.good(configuration())
    assert struct.unpack_from(">IHH", data) == (len(data) - 4, 0, 0x08)
    assert features(data) == {0: 1, 1: 1, 2: 1, 3: 1, 0x10: 1, 0x1D: 1, 0x1E: 1, 0x1F: 0}
    # 2048 bytes a block, one block at a time; a tray that can be locked, and opened.
    assert bytes.fromhex("0010 01 08 00000800 0001 00 00") in data
    assert bytes.fromhex("0003 0b 04 39 000000") in data
    assert set(features(initiator.good(configuration(first=0x10)))) == {0x10, 0x1D, 0x1E, 0x1F}
    assert set(features(initiator.good(configuration(kind=1, first=0x1E)))) == {0x1E}
    assert set(features(initiator.good(configuration(kind=2, first=0x1F)))) == {0x1F}
    assert features(initiator.good(configuration(kind=2, first=0x20))) == {}
    initiator.illegal(configuration(kind=3), 1, 1)
    assert initiator.good(configuration(length=8)) == data[:8]
    drive.insert(Storage(400_000 * 2048))
    data = initiator.good(configuration())  # whatever attention there is
    assert struct.unpack_from(">H", data, 6) == (0x10,)
    assert (features(data)[0x1E], features(data)[0x1F]) == (0, 1)
    drive.remove()
    data = initiator.good(configuration())
    assert struct.unpack_from(">H", data, 6) == (0,)
    assert features(data)[0x10] == 0


# The tray.


def test_ejecting_and_loading(initiator: Initiator, drive: CdRom) -> None:
    initiator.good(EJECT)
    for command in (READY, cdb("BxIxHx", 0x28, 0, 1), toc(0), cdb("B9x", 0x25), cdb("B9x", 0x51), cdb("B9x", 0x52)):
        initiator.check(command, NOT_READY, AdditionalSense.MEDIUM_NOT_PRESENT_TRAY_OPEN)
    assert initiator.good(cdb("B7xHxx", 0xBD, 255)) == bytes.fromhex("00 10 000000 01 0000")
    initiator.good(LOAD)
    initiator.check(READY, SenseKey.UNIT_ATTENTION, AdditionalSense.MEDIUM_MAY_HAVE_CHANGED)
    initiator.good(READY)
    assert initiator.good(cdb("B7xHxx", 0xBD, 255))[1] == 0
    assert not drive.is_tray_open


def test_an_empty_drive() -> None:
    drive = CdRom()
    initiator = Initiator(drive).ready()
    initiator.check(READY, NOT_READY, AdditionalSense.MEDIUM_NOT_PRESENT_TRAY_CLOSED)
    initiator.good(EJECT)
    initiator.good(LOAD)
    initiator.check(READY, NOT_READY, AdditionalSense.MEDIUM_NOT_PRESENT_TRAY_CLOSED)


def test_events(initiator: Initiator, drive: CdRom, disc: Storage) -> None:
    assert initiator.good(events()) == bytes.fromhex("0006 04 10 00 02 0000")
    initiator.good(EJECT)
    assert initiator.good(events(length=4)) == bytes.fromhex("0006 04 10")
    assert initiator.good(events()) == bytes.fromhex("0006 04 10 03 01 0000")
    assert initiator.good(events()) == bytes.fromhex("0006 04 10 00 01 0000")
    drive.insert(disc)
    assert initiator.good(events()) == bytes.fromhex("0006 04 10 02 02 0000")
    assert initiator.good(events(classes=0x42)) == bytes.fromhex("0002 80 10")
    initiator.illegal(events(polled=0), 1, 0)


def test_the_button(initiator: Initiator, drive: CdRom, disc: Storage) -> None:
    initiator.ready().good("1e0000000100")
    drive.press_eject()
    initiator.good(READY)
    assert initiator.good(events())[4:6] == b"\x01\x02"
    initiator.check(EJECT, SenseKey.ILLEGAL_REQUEST, AdditionalSense.MEDIUM_REMOVAL_PREVENTED)
    initiator.good("1e0000000000")
    drive.press_eject()
    initiator.check(READY, NOT_READY, AdditionalSense.MEDIUM_NOT_PRESENT_TRAY_OPEN)
    assert drive.remove() is disc


def test_speed_is_what_it_is(initiator: Initiator) -> None:
    initiator.good(cdb("BxHH6x", 0xBB, 0xFFFF, 0xFFFF))


def test_blocks_have_one_size(disc: Storage) -> None:
    with pytest.raises(TypeError):
        CdRom(disc, block_size=512)
    with pytest.raises(ValueError, match="use block_size=4096"):
        CdRom(Storage(4096, block_size=4096))


def test_saving(initiator: Initiator, drive: CdRom, disc: Storage) -> None:
    initiator.good(EJECT)
    other = CdRom(disc, serial="CD1")
    other.load(drive.save())
    assert other.save() == drive.save()
    second = Initiator(other)
    second.check(READY, NOT_READY, AdditionalSense.MEDIUM_NOT_PRESENT_TRAY_OPEN)
    assert second.good(events())[4:6] == b"\x03\x01"


@given(st.sampled_from([None, *Op]), st.binary(max_size=20), st.booleans())
@settings(max_examples=300)
def test_no_command_is_too_much(code: Op | None, command: bytes, empty: bool) -> None:
    command = (bytes([code]) if code is not None else b"") + command
    options: dict[str, Any] = {"backend": None if empty else Storage(BLOCKS * 2048)}
    result = Initiator(CdRom(**options)).ready().run(command, bytes(64))
    assert isinstance(result.status, Status)
    if result.raw_sense:
        assert result.sense.additional is not AdditionalSense.INTERNAL_TARGET_FAILURE


def read_cd(lba: int, count: int, *, kind: int = 0, main: int = 0x10, sub: int = 0) -> bytes:
    return cdb("BBIHBBBx", 0xBE, kind << 2, lba, count >> 8, count & 0xFF, main, sub)


def read_cd_msf(start: bytes, end: bytes, *, main: int = 0x10) -> bytes:
    return b"\xb9\0\0" + start + end + bytes([main, 0, 0])


@pytest.mark.parametrize("kind", [0, 2])
def test_sectors_of_a_cd(initiator: Initiator, disc: Storage, kind: int) -> None:
    assert initiator.good(read_cd(7, 3, kind=kind)) == disc.bytes[7 * 2048 : 10 * 2048]
    assert initiator.good(read_cd_msf(bytes([0, 2, 7]), bytes([0, 2, 10]))) == disc.bytes[7 * 2048 : 10 * 2048]
    assert initiator.good(read_cd(7, 3, main=0)) == b""
    assert initiator.good(read_cd(BLOCKS, 0)) == b""


def test_sectors_that_are_not_there(initiator: Initiator, drive: CdRom) -> None:
    illegal = SenseKey.ILLEGAL_REQUEST
    for command in (
        read_cd(BLOCKS, 1),
        read_cd(0, BLOCKS + 1),
        read_cd(0xFFFF_FFFF, 1),
        read_cd_msf(bytes([0, 0, 0]), bytes([0, 2, 1])),
    ):
        initiator.check(command, illegal, AdditionalSense.LBA_OUT_OF_RANGE)
    initiator.check(read_cd(0, 1, kind=1), illegal, AdditionalSense.ILLEGAL_MODE_FOR_THIS_TRACK)
    initiator.illegal(read_cd(0, 1, main=0xF8), 9)
    initiator.illegal(read_cd(0, 1, sub=1), 10, 2)
    initiator.illegal(read_cd_msf(bytes([0, 2, 3]), bytes([0, 2, 2])), 3)
    initiator.illegal(read_cd_msf(bytes([0, 2, 75]), bytes([0, 3, 0])), 3)
    initiator.illegal(read_cd_msf(bytes([0, 60, 0]), bytes([1, 0, 0])), 3)
    drive.remove()
    initiator.check(read_cd(0, 1), NOT_READY, AdditionalSense.MEDIUM_NOT_PRESENT_TRAY_OPEN)


def test_a_dvd_has_no_sectors_of_a_cd() -> None:
    initiator = Initiator(CdRom(Storage(400_000 * 2048))).ready()
    initiator.check(read_cd(0, 1), SenseKey.ILLEGAL_REQUEST, AdditionalSense.INCOMPATIBLE_MEDIUM)

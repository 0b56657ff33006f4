from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.scsi.initiator import Initiator, cdb
from tests.devices.scsi.storage import Storage
from vfio_user.devices.scsi import CdRom, Disk
from vfio_user.hardware.scsi.codes import AdditionalSense, SenseKey, Status

ILLEGAL = SenseKey.ILLEGAL_REQUEST
LENGTH_ERROR = AdditionalSense.PARAMETER_LIST_LENGTH_ERROR


def sense_6(page: int, *, control: int = 0, sub: int = 0, dbd: int = 0, length: int = 255) -> bytes:
    return cdb("BBBBBx", 0x1A, dbd << 3, control << 6 | page, sub, length)


def sense_10(page: int, *, control: int = 0, sub: int = 0, flags: int = 0, length: int = 4096) -> bytes:
    return cdb("BBBB3xHx", 0x5A, flags, control << 6 | page, sub, length)


def select_6(length: int, flags: int = 0x10) -> bytes:
    return cdb("BBxxBx", 0x15, flags, length)


def select_10(length: int, flags: int = 0x10) -> bytes:
    return cdb("BB5xHx", 0x55, flags, length)


CACHING = bytes.fromhex("0812 04" + "00" * 17)


@pytest.fixture
def initiator() -> Initiator:
    return Initiator(Disk(Storage(64 * 512))).ready()


def codes(pages: bytes) -> list[tuple[int, int]]:
    found = []
    while pages:
        sub = pages[1] if pages[0] & 0x40 else 0
        found.append((pages[0] & 0x3F, sub))
        pages = pages[4 + int.from_bytes(pages[2:4], "big") :] if pages[0] & 0x40 else pages[2 + pages[1] :]
    return found


def test_headers_and_block_descriptors(initiator: Initiator) -> None:
    assert initiator.good(sense_6(8)) == bytes.fromhex("1f 00 10 08 00000040 00000200") + CACHING
    assert initiator.good(sense_6(8, dbd=1)) == bytes.fromhex("17 00 10 00") + CACHING
    assert initiator.good(sense_10(8)) == bytes.fromhex("0022 00 10 0000 0008 00000040 00000200") + CACHING
    assert initiator.good(sense_10(8, flags=0x08)) == bytes.fromhex("001a 00 10 0000 0000") + CACHING
    long = bytes.fromhex("002a 00 10 0100 0010 0000000000000040 00000000 00000200")
    assert initiator.good(sense_10(8, flags=0x10)) == long + CACHING


def test_all_pages(initiator: Initiator) -> None:
    pages = initiator.good(sense_6(0x3F, dbd=1))[4:]
    assert codes(pages) == [(1, 0), (2, 0), (8, 0), (0x0A, 0), (0x1C, 0)]
    assert codes(initiator.good(sense_10(0x3F, sub=0xFF, flags=8))[8:]) == [
        *[(1, 0), (2, 0), (8, 0), (0x0A, 0), (0x0A, 1), (0x1C, 0)]
    ]
    assert codes(initiator.good(sense_6(0x0A, sub=0xFF, dbd=1))[4:]) == [(0x0A, 0), (0x0A, 1)]
    assert codes(initiator.good(sense_6(0x0A, sub=1, dbd=1))[4:]) == [(0x0A, 1)]
    assert codes(initiator.good(sense_6(0x08, sub=0xFF, dbd=1))[4:]) == [(8, 0)]


def test_changeable_and_default_values(initiator: Initiator) -> None:
    change = bytes.fromhex("0812 00" + "00" * 17)
    initiator.good(select_6(24), bytes(4) + change)
    assert initiator.good(sense_6(8, dbd=1))[4:] == change
    assert initiator.good(sense_6(8, dbd=1, control=1))[4:] == CACHING  # WCE alone
    assert initiator.good(sense_6(8, dbd=1, control=2))[4:] == CACHING
    initiator.check(sense_6(8, control=3), ILLEGAL, AdditionalSense.SAVING_PARAMETERS_NOT_SUPPORTED)


def test_pages_that_are_not_there(initiator: Initiator) -> None:
    initiator.illegal(sense_6(0x2A), 2, 5)
    initiator.illegal(sense_6(8, sub=1), 3)
    initiator.illegal(sense_6(0x3F, sub=1), 3)


def test_a_drive_has_other_pages_and_no_block_descriptor() -> None:
    initiator = Initiator(CdRom(Storage(2048 * 16))).ready()
    data = initiator.good(sense_10(0x3F))
    assert data[6:8] == b"\0\0"
    assert codes(data[8:]) == [(1, 0), (0x0A, 0), (0x1C, 0), (0x2A, 0)]
    locked = initiator.good(sense_10(0x2A))[8:]
    assert (locked[:2], locked[6]) == (b"\x2a\x14", 0x29)
    initiator.good("1e0000000100")
    assert initiator.good(sense_10(0x2A))[14] == 0x2B


def test_others_are_told_of_a_change(initiator: Initiator) -> None:
    other = Initiator(initiator.unit, id=1).ready()
    initiator.good(select_6(24), bytes(4) + CACHING)  # nothing changes
    other.good("000000000000")
    initiator.good(select_10(28), bytes(8) + bytes.fromhex("0812 00" + "00" * 17))
    initiator.good("000000000000")
    other.check("000000000000", SenseKey.UNIT_ATTENTION, AdditionalSense.MODE_PARAMETERS_CHANGED)


def test_what_was_read_can_be_written(initiator: Initiator) -> None:
    for sense, select, blank in [
        (sense_6(0x3F), select_6, 1),
        (sense_10(0x3F, sub=0xFF), select_10, 2),
        (sense_10(0x3F, sub=0xFF, flags=0x10), select_10, 2),
    ]:
        data = initiator.good(sense)
        initiator.good(select(len(data)), bytes(blank) + data[blank:])
    for blocks in (b"\0" * 4, b"\xff" * 4):
        initiator.good(select_6(12), b"\0\0\0\x08" + blocks + b"\0\0\x02\0")


@pytest.mark.parametrize(
    ("parameters", "byte", "bit"),
    [
        ("00000000 1f0a" + "00" * 10, 4, 5),
        ("00000000 4a02001c" + "00" * 28, 4, 5),
        ("00000000 0810" + "04" + "00" * 17, 5, None),
        ("00000000 4a01001d" + "00" * 28, 6, None),
        ("00000000 0812 05" + "00" * 17, 6, 0),
        ("00000000 0812 84" + "00" * 17, 6, 7),
        ("00000000 0812 04" + "00" * 16 + "01", 23, 0),
        ("00000000 0812 04" + "00" * 17 + "010a 00" + "00" * 9, 26, 7),
        ("00000004" + "00" * 4, 3, None),
        ("00000008 00000041 00000200", 4, None),
        ("00000008 00000000 00000400", 9, None),
    ],
)
def test_parameters_that_are_wrong(initiator: Initiator, parameters: str, byte: int, bit: int | None) -> None:
    data = bytes.fromhex(parameters)
    before = initiator.good(sense_6(0x3F))
    initiator.illegal(select_6(len(data)), byte, bit, data=data, in_data=True)
    assert initiator.good(sense_6(0x3F)) == before


@pytest.mark.parametrize(
    "parameters", ["00", "000000", "00000008 0000", "00000000 08", "00000000 0812", "00000000 0812 0000"]
)
def test_parameters_that_are_cut_off(initiator: Initiator, parameters: str) -> None:
    data = bytes.fromhex(parameters)
    initiator.check(select_6(len(data)), ILLEGAL, LENGTH_ERROR, data=data)


def test_all_or_nothing(initiator: Initiator) -> None:
    data = bytes(4) + bytes.fromhex("0812 00" + "00" * 17) + b"\x1f\x00"
    initiator.illegal(select_6(len(data)), 24, 5, data=data, in_data=True)
    assert initiator.good(sense_6(8, dbd=1))[4:] == CACHING


def test_select_that_is_wrong(initiator: Initiator) -> None:
    initiator.illegal(select_6(24, flags=0), 1, 4)
    initiator.illegal(select_6(24, flags=0x11), 1, 0)
    initiator.good(select_6(0))
    initiator.good(select_10(0))
    initiator.good(select_6(4), bytes(4))


def test_sense_data_in_the_format_that_was_chosen(initiator: Initiator) -> None:
    control = bytearray(initiator.good(sense_6(0x0A, dbd=1))[4:])
    control[2] |= 4
    initiator.good(select_6(16), bytes(4) + control)
    result = initiator.run("ff0000000000")
    assert result.raw_sense[0] == 0x72
    assert result.sense.additional is AdditionalSense.INVALID_OPERATION_CODE
    initiator.unit.reset()
    assert initiator.run("000000000000").raw_sense[0] == 0x70


@given(st.binary(max_size=60), st.booleans())
def test_no_parameter_list_is_too_much(data: bytes, ten: bool) -> None:
    initiator = Initiator(Disk(Storage(64 * 512))).ready()
    result = initiator.run((select_10 if ten else select_6)(len(data)), data)
    if result.status is not Status.GOOD:
        assert result.sense.key is ILLEGAL

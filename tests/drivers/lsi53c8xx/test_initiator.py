"""The driver, against the controller: commands one by one and many at once, and what goes wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from vfio_user.backends import MemoryBackend
from vfio_user.devices.lsi53c8xx.controller import Lsi53c895a
from vfio_user.devices.scsi import Disk, Target
from vfio_user.drivers.lsi53c8xx import ScsiError, ScsiInitiator
from vfio_user.errors import StateError
from vfio_user.hardware.scsi.codes import AdditionalSense, SenseKey, Status
from vfio_user.testing import DeviceUnderTest

BLOCKS = 4096


def read_10(lba: int, blocks: int = 1) -> bytes:
    return struct.pack(">BxIxHx", 0x28, lba, blocks)


def write_10(lba: int, blocks: int = 1) -> bytes:
    return struct.pack(">BxIxHx", 0x2A, lba, blocks)


@pytest.fixture
def scsi() -> Iterator[ScsiInitiator]:
    targets = {number: Target({0: Disk(MemoryBackend(BLOCKS * 512), serial=f"D{number}")}) for number in (0, 3)}
    with DeviceUnderTest(Lsi53c895a(targets=targets)) as under_test:
        initiator = ScsiInitiator(under_test.function, tags=16)
        for target in (0, 3):
            with pytest.raises(ScsiError, match="UNIT_ATTENTION, BUS_RESET"):
                initiator.execute(target, bytes(6))
        yield initiator


def test_one_after_the_other(scsi: ScsiInitiator) -> None:
    for number in range(100):
        data = bytes([number]) * 1024
        scsi.execute(number % 2 * 3, write_10(number, 2), data=data)
        assert scsi.execute(number % 2 * 3, read_10(number, 2), receive=1024) == data
    assert scsi.outstanding == 0


def test_less_data_than_there_is_room_for(scsi: ScsiInitiator) -> None:
    assert scsi.execute(0, bytes.fromhex("12000000ff00"), receive=4096)[8:16] == b"vfiouser"
    assert scsi.execute(0, read_10(0), receive=4096) == bytes(512)


def test_many_at_once(scsi: ScsiInitiator) -> None:
    sent = [scsi.submit(n % 2 * 3, write_10(n), data=bytes([n]) * 512) for n in range(16)]
    with pytest.raises(StateError, match="16 commands are under way"):
        scsi.submit(0, bytes(6))
    done = []
    while scsi.outstanding:
        done += scsi.process(1.0)
    assert sorted(done, key=sent.index) == sent
    assert {request.status for request in done} == {Status.GOOD}


def test_a_command_that_fails(scsi: ScsiInitiator) -> None:
    with pytest.raises(ScsiError, match="CHECK_CONDITION: ILLEGAL_REQUEST, LBA_OUT_OF_RANGE") as caught:
        scsi.execute(0, read_10(BLOCKS), receive=512)
    assert caught.value.sense is not None
    assert (caught.value.sense.key, caught.value.sense.additional) == (
        SenseKey.ILLEGAL_REQUEST,
        AdditionalSense.LBA_OUT_OF_RANGE,
    )
    assert scsi.execute(0, read_10(BLOCKS - 1), receive=512) == bytes(512)


def test_nobody_there(scsi: ScsiInitiator) -> None:
    with pytest.raises(StateError, match=r"by <ScsiInterrupt\.SELECTION_TIMEOUT"):
        scsi.execute(5, bytes(6))


def test_what_cannot_be_asked_for(scsi: ScsiInitiator) -> None:
    with pytest.raises(ValueError, match="one of both, and 65536 at most"):
        scsi.submit(0, read_10(0), data=b"1", receive=1)
    with pytest.raises(ValueError, match="one of both, and 65536 at most"):
        scsi.submit(0, read_10(0), receive=70000)
    with pytest.raises(ValueError, match="300 tags"):
        ScsiInitiator(None, tags=300)  # type: ignore[arg-type]

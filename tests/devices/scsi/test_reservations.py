from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.scsi.initiator import GOOD, Initiator, Result, cdb
from tests.devices.scsi.storage import Jobs, SlowStorage, Storage
from vfio_user.devices.scsi import Disk
from vfio_user.hardware.scsi.codes import AdditionalSense, SenseKey, Status
from vfio_user.hardware.scsi.reservations import OutAction, ReservationType

CONFLICT = Status.RESERVATION_CONFLICT
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_ANYWAY = OutAction
READ, WRITE = "28" + "00" * 7 + "0100", "2a" + "00" * 7 + "0100"
READY = "000000000000"


def out(
    who: Initiator,
    action: OutAction,
    key: int = 0,
    action_key: int = 0,
    kind: int = 1,
    *,
    scope: int = 0,
    flags: int = 0,
) -> Result:
    command = cdb("BBBxxIx", 0x5F, action, scope << 4 | kind, 24)
    return who.run(command, struct.pack(">QQ4xB3x", key, action_key, flags))


def ok(who: Initiator, action: OutAction, key: int = 0, action_key: int = 0, kind: int = 1) -> None:
    result = out(who, action, key, action_key, kind)
    assert result.status is GOOD, result


def keys(who: Initiator) -> tuple[int, list[int]]:
    data = who.good(cdb("BB5xHx", 0x5E, 0, 255))
    generation, length = struct.unpack_from(">II", data)
    assert length == len(data) - 8
    return generation, [key for (key,) in struct.iter_unpack(">Q", data[8:])]


def reservation(who: Initiator) -> tuple[int, int] | None:
    data = who.good(cdb("BB5xHx", 0x5E, 1, 255))
    if len(data) == 8:
        return None
    _, length, key, kind = struct.unpack(">IIQ5xB2x", data)
    assert length == 16
    return key, kind


@pytest.fixture
def disk() -> Disk:
    return Disk(Storage(64 * 512))


@pytest.fixture
def one(disk: Disk) -> Initiator:
    return Initiator(disk, id=1).ready()


@pytest.fixture
def two(disk: Disk) -> Initiator:
    return Initiator(disk, id=2).ready()


@pytest.fixture
def three(disk: Disk) -> Initiator:
    return Initiator(disk, id=3).ready()


def may(who: Initiator, command: str) -> bool:
    result = who.run(command, bytes(512))
    assert result.status in (GOOD, CONFLICT)
    return result.status is GOOD


# The older kind.


@pytest.mark.parametrize(("reserve", "release"), [("160000000000", "170000000000"), ("56" + "00" * 9, "57" + "00" * 9)])
def test_reserve_and_release(one: Initiator, two: Initiator, reserve: str, release: str) -> None:
    one.good(reserve)
    one.good(reserve)
    assert not may(two, READ)
    assert not may(two, READY)
    assert not may(two, reserve)
    assert may(two, release)  # not theirs: nothing happens
    assert not may(two, READ)
    assert may(two, "120000002400")
    assert may(two, "1e0000000000")
    assert not may(two, "1e0000000100")
    assert may(one, WRITE)
    one.good(release)
    assert may(two, WRITE)


def test_a_reset_ends_it(disk: Disk, one: Initiator, two: Initiator) -> None:
    one.good("160000000000")
    disk.reset()
    two.ready()
    assert may(two, READ)


def test_reservations_nobody_ever_made(one: Initiator) -> None:
    for code in ("16", "17"):
        one.illegal(f"{code}1000000000", 1, 4)
        one.illegal(f"{code}0100000000", 1, 0)
    one.illegal("56" + "00" * 6 + "000100", 7)


def test_the_two_kinds_do_not_mix(one: Initiator, two: Initiator) -> None:
    ok(one, REGISTER, 0, 0xA)
    assert not may(one, "160000000000")
    assert not may(one, "170000000000")
    ok(one, REGISTER, 0xA, 0)
    one.good("160000000000")
    assert out(two, REGISTER, 0, 0xB).status is CONFLICT


# Registering.


def test_registering(one: Initiator, two: Initiator) -> None:
    assert keys(one) == (0, [])
    ok(one, REGISTER, 0, 0xA)
    assert keys(two) == (1, [0xA])
    assert out(one, REGISTER, 0, 0xB).status is CONFLICT
    ok(one, REGISTER, 0xA, 0xB)
    ok(two, REGISTER_ANYWAY, 0x999, 0xC)
    assert keys(one) == (3, [0xB, 0xC])
    ok(two, REGISTER_ANYWAY, 0x999, 0)
    ok(one, REGISTER, 0xB, 0)
    assert keys(one) == (5, [])
    ok(one, REGISTER, 0, 0)  # nothing was, and nothing is
    assert keys(one) == (5, [])
    assert out(two, REGISTER, 0xC, 0xD).status is CONFLICT


def test_who_is_not_registered(one: Initiator) -> None:
    for action in (RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT):
        assert out(one, action, 0, 1).status is CONFLICT


@pytest.mark.parametrize(("flags", "bit"), [(0x08, 3), (0x04, 2), (0x01, 0)])
def test_what_is_not_offered(one: Initiator, flags: int, bit: int) -> None:
    found = out(one, REGISTER, 0, 1, flags=flags).sense
    assert found.additional is AdditionalSense.INVALID_FIELD_IN_PARAMETER_LIST
    assert (found.pointer and (found.pointer.byte, found.pointer.bit)) == (20, bit)
    assert keys(one) == (0, [])


def test_malformed(one: Initiator) -> None:
    one.check(cdb("BBBxxIx", 0x5F, 0, 0, 23), SenseKey.ILLEGAL_REQUEST, AdditionalSense.PARAMETER_LIST_LENGTH_ERROR)
    one.illegal(cdb("BBBxxIx", 0x5F, 7, 0, 24), 1, 4)
    one.illegal(cdb("BBBxxIx", 0x5F, 1, 0x11, 24), 2, 7)
    one.illegal(cdb("BBBxxIx", 0x5F, 1, 0x02, 24), 2, 3)
    one.illegal(cdb("BB5xHx", 0x5E, 4, 24), 1, 4)


def test_capabilities(one: Initiator) -> None:
    assert one.good(cdb("BB5xHx", 0x5E, 2, 255)) == bytes.fromhex("0008 00 80 ea 01 0000")


# Reserving.

T = ReservationType


@pytest.mark.parametrize(
    ("kind", "registrant", "stranger"),
    [
        (T.WRITE_EXCLUSIVE, (True, False), (True, False)),
        (T.EXCLUSIVE_ACCESS, (False, False), (False, False)),
        (T.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, (True, True), (True, False)),
        (T.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY, (True, True), (False, False)),
        (T.WRITE_EXCLUSIVE_ALL_REGISTRANTS, (True, True), (True, False)),
        (T.EXCLUSIVE_ACCESS_ALL_REGISTRANTS, (True, True), (False, False)),
    ],
)
def test_what_others_may(
    one: Initiator,
    two: Initiator,
    three: Initiator,
    kind: T,
    registrant: tuple[bool, bool],
    stranger: tuple[bool, bool],
) -> None:
    ok(one, REGISTER, 0, 0xA)
    ok(two, REGISTER, 0, 0xB)
    ok(one, RESERVE, 0xA, kind=kind)
    assert reservation(three) == (0 if kind.is_held_by_all else 0xA, kind)
    assert (may(one, READ), may(one, WRITE)) == (True, True)
    assert (may(two, READ), may(two, WRITE)) == registrant
    assert (may(three, READ), may(three, WRITE)) == stranger
    assert (may(three, READY), may(three, "25" + "00" * 9)) == (True, True)
    ok(one, RESERVE, 0xA, kind=kind)
    assert out(one, RESERVE, 0xA, kind=1 if kind != 1 else 3).status is CONFLICT
    assert (out(two, RESERVE, 0xB, kind=kind).status is GOOD) is kind.is_held_by_all


def test_it_survives_a_reset(disk: Disk, one: Initiator, two: Initiator) -> None:
    ok(one, REGISTER, 0, 0xA)
    ok(one, RESERVE, 0xA)
    disk.reset()
    two.ready()
    assert not may(two, WRITE)


def test_releasing(one: Initiator, two: Initiator) -> None:
    ok(one, REGISTER, 0, 0xA)
    ok(two, REGISTER, 0, 0xB)
    ok(one, RELEASE, 0xA)  # there is none
    ok(one, RESERVE, 0xA, kind=5)
    ok(two, RELEASE, 0xB, kind=5)  # not theirs
    assert reservation(one) == (0xA, 5)
    wrong = out(one, RELEASE, 0xA, kind=6).sense
    assert wrong.additional is AdditionalSense.INVALID_RELEASE_OF_PERSISTENT_RESERVATION
    ok(one, RELEASE, 0xA, kind=5)
    assert reservation(one) is None
    two.check(READY, SenseKey.UNIT_ATTENTION, AdditionalSense.RESERVATIONS_RELEASED)
    one.good(READY)


def test_unregistering_ends_ones_reservation(one: Initiator, two: Initiator) -> None:
    ok(one, REGISTER, 0, 0xA)
    ok(two, REGISTER, 0, 0xB)
    ok(one, RESERVE, 0xA, kind=1)
    ok(one, REGISTER, 0xA, 0)
    assert reservation(one) is None
    two.good(READY)  # it spared nobody, so nobody is told
    ok(one, REGISTER, 0, 0xA)
    ok(one, RESERVE, 0xA, kind=8)
    ok(one, REGISTER, 0xA, 0)
    assert reservation(one) == (0, 8)  # the other one holds it, too
    ok(two, REGISTER, 0xB, 0)
    assert reservation(one) is None


def test_clearing(one: Initiator, two: Initiator) -> None:
    ok(one, REGISTER, 0, 0xA)
    ok(two, REGISTER, 0, 0xB)
    ok(two, RESERVE, 0xB)
    ok(one, CLEAR, 0xA)
    assert (keys(one), reservation(one)) == ((3, []), None)
    two.check(READY, SenseKey.UNIT_ATTENTION, AdditionalSense.RESERVATIONS_PREEMPTED)
    one.good(READY)


# Preempting.


def test_taking_over(one: Initiator, two: Initiator, three: Initiator) -> None:
    for number, who in enumerate((one, two, three), start=0xA):
        ok(who, REGISTER, 0, number)
    ok(one, RESERVE, 0xA, kind=5)
    ok(two, PREEMPT, 0xB, 0xA, kind=1)
    assert (keys(two), reservation(two)) == ((4, [0xB, 0xC]), (0xB, 1))
    one.check(READY, SenseKey.UNIT_ATTENTION, AdditionalSense.REGISTRATIONS_PREEMPTED)
    three.check(READY, SenseKey.UNIT_ATTENTION, AdditionalSense.RESERVATIONS_RELEASED)
    two.good(READY)


def test_throwing_out_who_holds_nothing(one: Initiator, two: Initiator, three: Initiator) -> None:
    for number, who in enumerate((one, two, three), start=0xA):
        ok(who, REGISTER, 0, number)
    ok(one, RESERVE, 0xA)
    ok(two, PREEMPT, 0xB, 0xC, kind=3)
    assert (keys(two)[1], reservation(two)) == ([0xA, 0xB], (0xA, 1))
    three.check(READY, SenseKey.UNIT_ATTENTION, AdditionalSense.REGISTRATIONS_PREEMPTED)
    assert out(two, PREEMPT, 0xB, 0xC).status is CONFLICT
    assert out(two, PREEMPT, 0xB, 0).sense.additional is AdditionalSense.INVALID_FIELD_IN_PARAMETER_LIST


def test_taking_over_from_all(one: Initiator, two: Initiator) -> None:
    ok(one, REGISTER, 0, 0xA)
    ok(two, REGISTER, 0, 0xB)
    ok(one, RESERVE, 0xA, kind=7)
    ok(two, PREEMPT, 0xB, 0, kind=3)
    assert (keys(two)[1], reservation(two)) == ([0xB], (0xB, 3))


def test_preempting_oneself_changes_the_type(one: Initiator) -> None:
    ok(one, REGISTER, 0, 0xA)
    ok(one, RESERVE, 0xA, kind=1)
    ok(one, PREEMPT, 0xA, 0xA, kind=3)
    assert (keys(one)[1], reservation(one)) == ([0xA], (0xA, 3))


def test_preempting_and_aborting() -> None:
    jobs = Jobs()
    disk = Disk(SlowStorage(64 * 512), workers=jobs)
    one, two = (Initiator(disk, id=number, wait=jobs.step).ready() for number in (1, 2))
    ok(one, REGISTER, 0, 0xA)
    ok(two, REGISTER, 0, 0xB)
    mine, theirs = one.start(READ, tag=1), two.start(READ, tag=1)
    ok(one, PREEMPT, 0xA, 0xB)
    assert len(disk.tasks) == 2
    two.ready()
    ok(two, REGISTER_ANYWAY, 0, 0xB)
    ok(one, PREEMPT_AND_ABORT, 0xA, 0xB)
    assert list(disk.tasks) == [mine]
    jobs.step()
    assert theirs.status is None


def test_full_status(one: Initiator, two: Initiator) -> None:
    ok(one, REGISTER, 0, 0xA)
    ok(two, REGISTER, 0, 0xB)
    ok(two, RESERVE, 0xB, kind=3)
    data = one.good(cdb("BB5xHx", 0x5E, 3, 255))
    assert data[:8] == struct.pack(">II", 2, 96)
    first, second = data[8:56], data[56:]
    assert first == struct.pack(">Q4xBB4xHI", 0xA, 0, 0, 1, 24) + struct.pack(">BxHxxH16x", 1, 1, 1)
    assert second == struct.pack(">Q4xBB4xHI", 0xB, 1, 3, 1, 24) + struct.pack(">BxHxxH16x", 1, 2, 1)


def test_saving(disk: Disk, one: Initiator, two: Initiator) -> None:
    ok(one, REGISTER, 0, 0xA)
    ok(one, RESERVE, 0xA)
    other = Disk(disk.medium())
    other.load(disk.save())
    assert other.save() == disk.save()
    assert not may(Initiator(other, id=2), WRITE)
    assert may(Initiator(other, id=1), WRITE)


ACTIONS = st.tuples(
    st.integers(0, 2),
    st.sampled_from(OutAction),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([1, 3, 5, 6, 7, 8]),
)


@given(st.lists(ACTIONS, max_size=25))
@settings(max_examples=80)
def test_whatever_they_do_it_makes_sense(actions: list[tuple[int, OutAction, int, int, int]]) -> None:
    disk = Disk(Storage(64 * 512))
    initiators = [Initiator(disk, id=number).ready() for number in range(3)]
    for number, action, key, action_key, kind in actions:
        who = initiators[number].ready()
        before, generation = reservation(who), keys(who)[0]
        result = out(who, action, key, action_key, kind)
        assert result.status in (GOOD, CONFLICT, Status.CHECK_CONDITION)
        now, (new_generation, registered) = reservation(who), keys(who)
        if result.status is not GOOD:
            assert (before, generation) == (now, new_generation)
        if now is not None:
            # Nobody holds a reservation without being registered.
            assert registered
            assert now[1] >= 7 or now[0] in registered
        assert generation <= new_generation <= generation + 1

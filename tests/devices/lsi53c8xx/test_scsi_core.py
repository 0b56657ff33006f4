"""The bus: phases in their order, messages, disconnecting and coming back, aborts and resets."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.devices.lsi53c8xx.board import INQUIRY, TEST_UNIT_READY, disk
from tests.devices.scsi.storage import Jobs
from vfio_user.devices.lsi53c8xx.scsi_core import ScsiCore
from vfio_user.devices.scsi import ScsiBus
from vfio_user.hardware.lsi53c8xx.interrupts import Phase

READ = bytes.fromhex("2800 00000001 00 0001 00")
WRITE = bytes.fromhex("2a00 00000001 00 0001 00")
REQUEST_SENSE = bytes.fromhex("030000001200")
SIMPLE = b"\x20"


class Initiator:
    """The other end of the bus, by hand."""

    def __init__(self, jobs: Jobs | None = None) -> None:
        self.jobs = jobs
        self.target = disk(storage=jobs)
        self.changes = 0
        self.frees: list[bool] = []
        self.core = ScsiCore(ScsiBus({0: self.target, 3: disk()}), changed=self.changed, disconnected=self.frees.append)

    def changed(self) -> None:
        self.changes += 1

    def command(self, cdb: bytes, messages: bytes = b"\xc0", target: int = 0) -> Phase | None:
        """From the selection to the end of COMMAND; returns the phase after it."""
        core = self.core
        assert core.select(target, attention=True)
        phases = [core.phase]
        core.give(messages, last=True)
        phases.append(core.phase)
        assert phases == [Phase.MESSAGE_OUT, Phase.COMMAND]
        core.give(cdb, last=True)
        return core.phase

    def data(self) -> bytes:
        data = b""
        while self.core.phase is Phase.DATA_IN:
            data += bytes(self.core.take(1 << 20))
        return data

    def message(self) -> bytes:
        assert self.core.phase is Phase.MESSAGE_IN
        message = bytes(self.core.take(64))
        assert self.core.acknowledge
        self.core.clear_acknowledge()
        return message

    def end(self) -> int:
        """STATUS and COMMAND COMPLETE."""
        assert self.core.phase is Phase.STATUS
        status = bytes(self.core.take(64))
        assert self.message() == b"\x00"
        assert self.core.nexus is None
        return status[0]

    def make_ready(self) -> None:
        for target in (0, 3):
            self.command(TEST_UNIT_READY, target=target)
            self.end()
        self.frees.clear()
        self.changes = 0


@pytest.fixture
def fast() -> Initiator:
    made = Initiator()
    made.make_ready()
    return made


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def slow(jobs: Jobs) -> Initiator:
    made = Initiator(jobs)
    made.make_ready()
    return made


def test_nobody_answers_at_an_id_that_is_free(fast: Initiator) -> None:
    assert not fast.core.select(5, attention=True)
    assert fast.core.nexus is None
    assert fast.core.phase is None


def test_a_command_with_data(fast: Initiator) -> None:
    assert fast.command(INQUIRY) is Phase.DATA_IN
    assert fast.data()[8:16] == b"vfiouser"
    assert fast.end() == 0
    assert fast.frees == [True]


def test_a_command_without(fast: Initiator) -> None:
    assert fast.command(TEST_UNIT_READY) is Phase.STATUS
    assert fast.end() == 0


def test_the_first_command_hears_of_power_on() -> None:
    initiator = Initiator()
    assert initiator.command(TEST_UNIT_READY) is Phase.STATUS
    assert initiator.end() == 2


def test_data_out(fast: Initiator) -> None:
    assert fast.command(WRITE) is Phase.DATA_OUT
    assert fast.core.room(1000) == 512
    fast.core.give(b"a" * 500, last=True)
    assert fast.core.room(1000) == 12
    fast.core.give(b"b" * 12, last=True)
    assert fast.end() == 0
    fast.command(READ)
    assert fast.data() == b"a" * 500 + b"b" * 12


def test_logical_units_that_are_not_there(fast: Initiator) -> None:
    assert fast.command(INQUIRY, b"\xc5") is Phase.DATA_IN
    assert fast.data()[0] == 0x7F


def test_a_command_may_come_in_parts(fast: Initiator) -> None:
    core = fast.core
    core.select(0, attention=True)
    core.give(b"\xc0", last=True)
    for byte in INQUIRY[:-1]:
        core.give(bytes([byte]), last=True)
        assert core.phase is Phase.COMMAND
    core.give(INQUIRY[-1:], last=True)
    assert core.phase is Phase.DATA_IN


def test_bytes_behind_a_command_are_dropped(fast: Initiator) -> None:
    assert fast.command(INQUIRY + bytes(10)) is Phase.DATA_IN
    assert fast.core.nexus is not None
    assert fast.core.nexus.task is not None
    assert fast.core.nexus.task.cdb == INQUIRY


def test_without_atn_a_command_is_expected_but_a_message_taken(fast: Initiator) -> None:
    core = fast.core
    core.select(0, attention=False)
    assert core.phase is Phase.COMMAND
    assert not core.follow(Phase.DATA_IN)
    assert core.follow(Phase.MESSAGE_OUT)
    core.give(b"\x80", last=True)
    assert core.phase is Phase.COMMAND
    core.give(INQUIRY[:3], last=True)
    assert not core.follow(Phase.MESSAGE_OUT)


def test_a_message_ends_with_the_block_move(fast: Initiator) -> None:
    core = fast.core
    core.select(0, attention=True)
    core.give(b"\xc0", last=False)
    assert (core.phase, core.attention) == (Phase.MESSAGE_OUT, True)
    core.clear_attention()
    assert core.phase is Phase.COMMAND


def test_too_long_a_message_is_not_kept(fast: Initiator) -> None:
    core = fast.core
    core.select(0, attention=True)
    for _ in range(100):
        core.give(b"\x08" * 1000, last=False)
    assert len(core._message_out) < 4096


def test_a_negotiation_is_answered_before_the_command(fast: Initiator) -> None:
    core = fast.core
    core.select(0, attention=True)
    core.give(b"\xc0\x01\x03\x01\x0c\x10", last=True)
    assert fast.message() == b"\x01\x03\x01\x0c\x10"
    assert core.phase is Phase.COMMAND


def test_a_message_may_be_taken_byte_by_byte(fast: Initiator) -> None:
    core = fast.core
    core.select(0, attention=True)
    core.give(b"\xc0\x01\x02\x03\x02", last=True)
    taken = b""
    for expected in (False, False, False, True):
        taken += bytes(core.take(1))
        assert core.acknowledge is expected
    assert taken == b"\x01\x02\x03\x01"
    core.clear_acknowledge()
    assert core.phase is Phase.COMMAND


def test_atn_before_ack_ends_has_the_target_listen(fast: Initiator) -> None:
    core = fast.core
    fast.command(TEST_UNIT_READY)
    core.take(1)
    core.take(1)
    core.set_attention()
    core.clear_acknowledge()
    assert core.phase is Phase.MESSAGE_OUT
    core.give(b"\x08", last=True)
    assert core.nexus is None
    assert fast.frees == [True]


# Disconnecting.


def test_a_target_disconnects_while_storage_works_and_comes_back(slow: Initiator, jobs: Jobs) -> None:
    assert slow.command(READ, b"\xc0" + SIMPLE + b"\x2a") is Phase.MESSAGE_IN
    assert slow.message() == b"\x02\x04"
    assert slow.frees == [True]
    waits = [slow.core.wants_reselect]
    jobs.step()
    assert slow.changes == 1
    waits.append(slow.core.wants_reselect)
    assert slow.core.reselect() == 0
    waits.append(slow.core.wants_reselect)
    assert waits == [False, True, False]
    assert slow.message() == b"\x80\x20\x2a"
    assert slow.data() == b"\x01" * 512
    assert slow.end() == 0


def test_untagged_there_is_no_tag_in_the_reselection(slow: Initiator, jobs: Jobs) -> None:
    slow.command(READ)
    slow.message()
    jobs.step()
    slow.core.reselect()
    assert slow.message() == b"\x80"
    assert slow.core.phase is Phase.DATA_IN


def test_a_target_that_may_not_disconnect_stays(slow: Initiator, jobs: Jobs) -> None:
    assert slow.command(READ, b"\x80") is None
    assert slow.core.nexus is not None
    assert slow.frees == []
    jobs.step()
    assert slow.changes == 1
    assert slow.core.phase is Phase.DATA_IN


def test_storage_that_is_ready_while_the_target_says_goodbye(slow: Initiator, jobs: Jobs) -> None:
    slow.command(READ)
    jobs.step()
    assert slow.core.phase is Phase.MESSAGE_IN
    assert slow.message() == b"\x02\x04"
    assert slow.core.wants_reselect


def test_others_use_the_bus_meanwhile(slow: Initiator, jobs: Jobs) -> None:
    slow.command(READ, b"\xc0" + SIMPLE + b"\x01")
    slow.message()
    assert slow.command(INQUIRY, target=3) is Phase.DATA_IN
    jobs.step()
    assert slow.core.wants_reselect
    slow.data()
    slow.end()
    slow.core.reselect()
    assert slow.message() == b"\x80\x20\x01"


def test_many_tags_come_back_in_the_order_storage_finishes(slow: Initiator, jobs: Jobs) -> None:
    for tag in range(5):
        slow.command(READ, b"\xc0" + SIMPLE + bytes([tag]))
        slow.message()
    while jobs.waiting:
        jobs.step()
    seen = []
    while slow.core.wants_reselect:
        slow.core.reselect()
        seen.append(slow.message()[2])
        slow.data()
        slow.end()
    assert seen == list(range(5))


def test_a_write_disconnects_when_all_data_is_there(slow: Initiator, jobs: Jobs) -> None:
    phase = slow.command(WRITE, b"\xc0" + SIMPLE + b"\x07")
    assert phase is Phase.DATA_OUT
    slow.core.give(bytes(512), last=True)
    assert slow.message() == b"\x02\x04"
    jobs.step()
    slow.core.reselect()
    assert slow.message() == b"\x80\x20\x07"
    assert slow.end() == 0


def test_sense_data_is_of_the_command_whose_status_came_last(slow: Initiator, jobs: Jobs) -> None:
    core = slow.core
    storage = slow.target.luns[0].backend  # type: ignore[attr-defined]
    storage.failure = OSError(errno.EIO, "worn out")
    for tag, attribute in enumerate((0x20, 0x20, 0x22)):
        slow.command(READ[:5] + bytes([tag]) + READ[6:], bytes([0xC0, attribute, tag]))
        slow.message()
    jobs.step()
    core.reselect()
    assert slow.message() == b"\x80\x20\x00"
    assert slow.end() == 2
    jobs.step()  # the next one fails, and the one behind it begins
    storage.failure = None
    seen = []
    for _ in range(2):
        assert slow.command(REQUEST_SENSE, b"\x80") is Phase.DATA_IN
        sense = slow.data()
        seen.append((sense[2], sense[6]))
        slow.end()
        core.reselect()
        slow.message()
        slow.data()
        slow.end()
        while jobs.waiting:
            jobs.step()
    assert seen == [(3, 0), (3, 1)]


def test_request_sense_needs_no_task_that_needs_the_bus(slow: Initiator, jobs: Jobs) -> None:
    slow.command(READ, b"\xc0\x22\x01")
    slow.message()
    assert slow.command(REQUEST_SENSE, b"\x80") is Phase.DATA_IN


# Aborts and resets.


@pytest.mark.parametrize(
    ("identity", "message", "left"),
    [
        (b"\xc0", b"\x06", []),
        (b"\xc0" + SIMPLE + b"\x02", b"\x0d", [1, 3]),
        (b"\xc0" + SIMPLE + b"\x02", b"\x06", []),
        (b"\xc1", b"\x06", [1, 2, 3]),
        (b"\xc0", b"\x0e", []),
        (b"\xc0", b"\x0c", []),
        (b"\xc1", b"\x0c", []),
        (b"\xc0", b"\x17", []),
    ],
)
def test_messages_that_end_tasks(slow: Initiator, jobs: Jobs, identity: bytes, message: bytes, left: list[int]) -> None:
    for tag in (1, 2, 3):
        slow.command(READ, b"\xc0" + SIMPLE + bytes([tag]))
        slow.message()
    slow.frees.clear()
    core = slow.core
    core.select(0, attention=True)
    core.give(identity + message, last=True)
    assert core.nexus is None
    assert slow.frees == [False]
    assert [nexus.tag for nexus in core._disconnected] == left
    assert len(slow.target.luns[0].tasks) == len(left)
    while jobs.waiting:
        jobs.step()
    seen = []
    while core.wants_reselect:
        core.reselect()
        seen.append(slow.message()[2])
        slow.data()
        slow.end()
    assert seen == left


def test_overlapped_commands_leave_nothing_behind(slow: Initiator, jobs: Jobs) -> None:
    for _ in range(1000):  # each second one ends the one before, and itself
        if slow.command(READ) is Phase.MESSAGE_IN:
            slow.message()
        else:
            assert slow.end() == 2
        jobs.waiting.clear()
    assert len(slow.core._disconnected) <= 257
    assert len(slow.target.luns[0].tasks) <= 1


def test_a_bus_reset_ends_everything(slow: Initiator, jobs: Jobs) -> None:
    slow.command(READ, b"\xc0" + SIMPLE + b"\x01")
    slow.message()
    slow.command(READ, b"\x80", target=3)
    slow.core.reset_bus()
    core = slow.core
    assert (core.nexus, core.phase, core.wants_reselect) == (None, None, False)
    while jobs.waiting:
        jobs.step()
    assert not core.wants_reselect
    assert slow.command(TEST_UNIT_READY) is Phase.STATUS
    assert slow.end() == 2


def test_letting_go_of_the_bus_loses_the_command(slow: Initiator) -> None:
    slow.command(READ, b"\x80")
    slow.core.free()
    assert slow.core.nexus is None
    assert slow.target.luns[0].tasks == ()
    slow.core.free()


# Saving.


def plain(value: Any) -> Any:
    """Through JSON, but for bytes."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return json.loads(json.dumps(value))


def at_selection(initiator: Initiator) -> None:
    initiator.core.select(0, attention=True)
    initiator.core.give(b"\xc0", last=False)


def in_command(initiator: Initiator) -> None:
    at_selection(initiator)
    initiator.core.give(SIMPLE + b"\x09", last=True)
    initiator.core.give(READ[:4], last=True)


def saying_goodbye(initiator: Initiator) -> None:
    initiator.command(READ, b"\xc0" + SIMPLE + b"\x09")


def away(initiator: Initiator) -> None:
    saying_goodbye(initiator)
    initiator.message()


def ready_again(initiator: Initiator) -> None:
    away(initiator)
    assert initiator.jobs is not None
    initiator.jobs.step()


def amid_data(initiator: Initiator) -> None:
    ready_again(initiator)
    initiator.core.reselect()
    initiator.message()
    initiator.core.take(100)


@pytest.mark.parametrize("reach", [at_selection, in_command, saying_goodbye, away, ready_again, amid_data])
def test_a_core_goes_on_elsewhere(slow: Initiator, reach: Callable[[Initiator], None]) -> None:
    reach(slow)
    other = Initiator(Jobs())
    assert other.jobs is not None
    other.core.load(plain(slow.core.save()))
    other.core.resume()
    core = other.core
    data = b""
    if reach is at_selection:
        core.give(SIMPLE + b"\x09", last=True)
        core.give(READ, last=True)
    elif reach is in_command:
        core.give(READ[4:], last=True)
    if reach in (at_selection, in_command, saying_goodbye):
        assert other.message() == b"\x02\x04"
    if reach is amid_data:
        data = bytes(100)
    else:
        while other.jobs.waiting:
            other.jobs.step()
        assert core.reselect() == 0
        assert other.message() == b"\x80\x20\x09"
    data += other.data()
    assert data[100:] == b"\x01" * 412
    assert other.end() == 0


def test_the_bus_is_not_free_before_the_last_message_is_acknowledged(slow: Initiator, jobs: Jobs) -> None:
    slow.command(READ)
    assert bytes(slow.core.take(2)) == b"\x02\x04"
    jobs.step()
    assert slow.core.nexus is not None
    assert slow.frees == []
    slow.core.clear_acknowledge()
    assert slow.frees == [True]
    assert slow.core.wants_reselect

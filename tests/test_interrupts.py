"""Interrupts: SET_IRQS rule by rule, levels, masks, pending bits, and peers that send the wrong descriptors."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vfio_user.errors import InvalidAccess
from vfio_user.interrupts import Interrupts
from vfio_user.protocol.constants import IrqIndex, IrqInfoFlags, IrqSetFlags
from vfio_user.testing.leaks import open_files

NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD
MASK, UNMASK, TRIGGER = IrqSetFlags.ACTION_MASK, IrqSetFlags.ACTION_UNMASK, IrqSetFlags.ACTION_TRIGGER
INTX, MSI, MSIX, ERR, REQ = IrqIndex


class Line:
    """An eventfd as its client sees it."""

    def __init__(self, flags: int = os.EFD_NONBLOCK) -> None:
        self.fd = os.eventfd(0, flags | os.EFD_CLOEXEC)

    def sent(self) -> int:
        """A duplicate, as it arrives at the server."""
        return os.dup(self.fd)

    def taken(self) -> int:
        """How often it was signalled since the last time."""
        readable, _, _ = select.select([self.fd], [], [], 0)
        return os.eventfd_read(self.fd) if readable else 0


Lines = Callable[..., list[Line]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    made: list[Line] = []

    def make(count: int = 1, flags: int = os.EFD_NONBLOCK) -> list[Line]:
        new = [Line(flags) for _ in range(count)]
        made.extend(new)
        return new

    yield make
    for line in made:
        os.close(line.fd)


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """A device with a pin, 4 MSI and 20 MSI-X vectors."""
    interrupts = Interrupts({INTX: 1, MSI: 4, MSIX: 20})
    yield interrupts
    interrupts.clear()


def assign(interrupts: Interrupts, index: int, lines: list[Line], start: int = 0) -> None:
    interrupts.set_irqs(index, EVENTFD | TRIGGER, start, len(lines), None, [line.sent() for line in lines])


class TestInfo:
    @pytest.mark.parametrize(
        ("index", "flags", "count"),
        [
            (INTX, IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED, 1),
            (MSI, IrqInfoFlags.EVENTFD, 4),
            (MSIX, IrqInfoFlags.EVENTFD, 20),
            (ERR, IrqInfoFlags.EVENTFD, 1),
            (REQ, IrqInfoFlags.EVENTFD, 1),
        ],
    )
    def test_of_each_index(self, interrupts: Interrupts, index: int, flags: int, count: int) -> None:
        assert interrupts.info(index) == (flags, count)

    @pytest.mark.parametrize("index", [5, -1, 0xFFFF_FFFF])
    def test_of_no_index(self, interrupts: Interrupts, index: int) -> None:
        with pytest.raises(InvalidAccess, match=r"0 \(INTx\) to 4 \(REQ\)"):
            interrupts.info(index)

    def test_of_what_the_device_does_not_have(self) -> None:
        assert [Interrupts({}).info(index)[1] for index in range(5)] == [0, 0, 0, 1, 1]

    @pytest.mark.parametrize("counts", [{INTX: 2}, {ERR: 2}, {REQ: 3}, {MSI: -1}])
    def test_impossible_counts(self, counts: dict[IrqIndex, int]) -> None:
        with pytest.raises(ValueError, match="MSI and MSI-X may have several"):
            Interrupts(counts)


REFUSED = {
    "index 5": (5, NONE | TRIGGER, 0, 1, None, 0),
    "index -1": (-1, NONE | TRIGGER, 0, 1, None, 0),
    "no action": (MSIX, NONE, 0, 1, None, 0),
    "two actions": (MSIX, NONE | MASK | UNMASK, 0, 1, None, 0),
    "no data type": (MSIX, TRIGGER, 0, 1, None, 0),
    "two data types": (MSIX, NONE | BOOL | TRIGGER, 0, 1, b"\1", 0),
    "unknown flag": (MSIX, NONE | TRIGGER | 0x40, 0, 1, None, 0),
    "start beyond": (MSIX, NONE | TRIGGER, 20, 1, None, 0),
    "end beyond": (MSIX, NONE | TRIGGER, 19, 2, None, 0),
    "end beyond 32 bits": (MSIX, NONE | TRIGGER, 0xFFFF_FFFF, 0xFFFF_FFFF, None, 0),
    "negative start": (MSIX, NONE | TRIGGER, -1, 1, None, 0),
    "negative count": (MSIX, NONE | TRIGGER, 3, -1, None, 0),
    "count 0, start 1": (MSIX, NONE | TRIGGER, 1, 0, None, 0),
    "count 0, start beyond": (MSIX, NONE | TRIGGER, 20, 0, None, 0),
    "count 0, mask": (MSIX, NONE | MASK, 0, 0, None, 0),
    "count 0, unmask": (MSIX, NONE | UNMASK, 0, 0, None, 0),
    "count 0, bool": (MSIX, BOOL | TRIGGER, 0, 0, b"", 0),
    "count 0, eventfd": (MSIX, EVENTFD | TRIGGER, 0, 0, None, 0),
    "ERR masked": (ERR, NONE | MASK, 0, 1, None, 0),
    "REQ unmasked": (REQ, NONE | UNMASK, 0, 1, None, 0),
    "REQ eventfd unmask": (REQ, EVENTFD | UNMASK, 0, 1, None, 1),
    "ERR twice": (ERR, EVENTFD | TRIGGER, 0, 2, None, 2),
    "bool without data": (MSIX, BOOL | TRIGGER, 0, 1, None, 0),
    "bool data too short": (MSIX, BOOL | TRIGGER, 0, 2, b"\1", 0),
    "bool data too long": (MSIX, BOOL | TRIGGER, 0, 2, b"\1\1\1", 0),
    "none with descriptors": (MSIX, NONE | TRIGGER, 0, 1, None, 1),
    "none with descriptors, count 0": (MSIX, NONE | TRIGGER, 0, 0, None, 1),
    "bool with descriptors": (MSIX, BOOL | TRIGGER, 0, 1, b"\1", 1),
    "fewer descriptors": (MSIX, EVENTFD | TRIGGER, 0, 3, None, 2),
    "more descriptors": (MSIX, EVENTFD | TRIGGER, 0, 1, None, 2),
    "fewer descriptors, mask": (MSIX, EVENTFD | MASK, 0, 3, None, 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(interrupts: Interrupts, lines: Lines, name: str) -> None:
    index, flags, start, count, bools, number = REFUSED[name]
    fds = [line.sent() for line in lines(number)]
    before = lines(20)
    assign(interrupts, MSIX, before)
    opened = len(open_files())
    with pytest.raises(InvalidAccess) as caught:
        interrupts.set_irqs(index, flags, start, count, bools, fds)
    assert caught.value.errno == errno.EINVAL
    assert len(open_files()) == opened - number
    assert all(interrupts.trigger(MSIX, vector) for vector in range(20))
    assert [line.taken() for line in before] == [1] * 20


@pytest.mark.parametrize("index", list(IrqIndex))
@pytest.mark.parametrize("counts", [{}, {INTX: 1, MSI: 1, MSIX: 1}])
def test_turning_off_always_succeeds(index: IrqIndex, counts: dict[IrqIndex, int]) -> None:
    Interrupts(counts).set_irqs(index, NONE | TRIGGER, 0, 0)


@pytest.mark.parametrize("index", [INTX, MSI, MSIX])
@pytest.mark.parametrize("flags", [NONE | TRIGGER, NONE | MASK, EVENTFD | TRIGGER])
def test_an_index_without_vectors_takes_nothing_else(index: IrqIndex, flags: int) -> None:
    with pytest.raises(InvalidAccess, match="the device has 0"):
        Interrupts({}).set_irqs(index, flags, 0, 1)


class TestDescriptors:
    @pytest.mark.parametrize(
        ("index", "action"), [(INTX, TRIGGER), (INTX, UNMASK), (MSIX, TRIGGER), (MSIX, UNMASK), (ERR, TRIGGER)]
    )
    def test_what_is_no_eventfd_is_refused(
        self, interrupts: Interrupts, lines: Lines, tmp_path: Path, index: IrqIndex, action: IrqSetFlags
    ) -> None:
        reading, writing = os.pipe()
        with select.epoll() as epoll:
            other_anonymous = os.dup(epoll.fileno())
        wrong = [
            reading,
            writing,
            socket.socket(socket.AF_UNIX).detach(),
            os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT),
            other_anonymous,
        ]
        for fd in wrong:
            with pytest.raises(InvalidAccess, match="no eventfd"):
                interrupts.set_irqs(index, EVENTFD | action, 0, 1, None, [fd])

    def test_one_wrong_descriptor_changes_nothing(self, interrupts: Interrupts, lines: Lines) -> None:
        old, new = lines(2), lines(1)
        assign(interrupts, MSIX, old)
        with pytest.raises(InvalidAccess):
            interrupts.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 2, None, [new[0].sent(), os.memfd_create("x")])
        interrupts.trigger(MSIX, 0)
        assert (old[0].taken(), new[0].taken()) == (1, 0)

    def test_a_closed_descriptor(self, interrupts: Interrupts) -> None:
        with pytest.raises(InvalidAccess, match="no eventfd"):
            interrupts.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1, None, [1_000_000])

    def test_without_proc_the_file_type_decides(
        self, interrupts: Interrupts, lines: Lines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_proc(path: str) -> str:
            raise FileNotFoundError(path)

        (line,) = lines()
        monkeypatch.setattr("vfio_user.interrupts.os.readlink", no_proc)
        with pytest.raises(InvalidAccess, match="no eventfd"):
            interrupts.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1, None, [os.memfd_create("x")])
        with pytest.raises(InvalidAccess, match="no eventfd"):
            interrupts.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1, None, [1_000_000])
        assign(interrupts, MSIX, [line])
        monkeypatch.undo()
        assert interrupts.trigger(MSIX, 0)

    @pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK, os.EFD_SEMAPHORE])
    def test_a_full_counter_does_not_block(self, interrupts: Interrupts, lines: Lines, flags: int) -> None:
        (line,) = lines(flags=flags)
        assign(interrupts, MSIX, [line])
        os.eventfd_write(line.fd, (1 << 64) - 2)
        assert interrupts.trigger(MSIX, 0)

    def test_an_eventfd_that_could_block_fires_all_the_same(self, interrupts: Interrupts, lines: Lines) -> None:
        (line,) = lines(flags=0)
        assign(interrupts, MSIX, [line])
        assert interrupts.trigger(MSIX, 0)
        assert interrupts.trigger(MSIX, 0)
        assert line.taken() == 2
        assert not fcntl.fcntl(line.fd, fcntl.F_GETFL) & os.O_NONBLOCK  # the client's own reads still block

    def test_assigning_again_closes_the_one_before(self, interrupts: Interrupts, lines: Lines) -> None:
        first, second = lines(2)
        before = len(open_files())
        assign(interrupts, MSIX, [first])
        assign(interrupts, MSIX, [second])
        assert len(open_files()) == before + 1
        interrupts.trigger(MSIX, 0)
        assert (first.taken(), second.taken()) == (0, 1)

    @pytest.mark.parametrize("end", ["clear", "turn off", "de-assign"])
    def test_every_way_to_give_them_back(self, interrupts: Interrupts, lines: Lines, end: str) -> None:
        before = len(open_files())
        made = lines(20)
        assign(interrupts, MSIX, made)
        if end == "clear":
            assign(interrupts, INTX, lines())
            interrupts.set_irqs(INTX, EVENTFD | UNMASK, 0, 1, None, [lines()[0].sent()])
            interrupts.clear()
            assert interrupts.unmask_fd is None
            assert len(open_files()) == before + 22
        elif end == "turn off":
            interrupts.set_irqs(MSIX, NONE | TRIGGER, 0, 0)
            assert len(open_files()) == before + 20
        else:
            interrupts.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 20)
            assert len(open_files()) == before + 20
        assert not interrupts.trigger(MSIX, 3)
        assert sum(line.taken() for line in made) == 0


class TestMessages:
    """MSI and MSI-X."""

    @pytest.mark.parametrize("index", [MSI, MSIX])
    def test_trigger(self, interrupts: Interrupts, lines: Lines, index: IrqIndex) -> None:
        made = lines(4)
        assign(interrupts, index, made)
        assert interrupts.trigger(index, 2)
        assert [line.taken() for line in made] == [0, 0, 1, 0]
        assert interrupts.statistics().fired[index][:4] == [0, 0, 1, 0]

    def test_start(self, interrupts: Interrupts, lines: Lines) -> None:
        made = lines(3)
        assign(interrupts, MSIX, made, start=17)
        assert interrupts.trigger(MSIX, 19)
        assert [line.taken() for line in made] == [0, 0, 1]
        interrupts.set_irqs(MSIX, EVENTFD | TRIGGER, 18, 1)
        assert [interrupts.trigger(MSIX, vector) for vector in (17, 18, 19)] == [True, False, True]

    @pytest.mark.parametrize("index", [MSI, MSIX, ERR, REQ])
    def test_what_is_not_in_use_fires_into_nothing(self, interrupts: Interrupts, lines: Lines, index: IrqIndex) -> None:
        assert not interrupts.trigger(index, 0)
        assert interrupts.pending(index) == 0
        assert interrupts.statistics().dropped == 1
        (line,) = lines()
        assign(interrupts, index, [line])
        assert line.taken() == 0

    @pytest.mark.parametrize("index", [ERR, REQ])
    def test_only_messages_are_pending(self, interrupts: Interrupts, lines: Lines, index: IrqIndex) -> None:
        interrupts.set_irqs(index, EVENTFD | TRIGGER, 0, 1)
        assert not interrupts.trigger(index)
        assert interrupts.pending(index) == 0
        (line,) = lines()
        assign(interrupts, index, [line])
        assert line.taken() == 0

    def test_pending_until_there_is_an_eventfd(self, interrupts: Interrupts, lines: Lines) -> None:
        interrupts.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1)  # how QEMU puts MSI-X to use
        assert not interrupts.trigger(MSIX, 19)
        assert not interrupts.trigger(MSIX, 19)
        assert not interrupts.trigger(MSIX, 0)
        assert interrupts.pending(MSIX) == 1 << 19 | 1
        assert interrupts.pending(MSI) == 0
        (line,) = lines()
        assign(interrupts, MSIX, [line], start=19)
        assert line.taken() == 1
        assert interrupts.pending(MSIX) == 1
        found = interrupts.statistics()
        assert (found.deferred, found.dropped, found.fired[MSIX][19]) == (3, 0, 1)

    @pytest.mark.parametrize("data", [NONE, BOOL])
    def test_masks(self, interrupts: Interrupts, lines: Lines, data: IrqSetFlags) -> None:
        made = lines(4)
        assign(interrupts, MSIX, made)
        bools = None if data is NONE else b"\1\0\x80"
        interrupts.set_irqs(MSIX, data | MASK, 1, 3, bools)
        delivered = [interrupts.trigger(MSIX, vector) for vector in range(4)]
        assert delivered == ([True, False, False, False] if data is NONE else [True, False, True, False])
        assert interrupts.pending(MSIX) == (0b1110 if data is NONE else 0b1010)
        interrupts.set_irqs(MSIX, data | UNMASK, 1, 3, bools)
        assert interrupts.pending(MSIX) == 0
        assert [line.taken() for line in made] == [1, 1, 1, 1]
        assert interrupts.trigger(MSIX, 3)

    def test_a_masked_vector_gets_an_eventfd(self, interrupts: Interrupts, lines: Lines) -> None:
        (line,) = lines()
        interrupts.set_irqs(MSIX, NONE | MASK, 0, 1)
        assign(interrupts, MSIX, [line])
        assert not interrupts.trigger(MSIX, 0)
        assign(interrupts, MSIX, [line])
        assert line.taken() == 0
        interrupts.unmask(MSIX, 0)
        assert line.taken() == 1
        interrupts.unmask(MSIX, 0)
        assert line.taken() == 0

    def test_unmasking_without_an_eventfd_keeps_it_pending(self, interrupts: Interrupts) -> None:
        interrupts.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1)
        interrupts.trigger(MSIX, 0)
        interrupts.unmask(MSIX, 0)
        assert interrupts.pending(MSIX) == 1

    def test_turning_off_forgets(self, interrupts: Interrupts, lines: Lines) -> None:
        made = lines(2)
        assign(interrupts, MSIX, made)
        interrupts.mask(MSIX, 0)
        interrupts.trigger(MSIX, 0)
        interrupts.set_irqs(MSIX, NONE | TRIGGER, 0, 0)
        assert interrupts.pending(MSIX) == 0
        assert not interrupts.trigger(MSIX, 1)
        assert interrupts.pending(MSIX) == 0
        assign(interrupts, MSIX, made)
        assert interrupts.trigger(MSIX, 0)
        assert [line.taken() for line in made] == [1, 0]

    @pytest.mark.parametrize("index", [INTX, MSI, MSIX, ERR, REQ])
    def test_loopback(self, interrupts: Interrupts, lines: Lines, index: IrqIndex) -> None:
        count = min(interrupts.info(index)[1], 3)
        made = lines(count)
        assign(interrupts, index, made)
        interrupts.set_irqs(index, NONE | TRIGGER, 0, count)
        assert [line.taken() for line in made] == [1] * count
        interrupts.set_irqs(index, BOOL | TRIGGER, 0, count, bytes([1, 0, 2][:count]))
        assert [line.taken() for line in made] == [1, 0, 1][:count]

    def test_loopback_without_an_eventfd(self, interrupts: Interrupts) -> None:
        interrupts.set_irqs(MSIX, NONE | TRIGGER, 0, 20)
        assert interrupts.pending(MSIX) == 0

    @pytest.mark.parametrize("action", [MASK, UNMASK])
    def test_mask_eventfds_are_accepted_and_closed(
        self, interrupts: Interrupts, lines: Lines, action: IrqSetFlags
    ) -> None:
        made = lines(2)
        before = len(open_files())
        interrupts.set_irqs(MSIX, EVENTFD | action, 0, 2, None, [line.sent() for line in made])
        interrupts.set_irqs(INTX, EVENTFD | MASK, 0, 1, None, [made[0].sent()])
        interrupts.set_irqs(MSIX, EVENTFD | action, 0, 2)
        assert len(open_files()) == before
        assert interrupts.unmask_fd is None

    @pytest.mark.parametrize("vector", [20, -1, 1 << 40])
    def test_a_vector_the_device_does_not_have(self, interrupts: Interrupts, lines: Lines, vector: int) -> None:
        assign(interrupts, MSIX, lines(20))
        for call in (interrupts.trigger, interrupts.mask, interrupts.unmask):
            with pytest.raises(InvalidAccess, match=f"MSIX vector {vector}: the device has 20"):
                call(MSIX, vector)

    def test_reset_keeps_the_eventfds(self, interrupts: Interrupts, lines: Lines) -> None:
        made = lines(2)
        assign(interrupts, MSIX, made)
        interrupts.mask(MSIX, 1)
        interrupts.trigger(MSIX, 1)
        interrupts.reset()
        assert interrupts.pending(MSIX) == 0
        interrupts.unmask(MSIX, 1)
        assert made[1].taken() == 0
        assert interrupts.trigger(MSIX, 0)


class TestIntx:
    def test_fires_once_until_unmasked(self, interrupts: Interrupts, lines: Lines) -> None:
        (line,) = lines()
        assign(interrupts, INTX, [line])
        assert interrupts.assert_intx()
        assert not interrupts.assert_intx()
        assert line.taken() == 1
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        assert line.taken() == 1
        interrupts.deassert_intx()
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        assert line.taken() == 0
        assert interrupts.assert_intx()
        assert interrupts.statistics().fired[INTX] == [3]

    def test_a_level_that_falls_and_rises_while_masked_fires_once(self, interrupts: Interrupts, lines: Lines) -> None:
        (line,) = lines()
        assign(interrupts, INTX, [line])
        interrupts.assert_intx()
        interrupts.deassert_intx()
        assert not interrupts.assert_intx()
        assert line.taken() == 1
        interrupts.unmask(INTX, 0)
        assert line.taken() == 1

    def test_asserted_before_there_is_an_eventfd(self, interrupts: Interrupts, lines: Lines) -> None:
        (line,) = lines()
        assert not interrupts.assert_intx()
        assign(interrupts, INTX, [line])
        assert line.taken() == 1

    def test_turning_off_and_on_fires_again(self, interrupts: Interrupts, lines: Lines) -> None:
        (line,) = lines()
        assign(interrupts, INTX, [line])
        interrupts.assert_intx()
        interrupts.set_irqs(INTX, NONE | TRIGGER, 0, 0)
        assign(interrupts, INTX, [line])
        assert line.taken() == 2

    def test_interrupt_disable(self, interrupts: Interrupts, lines: Lines) -> None:
        (line,) = lines()
        assign(interrupts, INTX, [line])
        interrupts.intx_disabled = True
        assert interrupts.intx_disabled
        assert not interrupts.assert_intx()
        assert interrupts.intx_level
        assert line.taken() == 0
        interrupts.intx_disabled = False
        assert line.taken() == 1

    def test_the_status_bit(self, interrupts: Interrupts) -> None:
        levels: list[bool] = []
        interrupts.on_intx_level = levels.append
        interrupts.intx_disabled = True
        interrupts.assert_intx()
        interrupts.assert_intx()
        interrupts.deassert_intx()
        interrupts.deassert_intx()
        interrupts.assert_intx()
        interrupts.reset()
        interrupts.reset()
        assert levels == [True, False, True, False]

    def test_the_level_outlives_the_client(self, interrupts: Interrupts, lines: Lines) -> None:
        (line,) = lines()
        assign(interrupts, INTX, [line])
        interrupts.assert_intx()
        interrupts.clear()
        assert interrupts.intx_level
        assign(interrupts, INTX, [line])
        assert line.taken() == 2

    def test_a_mask_outlives_a_new_eventfd(self, interrupts: Interrupts, lines: Lines) -> None:
        first, second = lines(2)
        assign(interrupts, INTX, [first])
        interrupts.set_irqs(INTX, NONE | MASK, 0, 1)
        interrupts.assert_intx()
        assign(interrupts, INTX, [second])
        assert (first.taken(), second.taken()) == (0, 0)
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        assert (first.taken(), second.taken()) == (0, 1)

    def test_without_a_pin(self) -> None:
        with pytest.raises(InvalidAccess, match="without an interrupt pin"):
            Interrupts({}).assert_intx()

    def test_it_is_no_message(self, interrupts: Interrupts, lines: Lines) -> None:
        (line,) = lines()
        for _ in range(2):
            with pytest.raises(InvalidAccess, match="use assert_intx"):
                interrupts.trigger(INTX, 0)
            assign(interrupts, INTX, [line])
        assert line.taken() == 0


class Later:
    """What was put off, until it is called off or its time has come."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object] | None] = []

    def postpone(self, call: Callable[[], object]) -> Later.Call:
        self.calls.append(call)
        return Later.Call(self, len(self.calls) - 1)

    @property
    def pending(self) -> int:
        return sum(call is not None for call in self.calls)

    def pass_time(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            if call is not None:
                call()

    class Call:
        def __init__(self, later: Later, number: int) -> None:
            self.calls, self.number = later.calls, number

        def cancel(self) -> None:
            self.calls[self.number] = None


class TestIntxFiringAgainLater:
    @pytest.fixture
    def later(self, interrupts: Interrupts) -> Later:
        later = Later()
        interrupts.postpone = later.postpone
        return later

    @pytest.fixture
    def line(self, interrupts: Interrupts, lines: Lines, later: Later) -> Line:
        """INTx has fired, and its line is up."""
        (line,) = lines()
        assign(interrupts, INTX, [line])
        assert interrupts.assert_intx()
        assert line.taken() == 1
        return line

    def test_a_line_that_stays_up_fires_again(self, interrupts: Interrupts, line: Line, later: Later) -> None:
        for _ in range(3):
            interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
            assert line.taken() == 0
            later.pass_time()
            assert line.taken() == 1
            later.pass_time()
            assert line.taken() == 0

    def test_a_line_that_falls_meanwhile_does_not(self, interrupts: Interrupts, line: Line, later: Later) -> None:
        interrupts.set_irqs(INTX, BOOL | UNMASK, 0, 1, b"\1")
        interrupts.deassert_intx()
        assert not later.pending
        later.pass_time()
        assert line.taken() == 0

    def test_a_line_that_rises_again_fires_at_once_and_once(
        self, interrupts: Interrupts, line: Line, later: Later
    ) -> None:
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        interrupts.deassert_intx()
        assert interrupts.assert_intx()
        later.pass_time()
        assert line.taken() == 1

    def test_a_device_that_asserts_once_more_is_heard_at_once(
        self, interrupts: Interrupts, line: Line, later: Later
    ) -> None:
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        assert interrupts.assert_intx()
        assert not later.pending
        assert line.taken() == 1

    def test_a_line_that_is_down_has_nothing_to_put_off(self, interrupts: Interrupts, line: Line, later: Later) -> None:
        interrupts.deassert_intx()
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        assert not later.pending
        assert interrupts.assert_intx()
        assert line.taken() == 1

    def test_unmasking_twice_fires_once(self, interrupts: Interrupts, line: Line, later: Later) -> None:
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        assert later.pending == 1
        later.pass_time()
        assert line.taken() == 1

    def test_masking_meanwhile_holds_it_back(self, interrupts: Interrupts, line: Line, later: Later) -> None:
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        interrupts.set_irqs(INTX, NONE | MASK, 0, 1)
        later.pass_time()
        assert line.taken() == 0
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        later.pass_time()
        assert line.taken() == 1

    def test_a_device_that_is_stopped_meanwhile(self, interrupts: Interrupts, line: Line, later: Later) -> None:
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        interrupts.held = True
        later.pass_time()
        assert line.taken() == 0
        interrupts.held = False
        assert line.taken() == 1

    def test_the_next_client_hears_of_it(self, interrupts: Interrupts, line: Line, lines: Lines, later: Later) -> None:
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        interrupts.clear()
        assert not later.pending
        (other,) = lines()
        assign(interrupts, INTX, [other])
        assert other.taken() == 1

    def test_an_eventfd_unmasks_when_the_handler_is_done(
        self, interrupts: Interrupts, line: Line, lines: Lines, later: Later
    ) -> None:
        (unmask,) = lines()
        interrupts.set_irqs(INTX, EVENTFD | UNMASK, 0, 1, None, [unmask.sent()])
        os.eventfd_write(unmask.fd, 1)
        interrupts.unmask_event()
        assert line.taken() == 1
        assert not later.pending

    @given(steps=st.lists(st.sampled_from("+-muUdePh"), max_size=30))
    @settings(deadline=None)
    def test_no_interrupt_is_lost(self, steps: list[str]) -> None:
        interrupts, later = Interrupts({INTX: 1}), Later()
        interrupts.postpone = later.postpone
        fd = os.eventfd(0, os.EFD_NONBLOCK)

        def stop_and_go() -> None:
            interrupts.held = True
            interrupts.held = False

        acts: dict[str, Callable[[], object]] = {
            "+": interrupts.assert_intx,
            "-": interrupts.deassert_intx,
            "m": lambda: interrupts.set_irqs(INTX, NONE | MASK, 0, 1),
            "u": lambda: interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1),
            "U": lambda: interrupts.unmask(INTX, 0),
            "d": lambda: setattr(interrupts, "intx_disabled", True),
            "e": lambda: setattr(interrupts, "intx_disabled", False),
            "P": later.pass_time,
            "h": stop_and_go,
        }
        try:
            interrupts.set_irqs(INTX, EVENTFD | TRIGGER, 0, 1, None, [os.dup(fd)])
            fired = 0
            for step in steps:
                acts[step]()
                told = interrupts.statistics().fired[INTX][0]
                if told > fired:
                    assert interrupts.intx_level
                    assert not interrupts.intx_disabled
                fired = told
            # Once the client unmasks it, and some time has passed, a line that is up has been heard.
            interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
            later.pass_time()
            told = interrupts.statistics().fired[INTX][0]
            assert (told > fired) == (interrupts.intx_level and not interrupts.intx_disabled)
        finally:
            interrupts.clear()
            os.close(fd)


class TestUnmaskEventfd:
    """How KVM ends an interrupt: no message, but an eventfd the server watches."""

    @pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK])
    def test_unmasks_and_fires_again(self, interrupts: Interrupts, lines: Lines, flags: int) -> None:
        line, unmask = lines(2, flags)
        assign(interrupts, INTX, [line])
        interrupts.set_irqs(INTX, NONE | MASK, 0, 1)
        interrupts.set_irqs(INTX, EVENTFD | UNMASK, 0, 1, None, [unmask.sent()])
        interrupts.set_irqs(INTX, NONE | UNMASK, 0, 1)
        interrupts.assert_intx()
        assert line.taken() == 1
        os.eventfd_write(unmask.fd, 1)
        interrupts.unmask_event()
        assert line.taken() == 1
        assert unmask.taken() == 0

    @pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK])
    def test_a_wakeup_for_nothing(self, interrupts: Interrupts, lines: Lines, flags: int) -> None:
        line, unmask = lines(2, flags)
        assign(interrupts, INTX, [line])
        interrupts.unmask_event()
        interrupts.set_irqs(INTX, EVENTFD | UNMASK, 0, 1, None, [unmask.sent()])
        interrupts.assert_intx()
        interrupts.unmask_event()
        assert line.taken() == 1

    def test_the_session_learns_what_to_watch_before_the_old_one_is_closed(
        self, interrupts: Interrupts, lines: Lines
    ) -> None:
        seen: list[tuple[int | None, bool]] = []
        old: list[int] = []

        def changed(fd: int | None) -> None:
            seen.append((fd, all(number in open_files() for number in old)))
            old[:] = [] if fd is None else [fd]

        interrupts.on_unmask_fd_changed = changed
        first, second = (line.sent() for line in lines(2))
        interrupts.set_irqs(INTX, EVENTFD | UNMASK, 0, 1, None, [first])
        assert interrupts.unmask_fd == first
        interrupts.set_irqs(INTX, EVENTFD | UNMASK, 0, 1, None, [second])
        interrupts.set_irqs(INTX, EVENTFD | UNMASK, 0, 1)
        interrupts.set_irqs(INTX, EVENTFD | UNMASK, 0, 1)
        assert seen == [(first, True), (second, True), (None, True)]
        assert first not in open_files()
        assert interrupts.unmask_fd is None

    def test_turning_off_ends_it(self, interrupts: Interrupts, lines: Lines) -> None:
        seen: list[int | None] = []
        interrupts.set_irqs(INTX, EVENTFD | UNMASK, 0, 1, None, [lines()[0].sent()])
        interrupts.on_unmask_fd_changed = seen.append
        interrupts.set_irqs(INTX, NONE | TRIGGER, 0, 0)
        interrupts.set_irqs(INTX, NONE | TRIGGER, 0, 0)
        assert seen == [None]
        assert interrupts.unmask_fd is None


class TestMigration:
    def test_held_vectors_fire_when_that_ends(self, interrupts: Interrupts, lines: Lines) -> None:
        msix, intx, error = lines(3), lines(), lines()
        assign(interrupts, MSIX, msix)
        assign(interrupts, INTX, intx)
        assign(interrupts, ERR, error)
        interrupts.held = True
        assert interrupts.held
        assert not interrupts.trigger(MSIX, 1)
        assert not interrupts.assert_intx()
        assert not interrupts.trigger(ERR)
        assert [line.taken() for line in (*msix, *intx, *error)] == [0] * 5
        assert interrupts.pending(MSIX) == 0b010
        interrupts.held = False
        assert [line.taken() for line in (*msix, *intx, *error)] == [0, 1, 0, 1, 0]
        assert interrupts.pending(MSIX) == 0
        assert interrupts.trigger(MSIX, 1)
        assert msix[1].taken() == 1

    def test_eventfds_that_come_while_held_do_not_fire(self, interrupts: Interrupts, lines: Lines) -> None:
        vectors = lines(2)
        assign(interrupts, MSI, vectors[:1])
        interrupts.trigger(MSI, 1)
        interrupts.held = True
        assign(interrupts, MSI, vectors[1:], start=1)
        interrupts.unmask(MSI, 1)
        interrupts.set_irqs(MSI, NONE | TRIGGER, 0, 1)
        assert [line.taken() for line in vectors] == [0, 0]
        interrupts.held = False
        assert [line.taken() for line in vectors] == [0, 1]

    def test_what_is_the_devices_moves(self, lines: Lines) -> None:
        source, destination = Interrupts({INTX: 1, MSI: 4, MSIX: 20}), Interrupts({INTX: 1, MSI: 4, MSIX: 20})
        vectors, intx, levels = lines(20), lines(), list[bool]()
        destination.on_intx_level = levels.append
        assign(source, MSIX, vectors)
        for vector in (0, 19):
            source.mask(MSIX, vector)
            source.trigger(MSIX, vector)
        source.assert_intx()
        destination.check_state(source.save_state())()
        assert destination.intx_level
        assert levels == [True]
        assert destination.pending(MSIX) == 1 | 1 << 19
        assert destination.pending(MSI) == 0
        source.clear()
        # The destination's client connects what its guest uses, and learns what it missed.
        assign(destination, MSIX, vectors)
        assign(destination, INTX, intx)
        assert [number for number, line in enumerate(vectors) if line.taken()] == [0, 19]
        assert intx[0].taken() == 1
        destination.clear()

    def test_what_was_connected_before_the_state_came(self, interrupts: Interrupts, lines: Lines) -> None:
        vectors, intx = lines(4), lines()
        assign(interrupts, MSI, vectors)
        assign(interrupts, INTX, intx)
        interrupts.trigger(MSI, 3)
        assert vectors[3].taken() == 1
        interrupts.check_state({"intx_level": True, "pending": {"MSI": 0b100, "MSIX": 0}})()
        assert [line.taken() for line in (*vectors, *intx)] == [0, 0, 1, 0, 1]

    @pytest.mark.parametrize(
        "state",
        [
            None,
            {},
            {"intx_level": 1, "pending": {"MSI": 0, "MSIX": 0}},
            {"intx_level": True},
            {"intx_level": True, "pending": {"MSI": 0}},
            {"intx_level": True, "pending": {"MSI": 0x10, "MSIX": 0}},
            {"intx_level": True, "pending": {"MSI": -1, "MSIX": 0}},
            {"intx_level": True, "pending": {"MSI": 0, "MSIX": "1"}},
            {"intx_level": True, "pending": {"MSI": 0, "MSIX": True}},
        ],
    )
    def test_no_saved_interrupts(self, interrupts: Interrupts, state: object) -> None:
        with pytest.raises(InvalidAccess, match="saved interrupts: "):
            interrupts.check_state(state)
        assert not interrupts.intx_level

    def test_a_level_without_a_pin(self) -> None:
        with pytest.raises(InvalidAccess, match="no interrupt pin"):
            Interrupts({}).check_state({"intx_level": True, "pending": {"MSI": 0, "MSIX": 0}})


def test_what_qemu_sends(lines: Lines) -> None:
    """Power-up with INTx, MSI-X on, vectors unmasked one by one, reset, off."""
    interrupts = Interrupts({INTX: 1, MSIX: 20})
    (pin,) = lines()
    vectors = lines(20)
    set_irqs = interrupts.set_irqs
    set_irqs(INTX, 0x24, 0, 1, None, [pin.sent()])
    set_irqs(ERR, 0x24, 0, 1, None, [lines()[0].sent()])
    set_irqs(INTX, 0x21, 0, 0)
    interrupts.reset()
    assign(interrupts, INTX, [pin])
    interrupts.assert_intx()
    assert pin.taken() == 1
    set_irqs(INTX, 0x11, 0, 1)
    assert pin.taken() == 1
    interrupts.deassert_intx()
    set_irqs(INTX, 0x21, 0, 0)
    set_irqs(MSIX, 0x24, 0, 1)
    for start, count in ((0, 8), (8, 8), (16, 4)):
        assign(interrupts, MSIX, vectors[start : start + count], start)
    assert all(interrupts.trigger(MSIX, vector) for vector in range(20))
    assert [line.taken() for line in vectors] == [1] * 20
    set_irqs(MSIX, 0x21, 0, 0)
    set_irqs(ERR, 0x24, 0, 1)
    interrupts.clear()


class InterruptsMachine(RuleBasedStateMachine):
    """Any order of set-ups, masks and triggers of 3 MSI-X vectors and INTx, against a model of who hears what."""

    def __init__(self) -> None:
        super().__init__()
        self.before = len(open_files())
        self.lines = [Line() for _ in range(4)]
        self.interrupts = Interrupts({INTX: 1, MSIX: 3})
        self.assigned: dict[int, int] = {}
        self.masked: set[int] = set()
        self.pending: set[int] = set()
        self.enabled = False
        self.heard = [0] * 4
        self.level = self.disabled = self.intx_masked = False
        self.intx: int | None = None

    def settle(self) -> None:
        for vector in sorted(self.pending):
            if vector in self.assigned and vector not in self.masked:
                self.heard[self.assigned[vector]] += 1
                self.pending.discard(vector)
        if self.level and not self.disabled and not self.intx_masked and self.intx is not None:
            self.heard[self.intx] += 1
            self.intx_masked = True

    @rule(vector=st.integers(0, 2), line=st.integers(0, 3))
    def assign(self, vector: int, line: int) -> None:
        assign(self.interrupts, MSIX, [self.lines[line]], vector)
        self.assigned[vector] = line
        self.enabled = True
        self.settle()

    @rule(start=st.integers(0, 2), count=st.integers(1, 3))
    def deassign(self, start: int, count: int) -> None:
        count = min(count, 3 - start)
        self.interrupts.set_irqs(MSIX, EVENTFD | TRIGGER, start, count)
        for vector in range(start, start + count):
            self.assigned.pop(vector, None)
        self.enabled = True

    @rule(bools=st.binary(min_size=3, max_size=3), mask=st.booleans())
    def mask(self, bools: bytes, mask: bool) -> None:
        self.interrupts.set_irqs(MSIX, BOOL | (MASK if mask else UNMASK), 0, 3, bools)
        chosen = {vector for vector in range(3) if bools[vector]}
        self.masked = self.masked | chosen if mask else self.masked - chosen
        self.settle()

    @rule(vector=st.integers(0, 2))
    def trigger(self, vector: int) -> None:
        can = vector in self.assigned and vector not in self.masked
        assert self.interrupts.trigger(MSIX, vector) == can
        if can:
            self.heard[self.assigned[vector]] += 1
        elif self.enabled:
            self.pending.add(vector)

    @rule()
    def turn_off(self) -> None:
        self.interrupts.set_irqs(MSIX, NONE | TRIGGER, 0, 0)
        self.forget_msix()

    def forget_msix(self) -> None:
        self.assigned.clear()
        self.masked.clear()
        self.pending.clear()
        self.enabled = False

    @rule()
    def client_loss(self) -> None:
        self.interrupts.clear()
        self.forget_msix()
        self.intx = None
        self.intx_masked = False

    @rule()
    def reset(self) -> None:
        self.interrupts.reset()
        self.pending.clear()
        self.level = False

    @rule(line=st.none() | st.integers(0, 3))
    def assign_intx(self, line: int | None) -> None:
        fds = [] if line is None else [self.lines[line].sent()]
        self.interrupts.set_irqs(INTX, EVENTFD | TRIGGER, 0, 1, None, fds)
        self.intx = line
        self.settle()

    @rule(level=st.booleans())
    def set_level(self, level: bool) -> None:
        if level:
            self.interrupts.assert_intx()
        else:
            self.interrupts.deassert_intx()
        self.level = level
        self.settle()

    @rule(disabled=st.booleans())
    def set_disabled(self, disabled: bool) -> None:
        self.interrupts.intx_disabled = disabled
        self.disabled = disabled
        self.settle()

    @rule(mask=st.booleans())
    def mask_intx(self, mask: bool) -> None:
        self.interrupts.set_irqs(INTX, NONE | (MASK if mask else UNMASK), 0, 1)
        self.intx_masked = mask
        self.settle()

    @precondition(lambda self: self.interrupts.unmask_fd is None)
    @rule(line=st.integers(0, 3))
    def offer_unmask(self, line: int) -> None:
        self.interrupts.set_irqs(INTX, EVENTFD | UNMASK, 0, 1, None, [self.lines[line].sent()])

    @rule(
        index=st.integers(-1, 6),
        flags=st.integers(0, 0x7F),
        start=st.integers(0, 4),
        count=st.integers(0, 4),
        fds=st.integers(0, 4),
    )
    def nonsense(self, index: int, flags: int, start: int, count: int, fds: int) -> None:
        call = partial(
            Interrupts({MSIX: 3, INTX: 1}).set_irqs,
            index,
            flags,
            start,
            count,
            None,
            [os.memfd_create("not an eventfd") for _ in range(fds)],
        )
        if fds or index not in range(5):
            with pytest.raises(InvalidAccess):
                call()

    @invariant()
    def heard_what_the_model_says(self) -> None:
        assert [line.taken() for line in self.lines] == self.heard
        self.heard = [0] * 4
        assert self.interrupts.pending(MSIX) == sum(1 << vector for vector in self.pending)
        assert self.interrupts.intx_level == self.level

    @invariant()
    def holds_what_it_needs(self) -> None:
        held = len(self.assigned) + (self.intx is not None) + (self.interrupts.unmask_fd is not None)
        assert len(open_files()) == self.before + 4 + held

    def teardown(self) -> None:
        self.interrupts.clear()
        for line in self.lines:
            os.close(line.fd)
        assert len(open_files()) == self.before


TestAnySequence = InterruptsMachine.TestCase
TestAnySequence.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)

"""The spin watchdog, with a clock of its own."""

from __future__ import annotations

import logging

import pytest

from vfio_user.pci.registers import RC, Field, Register, RegisterBlock, RegisterFile, Spin


class Channel(RegisterBlock):
    status = Register(0x0, fields=[Field("busy", 0), Field("done", 1)])
    events = Register(0x4, access=RC)


class Block(RegisterBlock):
    a = Register(0x0)
    channels = RegisterFile(Channel, 0x10, count=2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_spin_is_named_with_its_value_and_duration() -> None:
    block, clock, found = Block(size=0x100), Clock(), list[Spin]()
    watch = block.watch_spins(reads=10, within=1.0, report=found.append, clock=clock)
    block.channels[1].status = 1
    for _ in range(100):
        block.read(0x18, 4)
        clock.now += 0.01
    assert [spin.reads for spin in found] == [10, 100]
    assert str(found[0]) == (
        "the client spins on channels[1].status (offset 0x18) = 0x1 (busy=1 done=0): 10 reads in 0.09 s"
    )
    assert (found[0].name, found[0].offset, found[0].size, found[0].value) == ("channels[1].status", 0x18, 4, 1)
    clock.now = 110.0
    assert [(spin.name, spin.seconds) for spin in watch.spins] == [("channels[1].status", 10.0)]


def test_another_value_or_a_slow_client_is_no_spin() -> None:
    block, clock, found = Block(size=0x100), Clock(), list[Spin]()
    watch = block.watch_spins(reads=10, within=1.0, report=found.append, clock=clock)
    for count in range(100):
        block.a = count // 9
        block.read(0x0, 4)
    for _ in range(100):
        block.read(0x10, 4)
        clock.now += 0.2
    assert found == []
    assert watch.spins == []
    for _ in range(10):
        block.read(0x10, 4)
    assert len(found) == 1
    block.channels[0].status.done = 1
    block.read(0x10, 4)
    assert watch.spins == []


def test_other_accesses_in_between_do_not_hide_a_spin() -> None:
    block, found = Block(size=0x100), list[Spin]()
    block.watch_spins(reads=10, report=found.append)
    for count in range(10):
        block.read(0x10, 4)
        block.write(0x0, 4, count)
        block.read(0x0, 4)
    assert [spin.name for spin in found] == ["channels[0].status"]


def test_a_spin_on_nothing_and_on_several_registers() -> None:
    block, found = Block(size=0x100), list[Spin]()
    block.watch_spins(reads=2, report=found.append)
    for _ in range(2):
        block.read(0x80, 4)
        block.read(0x10, 8)
        block.read(0x10, 1)
    assert [(spin.name, spin.shown) for spin in found] == [
        ("no register", "0x0"),
        ("channels[0].status and channels[0].events", "0x0"),
        ("channels[0].status", "0x0"),
    ]


def test_without_a_report_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    block = Block(size=0x100)
    block.watch_spins(reads=3, clock=Clock())
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            block.read(0x0, 4)
    assert caplog.messages == ["the client spins on a (offset 0x0) = 0x0: 3 reads in 0 s"]


def test_watching_ends_and_leaves_nothing_behind() -> None:
    block, found = Block(), list[Spin]()
    before = block._readers[0 << 4 | 4]
    block.watch_spins(reads=2, report=found.append)
    watched = block._readers[0 << 4 | 4]
    block.stop_watching()
    after = block._readers[0 << 4 | 4]
    assert watched.__qualname__ != before.__qualname__
    assert after.__qualname__ == before.__qualname__
    for _ in range(5):
        block.read(0x0, 4)
    assert found == []


def test_one_read_is_no_spin() -> None:
    with pytest.raises(ValueError, match="reads=1: a spin is at least 2 reads"):
        Block().watch_spins(reads=1)


def test_the_number_of_places_watched_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.pci.registers.watchdog.CAPACITY", 2)
    block, found = RegisterBlock(size=0x1000), list[Spin]()
    block.watch_spins(reads=2, report=found.append)
    for _ in range(2):
        for offset in range(0, 0x40, 4):
            block.read(offset, 4)
    assert [spin.offset for spin in found] == [0, 4]

"""The threads that wait for storage, and when they are listened to."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest

from tests.support.fds import memory_file
from vfio_user.devices.lsi53c8xx.controller import Lsi53c895a
from vfio_user.devices.lsi53c8xx.storage_threads import StorageThreads
from vfio_user.server import Device
from vfio_user.server.loop import EventLoop


@pytest.fixture
def device() -> Device:
    made = Device()
    made.attach(EventLoop())
    return made


def has_work(device: Device) -> bool:
    """The attribute, but no fact that a type checker would carry on from one line to the next."""
    return device.loop.has_work


def test_they_are_listened_to_while_there_is_something_to_wait_for(device: Device) -> None:
    threads = StorageThreads(device)
    go, results = threading.Event(), list[object]()

    def wait(number: int) -> int:
        go.wait()
        return number

    try:
        for number in range(3):
            threads.submit(partial(wait, number), results.append)
        assert has_work(device)
        device.loop.run_once()
        assert not results
        go.set()
        while len(results) < 3:
            assert has_work(device)
            device.loop.run_once(None)
        assert sorted(map(str, results)) == ["0", "1", "2"]
        assert not has_work(device)
        threads.submit(lambda: "again", results.append)
        while len(results) < 4:
            device.loop.run_once(None)
        assert results[3] == "again"
        assert not has_work(device)
    finally:
        threads.close()
    device.loop.close()


def test_work_that_follows_work_is_waited_for(device: Device) -> None:
    threads, results = StorageThreads(device), list[object]()
    threads.submit(lambda: 1, lambda result: threads.submit(lambda: (result, 2), results.append))
    while not results:
        device.loop.run_once(None)
    assert results == [(1, 2)]
    threads.close()
    device.loop.close()


def test_draining_waits_for_all(device: Device) -> None:
    threads, results = StorageThreads(device), list[object]()
    threads.drain()
    threads.submit(lambda: 1, results.append)
    threads.drain()
    assert results == [1]
    assert not has_work(device)
    threads.close()
    threads.close()
    device.loop.close()


def test_closing_stops_listening(device: Device) -> None:
    threads = StorageThreads(device)
    threads.submit(lambda: 1, lambda _result: None)
    threads.close()
    assert not has_work(device)
    device.loop.close()


def test_a_controller_that_waits_for_nothing_is_simple() -> None:
    """So that its server receives from the client directly."""
    fd = memory_file(bytes(4096))
    device = Lsi53c895a(disk0=f"file:/proc/self/fd/{fd}")
    device.attach(EventLoop())
    device.loop.run_once()
    assert not has_work(device)
    assert device.loop.is_simple
    device.loop.close()
    device.close()
    os.close(fd)

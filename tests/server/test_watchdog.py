"""Device code that runs too long is named, once, and nothing else ever is."""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vfio_user
from tests.support.raw_client import connect
from vfio_user.regions import CallbackRegion
from vfio_user.server import watchdog as watchdog_module
from vfio_user.server.device import Device
from vfio_user.server.server import Server
from vfio_user.server.watchdog import Watchdog, watchdog


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def monotonic(self) -> float:
        return self.now


class Busy:
    """A session whose thread runs device code until told to go on."""

    peer = "a client"

    def __init__(self) -> None:
        self.turns = 0
        self.thread_id: int | None = None
        self._go_on = threading.Semaphore(0)
        self._there = threading.Semaphore(0)
        self._steps: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._there.acquire()

    def _run(self) -> None:
        self.thread_id = threading.get_ident()
        self._there.release()
        self._go_on.acquire()
        while self._steps:
            self._steps.pop(0)()

    def handler(self) -> None:
        """The device code: it is as if the session had called it."""
        self._there.release()
        self._go_on.acquire()

    def begin(self) -> None:
        """Calls the handler, and returns when it is inside."""
        self.turns += 1
        self._steps.append(called_by_the_package(self.handler))
        self._go_on.release()
        self._there.acquire()

    def end(self) -> None:
        self._go_on.release()
        self._thread.join()


def called_by_the_package(function: Callable[[], None]) -> Callable[[], None]:
    """A function of this package, as far as its code object knows, that calls the one given."""
    code = compile("def dispatch():\n    function()\n", str(Path(vfio_user.__file__).parent / "server/x.py"), "exec")
    names: dict[str, object] = {"function": function}
    exec(code, names)
    dispatch = names["dispatch"]
    assert isinstance(dispatch, types.FunctionType)
    return dispatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog_module, "time", clock)
    return clock


@pytest.fixture
def dog(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """A watchdog that only looks when told to: its thread sleeps for a day."""
    dog = Watchdog(threshold=1.0)
    monkeypatch.setattr(dog, "_run", lambda: None)
    return dog


@pytest.fixture
def busy(dog: Watchdog) -> Iterator[Busy]:
    busy = Busy()
    dog.add(busy)
    yield busy
    busy.end()


def test_a_long_call_is_named_once_and_again_with_its_duration_when_it_ends(
    dog: Watchdog, clock: Clock, busy: Busy, caplog: pytest.LogCaptureFixture
) -> None:
    busy.begin()
    dog.look()
    clock.now += 0.9
    dog.look()
    assert caplog.records == []
    clock.now += 0.6
    dog.look()
    clock.now += 2.0
    dog.look()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"Busy.handler (test_watchdog.py:{Busy.handler.__code__.co_firstlineno}) has been running for 1.5 s while "
        "a client waits; QEMU gives up after 5 s, for good. Put long work off with call_soon or call_later, or give "
        "QEMU x-msg-timeout=MILLISECONDS"
    )
    caplog.clear()
    busy.begin()
    clock.now += 1.0
    dog.look()
    (record,) = caplog.records
    assert record.getMessage().endswith("took 4.5 s")
    caplog.clear()
    clock.now += 0.5
    dog.look()
    assert caplog.records == []


def test_many_short_calls_are_no_long_one(
    dog: Watchdog, clock: Clock, busy: Busy, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        busy.begin()
        dog.look()
        clock.now += 0.8
    assert caplog.records == []


def test_a_thread_that_runs_nothing_of_the_devices(
    dog: Watchdog, clock: Clock, busy: Busy, caplog: pytest.LogCaptureFixture
) -> None:
    # It waits in code that is neither the package's nor called by it.
    for _ in range(5):
        dog.look()
        clock.now += 5
    assert caplog.records == []


def test_a_session_without_a_thread_and_one_that_left(
    dog: Watchdog, clock: Clock, busy: Busy, caplog: pytest.LogCaptureFixture
) -> None:
    busy.begin()
    dog.look()
    thread, busy.thread_id = busy.thread_id, None
    clock.now += 5
    dog.look()
    busy.thread_id = thread
    dog.remove(busy)
    clock.now += 5
    dog.look()
    dog.remove(busy)
    assert caplog.records == []


def test_its_thread_lives_as_long_as_there_is_somebody_to_look_at() -> None:
    dog = Watchdog(threshold=100)
    one, other = Busy(), Busy()
    dog.add(one)
    thread = dog._thread
    assert thread is not None
    dog.add(other)
    assert dog._thread is thread
    dog.remove(one)
    assert thread.is_alive()
    # Gone and back before the thread has noticed: it stays.
    with dog._lock:
        dog._sessions.clear()
        dog._wake.set()
        dog._sessions[one] = None
    dog.remove(other)
    assert dog._thread is thread
    dog.remove(one)
    thread.join(10)
    assert not thread.is_alive()
    dog.add(one)
    again = dog._thread
    assert again is not thread
    assert again is not None
    dog.remove(one)
    again.join(10)
    one.end()
    other.end()


def test_a_real_handler_of_a_real_server(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(_offset: int, _size: int) -> int:
        entered.set()
        leave.wait(10)
        return 1

    device = Device()
    device.set_region(0, CallbackRegion(4, read=slow))
    with Server(device, tmp_path / "s").start(), connect(tmp_path / "s") as client:
        client.negotiate()
        thread = watchdog._thread
        assert thread is not None
        reader = threading.Thread(target=lambda: client.read(0, 0))
        reader.start()
        assert entered.wait(10)
        watchdog.look()
        clock.now += 2
        watchdog.look()
        leave.set()
        reader.join()
    # The one of the process may have looked at the same moment, but it speaks once.
    messages = [record.getMessage() for record in caplog.records if "has been running" in record.getMessage()]
    assert len(messages) == 1
    assert "slow (test_watchdog.py:" in messages[0]
    thread.join(10)
    assert not thread.is_alive()


def test_a_server_that_waits_for_its_client_is_not_reported(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device()
    device.set_region(0, CallbackRegion(4, read=lambda offset, size: 1))
    with Server(device, tmp_path / "s").start(), connect(tmp_path / "s") as client:
        client.negotiate()
        client.read(0, 0)
        for _ in range(5):
            watchdog.look()
            clock.now += 5
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []

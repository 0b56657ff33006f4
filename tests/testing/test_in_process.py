"""A device and its client on one thread: order, simulated time, failures."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from vfio_user.devices.edu import Edu
from vfio_user.errors import CommandError, ConnectionClosedError, InterruptTimeoutError
from vfio_user.pci import MemoryBar, Msi, Register, RegisterBlock
from vfio_user.protocol.constants import Command
from vfio_user.protocol.header import Header
from vfio_user.server.pci_device import PciDevice
from vfio_user.server.session import Observer
from vfio_user.testing.in_process import DeviceUnderTest, SimulatedClock


class Registers(RegisterBlock):
    """Three registers that do things."""

    start = Register(0)
    value = Register(4)
    trouble = Register(8)


class Timed(PciDevice):
    """Interrupts some seconds after it was told to."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    msi = Msi()
    bar0 = MemoryBar(size=4096, registers=Registers)
    connected_now = 0

    def on_connect(self) -> None:
        self.connected_now += 1

    def on_disconnect(self) -> None:
        self.connected_now -= 1

    @bar0.on_write("start")
    def begin(self, seconds: int) -> None:
        self.call_later(seconds, self.finish)

    def finish(self) -> None:
        self.bar0.value += 1
        self.raise_interrupt()

    @bar0.on_write("trouble")
    def fail(self, value: int) -> None:
        if value == 2:
            self.call_soon(self.explode)
        elif value == 3:
            self.call_soon(self.fail, 3)
        else:
            self.explode()

    def explode(self) -> None:
        raise ZeroDivisionError("a bug of the device's")


@pytest.fixture
def under_test() -> Iterator[DeviceUnderTest]:
    with DeviceUnderTest(Timed()) as under_test:
        yield under_test


def test_an_hour_takes_no_time(under_test: DeviceUnderTest) -> None:
    function = under_test.function
    (interrupt,) = function.enable_interrupts()
    began, simulated = time.monotonic(), under_test.now
    function.bar0.write32(0, 3600)
    with pytest.raises(InterruptTimeoutError, match="within 3599 seconds"):
        interrupt.wait(3599)
    assert interrupt.wait(2) == 1
    assert under_test.now - simulated == pytest.approx(3600, abs=0.01)
    with pytest.raises(InterruptTimeoutError):
        interrupt.wait(86400)
    assert time.monotonic() - began < 1


def test_time_that_is_let_pass(under_test: DeviceUnderTest) -> None:
    function = under_test.function
    for seconds in (1, 2, 3):
        function.bar0.write32(0, seconds)
    before = under_test.now
    under_test.advance(2.5)
    assert function.bar0.read32(4) == 2
    assert under_test.now - before == pytest.approx(2.5, abs=0.001)
    under_test.wait_until(lambda: function.registers(0).value == 3, timeout=1)
    with pytest.raises(AssertionError, match="not so after 2 seconds"):
        under_test.wait_until(lambda: False, timeout=2)


def test_a_timer_set_before() -> None:
    device = Timed()
    device.call_later(5, device.finish)
    with DeviceUnderTest(device) as under_test:
        under_test.advance(6)
        assert under_test.function.bar0.read32(4) == 1


def test_bugs_of_the_device_come_out_where_they_were_caused(under_test: DeviceUnderTest) -> None:
    function = under_test.function
    with pytest.raises(ZeroDivisionError, match="a bug of the device's"):
        function.bar0.write32(8, 1)
    with pytest.raises(ZeroDivisionError):
        function.bar0.write32(8, 1, posted=True)
    with pytest.raises(ZeroDivisionError):
        function.bar0.write32(8, 2)
    function.bar0.write32(4, 7)
    assert function.bar0.read32(4) == 7, "the connection does not suffer from it"


def test_bugs_nobody_was_told_of() -> None:
    under_test = DeviceUnderTest(Timed())
    under_test.client.region(0)
    under_test.device.call_soon(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        under_test.settle()
    under_test.close()


def test_bugs_as_in_production() -> None:
    with DeviceUnderTest(Timed(), strict=False) as under_test, pytest.raises(CommandError, match="Input/output error"):
        under_test.function.bar0.write32(8, 1)


class Restless(Timed):
    """Has always something to do, until it is disconnected."""

    def on_connect(self) -> None:
        super().on_connect()
        self.call_soon(self.again)

    def again(self) -> None:
        if self.connected_now:
            self.call_soon(self.again)


def test_a_device_that_never_rests() -> None:
    device = Restless()
    with DeviceUnderTest(device) as under_test:
        with pytest.raises(AssertionError, match="does not come to rest"):
            under_test.settle()
        (interrupt,) = under_test.function.enable_interrupts()
        with pytest.raises(InterruptTimeoutError):
            interrupt.wait(0.001)
    device.loop.close()


def test_real_time() -> None:
    device = Timed()
    with DeviceUnderTest(device, real_time=True) as under_test:
        (interrupt,) = under_test.function.enable_interrupts()
        device.call_later(0.01, device.finish)
        assert interrupt.wait(5) == 1
        thread = threading.Timer(0.01, device.call_soon, (device.finish,))
        thread.start()
        assert interrupt.wait(5) == 1
        thread.join()


def test_descriptors_a_device_watches() -> None:
    device = Timed()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    with DeviceUnderTest(device) as under_test:
        (interrupt,) = under_test.function.enable_interrupts()

        def ready() -> None:
            os.eventfd_read(fd)
            device.finish()

        watch = device.watch(fd, ready)
        os.eventfd_write(fd, 1)
        assert interrupt.wait(1) == 1
        thread = threading.Timer(0.01, os.eventfd_write, (fd, 1))
        thread.start()
        assert interrupt.wait(5) == 1
        thread.join()
        watch.close()
    os.close(fd)


def test_the_device_comes_and_goes() -> None:
    device = Timed()
    for _ in range(2):
        with DeviceUnderTest(device) as under_test:
            assert device.connected_now == 1
            under_test.function.bar0.write32(4, under_test.function.bar0.read32(4) + 1)
            under_test.close()
        assert device.connected_now == 0
    assert device.bar0.value == 2


def test_a_client_that_hangs_up() -> None:
    device = Timed()
    with DeviceUnderTest(device) as under_test:
        under_test.client.connection.close()
        under_test.settle()
        assert device.connected_now == 0
        with pytest.raises(ConnectionClosedError):
            under_test.client.reset()


def test_an_observer_sees_every_message() -> None:
    seen: list[int] = []

    class Watcher(Observer):
        def command(self, header: Header, payload: bytes, fds: int) -> None:
            seen.append(header.command)

        def reply(self, header: Header, payload: bytes, fds: int, seconds: float) -> None:
            seen.append(-header.command)

        def closed(self) -> None:
            seen.append(0)

    with DeviceUnderTest(Edu(), observer=Watcher()) as under_test:
        under_test.client.reset()
    reset = Command.DEVICE_RESET
    assert seen == [Command.VERSION, -Command.VERSION, reset, -reset, 0]


def test_a_clock() -> None:
    clock = SimulatedClock()
    before = clock()
    clock.advance(5)
    assert clock() == before + 5


def test_work_that_comes_while_it_looks_for_work_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    # As of a thread that is done with something at that very moment.
    device = Edu()
    event = os.eventfd(0, os.EFD_NONBLOCK)
    done: list[int] = []

    def find_nothing() -> bool:
        os.eventfd_write(event, 1)
        return False

    with DeviceUnderTest(device, real_time=True) as under_test:
        watch = device.watch(event, lambda: done.append(os.eventfd_read(event)))
        monkeypatch.setattr(under_test._session, "receive", find_nothing)
        assert not under_test._work()
        assert done == []
        assert under_test._work()
        assert len(done) == 1
        monkeypatch.undo()
        watch.close()
    os.close(event)

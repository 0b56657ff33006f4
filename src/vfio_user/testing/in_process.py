"""A device and a client of it in one process and on one thread: no socket, no virtual machine, no waiting.

    with DeviceUnderTest(Edu()) as under_test:
        edu = under_test.function
        edu.bar0.write32(0x04, 0x1234_5678)
        assert edu.bar0.read32(0x04) == 0xEDCB_A987

Every message is a real one, and goes through the whole of both ends. The device works whenever the client waits: for a
reply, for an interrupt, or in ``settle`` and ``advance``. So everything happens in the same order every time.

Time is simulated. It passes when the client waits and the device has nothing to do until a timer of its own is due:
then it is that time. ``interrupt.wait(timeout=60)`` on a device that needs a minute takes no time, and one on a device
that never interrupts fails at once. A device that waits for descriptors, or for other threads, lives in real time: give
``real_time=True``.

What device code raises, other than DeviceError, is raised by the access that caused it, with the device's traceback.
"""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Callable
from functools import cached_property
from types import TracebackType
from typing import Self

from vfio_user.client.connection import Connection
from vfio_user.client.device import VfioUserClient
from vfio_user.client.pci_function import PciFunction
from vfio_user.errors import ConnectionClosedError, DeviceError, VfioUserError
from vfio_user.pci.registers import RegisterBlock
from vfio_user.protocol.header import Header
from vfio_user.server.device import Device
from vfio_user.server.loop import EventLoop
from vfio_user.server.session import Observer, Session
from vfio_user.transport.memory import memory_pair

__all__ = ["DeviceUnderTest", "SimulatedClock"]

#: Seconds of simulated time one turn of a busy device takes; a device that is busy for ever runs into a time limit.
_TURN = 1e-6


class SimulatedClock:
    """A time that passes when it is told to.

    Attributes:
        now: seconds.
    """

    def __init__(self) -> None:
        # Timers a device has set before go by the real clock.
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += seconds


class _TellingSession(Session):
    """A session that keeps the exceptions of device code for whoever drives the device, and goes on after them.

    Attributes:
        tell: is told each.
    """

    tell: Callable[[Exception], None]

    def failure(self, header: Header, exc: Exception, payload: bytes | bytearray) -> bytes | None:
        """See ``Session.failure``."""
        if not isinstance(exc, VfioUserError):
            self.tell(exc)
            exc = DeviceError(errno.EIO, f"the device failed: {exc!r}")
        return super().failure(header, exc, payload)


class DeviceUnderTest:
    """See the module.

    Args:
        device: the device; it can be used again afterwards.
        real_time: the device's clock is the real one, and waiting is waiting.
        observer: is shown every message.
        strict: exceptions of device code that are not DeviceError are raised to the caller; otherwise they are logged
            and the client gets EIO, as in production.
        timeout: seconds a command has, in the device's time.
        share_memory: the device maps the client's memory; without, its DMA goes by messages.

    Attributes:
        device: as given.
        client: drives it by commands.
        function: drives it as a PCI driver does; made when it is first asked for.

    Ownership: ``close`` it, or use it in a ``with`` statement. Work the device has put off stays with the device.

    Threading: one thread, for the device too.
    """

    def __init__(
        self,
        device: Device,
        *,
        real_time: bool = False,
        observer: Observer | None = None,
        strict: bool = True,
        timeout: float = 5.0,
        share_memory: bool = True,
    ) -> None:
        self.device = device
        self._clock = None if real_time else SimulatedClock()
        self._loop = EventLoop(self._clock or time.monotonic)
        self._strict = strict
        self._failure: Exception | None = None
        self._closed = False
        self._connected = True
        ours, theirs = memory_pair()
        device.attach(self._loop)
        self._loop.on_failure = self._keep_failure
        self._session: Session
        if strict:
            session = self._session = _TellingSession(device, theirs, peer="test", observer=observer)
            session.tell = self._keep_failure
        else:
            self._session = Session(device, theirs, peer="test", observer=observer)
        try:
            device.connected()
            connection = Connection(ours, timeout=timeout, pump=self._pump)
            self._session.on_wait = connection.serve
            self.client = VfioUserClient(connection, share_memory=share_memory)
        except BaseException:
            ours.close()
            self._end()
            raise

    @cached_property
    def function(self) -> PciFunction:
        """See the class.

        Raises:
            RemoteProtocolError: the device is no PCI function.
        """
        blocks = {}
        for index in range(6):
            region = self.device.region(index)
            if isinstance(region, RegisterBlock):
                blocks[index] = type(region)
        return PciFunction(self.client, register_blocks=blocks)

    # Time.

    @property
    def now(self) -> float:
        """The device's time, in seconds."""
        return self._loop.clock()

    def advance(self, seconds: float) -> None:
        """Lets that much time pass for the device, timers going off in their order."""
        self._wait(lambda: False, seconds)

    def settle(self) -> None:
        """Lets the device do what there is to do now, without time passing for it.

        Raises:
            AssertionError: it always finds more to do.
        """
        for _ in range(100_000):
            if not self._work():
                return
        raise AssertionError("the device does not come to rest: a callback of call_soon calls call_soon again, always")

    def wait_until(self, condition: Callable[[], bool], timeout: float = 5.0) -> None:
        """Lets time pass for the device until something is so.

        Raises:
            AssertionError: it is not so in time.
        """
        if not self._wait(condition, timeout):
            raise AssertionError(f"not so after {timeout:g} seconds: {getattr(condition, '__qualname__', condition)}")

    def _wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        left = timeout
        while not condition():
            if left <= 0:
                return False
            left -= self._pump(left)
        return True

    # The device's turns.

    def _pump(self, timeout: float) -> float:
        """Lets the device work; see ``Connection``."""
        if self._work():
            return self._pass_time(min(_TURN, timeout))
        if timeout <= 0:
            return 0.0
        due = self._loop.next_timeout()
        if self._clock is not None and due is not None:
            passed = self._pass_time(min(due, timeout))
            self._work()
            return max(passed, _TURN)
        if self._clock is None or self._loop.has_work:
            # Something outside will wake it, in real time.
            started = time.monotonic()
            self._loop.run_once(timeout)
            self._raise_failure()
            return self._pass_time(time.monotonic() - started)
        return self._pass_time(timeout)

    def _work(self) -> bool:
        """Lets the device do what there is to do now; False if there was nothing."""
        busy = self._loop.next_timeout() == 0.0
        if not busy:
            poll = select.poll()
            poll.register(self._loop.fileno(), select.POLLIN)
            busy = bool(poll.poll(0))
        if self._connected:
            try:
                busy |= self._session.receive()
            except ConnectionClosedError:
                busy = True
                self._end_session()
        if busy:  # otherwise a thread could bring work just now, and whoever waits would not be told that it was done
            self._loop.run_once(0.0)
            self._raise_failure()
        return busy

    def _pass_time(self, seconds: float) -> float:
        if self._clock is not None:
            self._clock.advance(seconds)
        return seconds

    def _keep_failure(self, exc: Exception) -> None:
        if self._strict and self._failure is None:
            self._failure = exc

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    # The end.

    def close(self) -> None:
        """Hangs up, and lets the device notice. Idempotent.

        Raises:
            Exception: what a strict device failed with and nobody was told.
        """
        if self._closed:
            return
        self._closed = True
        if "function" in self.__dict__:
            self.function.close()
        self.client.close()
        self._end()
        self._raise_failure()

    def _end(self) -> None:
        try:
            self._end_session()
        finally:
            self.device.detach()
            self._loop.close()

    def _end_session(self) -> None:
        if self._connected:
            self._connected = False
            self._session.close()
            self.device.disconnected()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

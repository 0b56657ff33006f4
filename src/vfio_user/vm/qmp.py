"""QEMU's machine protocol for code that is not asynchronous, over the package ``qemu.qmp`` (extra ``vm``)."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from vfio_user.errors import VmError, VmTimeoutError, VmUnavailableError
from vfio_user.vm.qemu import VfioUserDevice

if TYPE_CHECKING:
    from qemu.qmp import EventListener, QMPClient

__all__ = ["Qmp"]

_T = TypeVar("_T")

#: Seconds QEMU may take to answer a command.
_TIMEOUT = 30.0


class Qmp:
    """A connection to a running QEMU. Made by `VirtualMachine.qmp`.

    Events are kept from the beginning of the connection, so one that comes before it is waited for is not lost.

    Args:
        stream: a connection that `negotiate` has begun; owned from here on.

    Raises:
        VmUnavailableError: the package ``qemu.qmp`` is missing.
        VmError: QEMU does not answer.

    Threading: the thread that made it.
    """

    def __init__(self, stream: socket.socket) -> None:
        try:
            from qemu.qmp import EventListener, QMPClient
        except ImportError as error:
            raise VmUnavailableError("QMP needs the package qemu.qmp: pip install 'vfio-user[vm]'") from error
        # Every end of a machine is an error to it, and it logs each of them; ours are in exceptions.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        self._loop = asyncio.new_event_loop()
        self._client: QMPClient = QMPClient("vfio-user")
        self._client.await_greeting = self._client.negotiate = False  # that was done at the machine's start
        self._events: EventListener = EventListener()
        self._client.register_listener(self._events)
        self._passed_over: list[Mapping[str, Any]] = []
        try:
            self._do(self._client.connect(stream), "connect", _TIMEOUT)
        except BaseException:
            stream.close()
            self._loop.close()
            raise

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = _TIMEOUT) -> Any:
        """Executes a QMP command and returns what QEMU returns.

        Args:
            command: its name, ``query-status``.
            arguments: its arguments.
            timeout: seconds.

        Raises:
            VmError: QEMU refuses it, or is gone; the text is QEMU's.
            VmTimeoutError: no answer in time.
        """
        return self._do(self._client.execute(command, dict(arguments) if arguments else None), command, timeout)

    def wait_event(
        self, name: str, matches: Callable[[Mapping[str, Any]], bool] = lambda _: True, *, timeout: float = _TIMEOUT
    ) -> Mapping[str, Any]:
        """Waits for an event, or takes one that came earlier and was not taken.

        Args:
            name: of the event, ``DEVICE_DELETED``.
            matches: told the event's data; False passes it over.
            timeout: seconds.

        Returns:
            The event's data.

        Raises:
            VmTimeoutError: it did not come in time.
        """

        def is_it(event: Mapping[str, Any]) -> bool:
            return event["event"] == name and matches(event.get("data", {}))

        for event in self._passed_over:
            if is_it(event):
                self._passed_over.remove(event)
                return _data(event)

        async def next_one() -> Mapping[str, Any]:
            while True:
                event: Mapping[str, Any] = await self._events.get()
                if is_it(event):
                    return event
                self._passed_over.append(event)

        return _data(self._do(next_one(), f"event {name}", timeout))

    def plug(self, device: VfioUserDevice | Mapping[str, object]) -> None:
        """Plugs a device into the running machine; on q35 its bus must be a root port.

        Raises:
            VmError: QEMU refuses it.
        """
        self.execute("device_add", device.to_properties() if isinstance(device, VfioUserDevice) else device)

    def unplug(self, device_id: str, *, timeout: float = _TIMEOUT) -> None:
        """Asks the guest for a device, and waits until it has let go of it and QEMU has removed it.

        Raises:
            VmError: there is no such device.
            VmTimeoutError: the guest keeps it.
        """
        self.execute("device_del", {"id": device_id})
        self.wait_event("DEVICE_DELETED", lambda data: data.get("device") == device_id, timeout=timeout)

    def reset(self) -> None:
        """Presses the machine's reset button."""
        self.execute("system_reset")

    def close(self) -> None:
        """Ends the connection, whatever state it is in, without a word."""
        if self._loop.is_closed():
            return

        async def finish() -> None:
            with suppress(Exception):  # the machine may be gone, and there are many ways of being gone
                await asyncio.wait_for(self._client.disconnect(), 5.0)
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        try:
            self._loop.run_until_complete(finish())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    def _do(self, work: Coroutine[Any, Any, _T], what: str, timeout: float) -> _T:
        from qemu.qmp import QMPError

        async def limited() -> _T:
            return await asyncio.wait_for(work, timeout)

        try:
            return self._loop.run_until_complete(limited())
        except TimeoutError as error:
            raise VmTimeoutError(f"QMP {what}: nothing in {timeout:g} s") from error
        except (QMPError, OSError, EOFError) as error:
            raise VmError(f"QMP {what}: {error}") from error


def _data(event: Mapping[str, Any]) -> Mapping[str, Any]:
    data: Mapping[str, Any] = event.get("data", {})
    return data

"""Asynchronous events: what the controller tells the host without being asked, by completing a request kept for that.

An event is told once; after that its type is masked until the host has read the log page that goes with it. Events that
come meanwhile, or for which no request is there, wait. Two that say the same are one.

Spec: 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.hardware.nvme.features import AsyncEventConfiguration
from vfio_user.hardware.nvme.logs import AsyncEventType, LogPage, NoticeEvent, async_event
from vfio_user.hardware.nvme.status import Status

__all__ = ["REQUEST_LIMIT", "AsyncEvents"]

#: Requests the controller keeps at most.
REQUEST_LIMIT = 8

_ENABLE = {
    NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED: AsyncEventConfiguration.NAMESPACE_ATTRIBUTE,
    NoticeEvent.FIRMWARE_ACTIVATION_STARTING: AsyncEventConfiguration.FIRMWARE_ACTIVATION,
}


class AsyncEvents:
    """The events of a controller.

    Args:
        configuration: what the host wants to be told: the current value of the feature.
        completed: called with each request that was completed.

    Attributes:
        requests: commands that wait for an event, the oldest first.
        changed_namespaces: what the log of changed namespaces says.
    """

    def __init__(self, configuration: Callable[[], int], completed: Callable[[Command], None]) -> None:
        self._configuration = configuration
        self._completed = completed
        self.requests: list[Command] = []
        self._waiting: list[tuple[int, int, int]] = []
        self._masked: set[int] = set()
        self.changed_namespaces: set[int] = set()

    def request(self, command: Command) -> int | None:
        """The host wants to be told an event by this command.

        Raises:
            CommandFailed: there are as many already as there may be.
        """
        if len(self.requests) >= REQUEST_LIMIT:
            raise CommandFailed(Status.ASYNCHRONOUS_EVENT_REQUEST_LIMIT_EXCEEDED)
        command.queue.in_flight[command.entry.cid] = command
        self.requests.append(command)
        self._tell()
        return None

    def post(self, event_type: AsyncEventType, information: int, log_page: LogPage) -> None:
        """Something happened."""
        if event_type == AsyncEventType.NOTICE and not self._configuration() & _ENABLE[NoticeEvent(information)]:
            return
        event = (int(event_type), int(information), int(log_page))
        if event not in self._waiting:
            self._waiting.append(event)
        self._tell()

    def namespace_changed(self, nsid: int) -> None:
        """A namespace came, went, or is not what it was."""
        self.changed_namespaces.add(nsid)
        self.post(AsyncEventType.NOTICE, NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogPage.CHANGED_NAMESPACE_LIST)

    def log_was_read(self, log_page: int) -> None:
        """The host has read a log page, and did not ask to keep its events."""
        types = {LogPage.ERROR_INFORMATION: 0, LogPage.SMART: 1, LogPage.CHANGED_NAMESPACE_LIST: 2}
        event_type = 2 if log_page == LogPage.FIRMWARE_SLOT else types.get(LogPage(log_page))
        if event_type is not None:
            self._masked.discard(event_type)
            self._tell()

    def abort(self, command: Command) -> bool:
        """Takes a request back, if it is one."""
        if command not in self.requests:
            return False
        self.requests.remove(command)
        return True

    def reset(self) -> None:
        """The controller was reset: requests are gone, and what waited is not told."""
        self.requests.clear()
        self._waiting.clear()
        self._masked.clear()
        self.changed_namespaces.clear()

    def _tell(self) -> None:
        for event in list(self._waiting):
            if not self.requests:
                return
            event_type, information, log_page = event
            if event_type not in self._masked:
                self._waiting.remove(event)
                self._masked.add(event_type)
                command = self.requests.pop(0)
                command.queue.in_flight.pop(command.entry.cid, None)
                command.queue.complete(command.entry.cid, 0, async_event(event_type, information, log_page))
                self._completed(command)

    def save(self) -> dict[str, Any]:
        """What is saved; requests are with the commands in flight."""
        return {
            "waiting": [list(event) for event in self._waiting],
            "masked": sorted(self._masked),
            "changed": sorted(self.changed_namespaces),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Puts ``save`` back."""
        self.requests.clear()
        self._waiting = [(event[0], event[1], event[2]) for event in saved["waiting"]]
        self._masked = set(saved["masked"])
        self.changed_namespaces = set(saved["changed"])

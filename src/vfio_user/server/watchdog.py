"""Names device code that runs too long while a client waits.

QEMU gives up on an answer after five seconds, and on the device for good if the answer then comes: so an author wants
to know early, by name, and while it is still running. A thread looks at what the sessions' threads are doing twice a
second; the message path pays nothing for it. It exists while a client is connected to anything in this process.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

__all__ = ["CLIENT_TIMEOUT", "Watchdog", "watchdog"]

log = logging.getLogger("vfio_user.server")

#: Seconds after which QEMU gives up on an answer (its property ``x-msg-timeout``).
CLIENT_TIMEOUT = 5.0

_PACKAGE = str(Path(__file__).parent.parent) + "/"
_DEVICES = _PACKAGE + "devices/"


class _Watched(Protocol):
    """What of a session is looked at."""

    @property
    def peer(self) -> str: ...

    @property
    def turns(self) -> int:
        """Goes up with everything the session's thread begins."""

    @property
    def thread_id(self) -> int | None:
        """The thread it runs on."""


@dataclass
class _Sighting:
    """Device code that was seen running, and since when.

    Attributes:
        key: tells the same call from a later one: the session's turn, and the frame.
        name: the function, for people.
        since: when it was first seen.
        reported: a warning was logged.
    """

    key: tuple[int, int]
    name: str
    since: float
    reported: bool = False


class Watchdog:
    """See the module; there is one, ``watchdog``.

    Args:
        threshold: seconds after which a call is reported.

    Threading: any thread.
    """

    def __init__(self, threshold: float = 1.0) -> None:
        self.threshold = threshold
        self._lock = threading.Lock()
        self._sessions: dict[_Watched, _Sighting | None] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, session: _Watched) -> None:
        """Begins to look at a session."""
        with self._lock:
            self._sessions[session] = None
            if self._thread is None:
                self._wake.clear()
                self._thread = threading.Thread(target=self._run, name="vfio-user watchdog", daemon=True)
                self._thread.start()

    def remove(self, session: _Watched) -> None:
        """Stops looking at a session. The thread ends with the last."""
        with self._lock:
            self._sessions.pop(session, None)
            if not self._sessions:
                self._wake.set()

    def _run(self) -> None:
        while True:
            if self._wake.wait(self.threshold / 2):
                with self._lock:
                    if not self._sessions:
                        self._thread = None
                        return
                    self._wake.clear()
            self.look()

    def look(self) -> None:
        """Looks once at every session."""
        frames = sys._current_frames()
        now = time.monotonic()
        with self._lock:
            for session, before in self._sessions.items():
                frame = frames.get(session.thread_id or 0)
                self._sessions[session] = self._judge(session, before, _device_frame(frame), now)

    def _judge(
        self, session: _Watched, before: _Sighting | None, frame: FrameType | None, now: float
    ) -> _Sighting | None:
        key = (session.turns, id(frame))
        if before is not None and before.key == key:
            seconds = now - before.since
            if seconds >= self.threshold and not before.reported:
                before.reported = True
                log.warning(
                    "%s has been running for %.1f s while %s waits; QEMU gives up after %.0f s, for good. "
                    "Put long work off with call_soon or call_later, or give QEMU x-msg-timeout=MILLISECONDS",
                    before.name,
                    seconds,
                    session.peer,
                    CLIENT_TIMEOUT,
                )
            return before
        if before is not None and before.reported:
            log.warning("%s took %.1f s", before.name, now - before.since)
        return None if frame is None else _Sighting(key, _name(frame), now)


def _device_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost call of device code by this package: the handler, whatever it has called itself."""
    found = None
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_PACKAGE) and not file.startswith(_DEVICES):
            if found is not None:
                return found
        else:
            found = frame
        frame = frame.f_back
    return None


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_qualname} ({Path(code.co_filename).name}:{code.co_firstlineno})"


#: The one of this process.
watchdog = Watchdog()

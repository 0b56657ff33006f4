"""What the controller remembers when its process has ended: a small file, beside the images.

Kept are the namespaces - which part of the unallocated capacity is whose, formats, attachments, names -, the features
saved with Set Features, the firmware slots, the results of self-tests, and the counters of the SMART log. What the host
has changed by a command is in the file when that command completes; counters are as they were when it was last written,
at the latest when the controller was shut down or closed.

The file is written beside its place and renamed, so that there is always a whole one, and everything in it is checked
before it counts: a file that cannot be of this controller is an error with its reason, and nothing is guessed. A file
that another process has written since is left alone: after a live migration that process has the controller. Where a
state is loaded, the settings are those of the state, whatever the file says.

Not kept: blocks Write Uncorrectable has made unreadable, the entries of the error log, features that were only set.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_user.backends.open import file_of
from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.errors import InvalidAccess

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["Settings", "settings_path"]

log = logging.getLogger(__name__)

_KIND, _VERSION = "vfio-user nvme settings", 1
#: Bytes of the longest file that is read: far more than 256 namespaces take.
_MAX_SIZE = 4 << 20


def settings_path(option: str, unallocated: str) -> Path | None:
    """Where the settings are.

    Args:
        option: a path; ``none`` for nowhere; empty for beside the unallocated capacity, if that is a file.
        unallocated: what holds that capacity.
    """
    if option:
        return None if option == "none" else Path(option)
    file = file_of(unallocated) if unallocated else None
    return file.with_name(f"{file.name}.settings.json") if file is not None and file.is_file() else None


class Settings:
    """The settings of a controller.

    Args:
        controller: whose; its namespaces, features, firmware, health and self-test are there.
        path: the file; None to remember nothing.

    Attributes:
        are_kept: there is a file.
        are_ours: the controller was enabled, or a state loaded: this process has the disk, and no other.

    Raises:
        ValueError: the file is none of this controller.
        OSError: it cannot be read, or there is no such folder.
    """

    def __init__(self, controller: Nvme, path: Path | None) -> None:
        self._controller = controller
        self._path = path
        self._lock = threading.Lock()
        self.are_kept = path is not None
        self.are_ours = False
        #: What is in the file, as far as this process knows; None where that does not matter.
        self._written: bytes | None = b""
        self._current = b""
        if path is None:
            return
        if path.exists():
            self._load(path)
            controller.health.power_cycles += 1
        elif not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such folder for the settings", str(path.parent))

    def keep(self, command: Command, dw0: int = 0, failure: CommandFailed | None = None) -> int | None:
        """Ends a command that has changed what is kept, when the file says so.

        Args:
            command: the command, everything of which is done.
            dw0: its result.
            failure: what it fails with instead.

        Returns:
            Its result; None where it ends later.

        Raises:
            CommandFailed: ``failure``.
        """

        def finish(_: object) -> int:
            if failure is not None:
                raise failure
            return dw0

        if self._path is None:
            return finish(None)
        self.update()
        self._controller.jobs.start(command, self.write, finish, write=True, is_last=True)
        return None

    def adopt(self) -> None:
        """What the controller has is to be kept, whatever the file says: it is here that it runs. Session thread."""
        self.are_ours = True
        if self.are_kept:
            with self._lock:
                self._written = None
            self.update()
            self._controller.jobs.start(None, self.write_if_possible, lambda _: 0, is_last=True)

    def update(self) -> None:
        """What is to be written from now on is what the controller has now. Session thread."""
        controller = self._controller
        if self._path is None:
            return
        health = controller.health.save()
        del health["error_log"]
        document = {
            "kind": _KIND,
            "version": _VERSION,
            "namespaces": [
                {**row, "nguid": row["nguid"].hex(), "uncorrectable": []} for row in controller.namespaces.save()
            ],
            "features": controller.features.save()["saved"],
            "firmware": controller.firmware.save_slots(),
            "self_tests": [result.hex() for result in controller.self_test.save()["results"]],
            "health": health,
        }
        self._current = json.dumps(document, indent=1).encode()

    def write(self) -> None:
        """Writes what ``update`` has last said, if that is not there yet. Any thread.

        Raises:
            OSError: it cannot be written; the file is what it was. ESTALE: it is another process' by now.
        """
        path = self._path
        if path is None:
            return
        with self._lock:
            data = self._current
            if data == self._written:
                return
            if self._written is not None and (path.read_bytes() if path.exists() else b"") != self._written:
                raise OSError(
                    errno.ESTALE, "another process has written these settings, and this one has not", str(path)
                )
            new = path.with_name(f"{path.name}.new")
            with new.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._written = data

    def write_if_possible(self) -> None:
        """The same, where nobody can be told that it failed but by the log; if they are ours."""
        if not self.are_ours:
            return
        try:
            self.write()
        except OSError as exc:
            log.warning("nvme %s: what it was to remember is lost: %s", self._controller.serial, exc)

    def _load(self, path: Path) -> None:
        with path.open("rb") as file:
            data = file.read(_MAX_SIZE + 1)
        controller = self._controller
        try:
            if len(data) > _MAX_SIZE:
                raise ValueError(f"it has more than {_MAX_SIZE} bytes")
            document = json.loads(data)
            if not isinstance(document, dict) or document.get("kind") != _KIND:
                raise ValueError("it does not begin as one")
            if document.get("version") != _VERSION:
                raise ValueError(f"it is of version {document.get('version')}; this library reads {_VERSION}")
            rows = [{**row, "nguid": bytes.fromhex(row["nguid"])} for row in document["namespaces"]]
            controller.namespaces.restore(rows)
            controller.features.restore(document["features"])
            controller.firmware.restore(document["firmware"])
            controller.self_test.restore([bytes.fromhex(text) for text in document["self_tests"]])
            controller.health.restore(document["health"])
        except (ValueError, LookupError, TypeError, AttributeError, InvalidAccess, RecursionError) as exc:
            raise ValueError(
                f"{path} holds no settings this controller can have: {exc}. Give it the images it was written for, or "
                "another file (settings=); without one, what the host had made of the unallocated capacity is lost"
            ) from exc
        self._written = data

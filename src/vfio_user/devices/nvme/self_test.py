"""Device self-test: runs in the background, as time passes, and keeps its results. Spec: 5.8, 8.6."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.hardware.nvme.identify import BROADCAST_NSID
from vfio_user.hardware.nvme.logs import SelfTestLog, SelfTestResult
from vfio_user.hardware.nvme.opcodes import AdminOpcode
from vfio_user.hardware.nvme.status import Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["SelfTest"]

_SHORT, _EXTENDED, _ABORT = 1, 2, 0xF
_RESULTS = 20
#: How many steps a test has, and seconds of each.
_STEPS = {_SHORT: (4, 0.25), _EXTENDED: (20, 1.0)}
_GOOD, _ABORTED_BY_COMMAND, _ABORTED_BY_RESET, _UNUSED = 0, 1, 2, 0xF


class SelfTest:
    """The self-test of a controller.

    Args:
        controller: whose.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._code = 0
        self._nsid = 0
        self._step = 0
        self._timer: Any = None
        self._results: list[SelfTestResult] = []
        self._started = time.monotonic()

    def handlers(self) -> dict[int, Callable[[Command], int | None]]:
        """The admin commands handled here."""
        return {AdminOpcode.DEVICE_SELF_TEST: self._command}

    def _command(self, command: Command) -> int:
        code, nsid = command.entry.cdw10 & 0xF, command.entry.nsid
        if code == _ABORT:
            if self._code:
                self._end(_ABORTED_BY_COMMAND)
            return 0
        if code not in _STEPS:
            raise CommandFailed(Status.INVALID_FIELD, location=40)
        if nsid not in (0, BROADCAST_NSID):
            self._controller.namespaces.active(nsid)
        if self._code:
            raise CommandFailed(Status.DEVICE_SELF_TEST_IN_PROGRESS)
        self._code, self._nsid, self._step = code, nsid, 0
        self._put_off()
        return 0

    def _put_off(self) -> None:
        self._timer = self._controller.call_later(_STEPS[self._code][1], self._work)

    def _work(self) -> None:
        self._step += 1
        if self._step < _STEPS[self._code][0]:
            self._put_off()
        else:
            self._end(_GOOD)

    def _end(self, result: int) -> None:
        self._timer.cancel()
        hours = int(time.monotonic() - self._started) // 3600
        entry = SelfTestResult(status=self._code << 4 | result, power_on_hours=hours)
        if self._nsid:
            entry.valid, entry.nsid = 1, self._nsid
        self._results = [entry, *self._results][:_RESULTS]
        self._code = 0

    def reset(self) -> None:
        """The controller was reset: a short test is over; an extended one goes on."""
        if self._code == _SHORT:
            self._end(_ABORTED_BY_RESET)

    def log(self) -> SelfTestLog:
        """The self-test log."""
        unused = SelfTestResult(status=_UNUSED)
        results = [*self._results, *[unused] * (_RESULTS - len(self._results))]
        log = SelfTestLog(current_operation=self._code, results=b"".join(result.pack() for result in results))
        if self._code:
            log.current_completion = 100 * self._step // _STEPS[self._code][0]
        return log

    def restore(self, results: list[bytes]) -> None:
        """Takes the results of a process before this one."""
        self._results = [SelfTestResult.unpack(result) for result in results[:_RESULTS]]

    def save(self) -> dict[str, Any]:
        """What is saved."""
        results = [result.pack() for result in self._results]
        return {"code": self._code, "nsid": self._nsid, "step": self._step, "results": results}

    def load(self, saved: dict[str, Any]) -> None:
        """Puts ``save`` back; a test goes on where it was."""
        self._code, self._nsid, self._step = saved["code"], saved["nsid"], saved["step"]
        self._results = [SelfTestResult.unpack(result) for result in saved["results"]]
        if self._code:
            self._put_off()

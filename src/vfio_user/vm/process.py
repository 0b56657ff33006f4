"""Runs a program that must not outlive us, and waits for it without polling.

Linux can send a child a signal when its parent dies (PR_SET_PDEATHSIG), but by parent it means the *thread* that
started it. So one thread that lives as long as the interpreter starts all of them.

Spec: prctl(2) PR_SET_PDEATHSIG, pidfd_open(2).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import IO

__all__ = ["ChildProcess"]

_PR_SET_PDEATHSIG = 1


@cache
def _launcher() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="vfio-user-launcher")


def _die_with(parent: int) -> Callable[[], None]:
    """What the child does between fork and exec. Everything it uses exists before the fork: no import, no lookup."""
    # PyDLL keeps the interpreter's lock during the call: another thread may have held anything at the fork.
    prctl = ctypes.PyDLL(None, use_errno=True).prctl
    kill = int(signal.SIGKILL)

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, kill, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare


class ChildProcess:
    """A running program, killed by the kernel when this process ends, however it ends.

    Args:
        command: what to run.
        pass_fds: file descriptors it inherits; they stay open here.
        output: where its standard output goes; an open file, or what ``subprocess`` takes.
        errors: where its standard error goes; to ``output`` when left out.
        with_terminal: whether it gets our standard input and output instead.

    Raises:
        OSError: the program cannot be run.

    Ownership: `close` (or the end of the program and a `wait`) frees what it holds.
    Threading: any thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        output: IO[bytes] | int,
        errors: IO[bytes] | int | None = None,
        with_terminal: bool = False,
    ) -> None:
        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                pass_fds=pass_fds,
                stdin=None if with_terminal else subprocess.DEVNULL,
                stdout=None if with_terminal else output,
                stderr=output if errors is None else errors,
                start_new_session=not with_terminal,  # a Ctrl-C at our terminal is ours to handle
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - see _die_with for what makes it safe
            )

        self._process = _launcher().submit(start).result()
        self._pidfd = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def fileno(self) -> int:
        """Readable once it has ended (a pidfd)."""
        return self._pidfd

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for its end, at most ``timeout`` seconds; returns its exit status, or None when it still runs."""
        if self._process.poll() is None:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            if not poller.poll(None if timeout is None else max(0, timeout) * 1000):
                return None
        return self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal; one that has ended is left alone."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def close(self) -> None:
        """Kills it if it still runs, and frees what it held."""
        if self._pidfd >= 0:
            self.signal(signal.SIGKILL)
            self._process.wait()
            os.close(self._pidfd)
            self._pidfd = -1

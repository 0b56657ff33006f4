"""Runs a virtual machine: starts QEMU, follows its console, waits for its end, and takes it down."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import sys
import tempfile
import termios
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vfio_user.errors import StateError, VmLaunchError, VmTimeoutError, VmUnavailableError
from vfio_user.vm.channel import Channel
from vfio_user.vm.console import Console
from vfio_user.vm.process import ChildProcess
from vfio_user.vm.qemu import QemuCommand
from vfio_user.vm.qmp_handshake import negotiate

if TYPE_CHECKING:
    from vfio_user.vm.guest import Guest
    from vfio_user.vm.qmp import Qmp

__all__ = ["VirtualMachine"]

#: Seconds a QEMU that has closed its sockets may take to end.
_END_TIMEOUT = 5.0

_PANIC = re.compile(r"Kernel panic - not syncing: (.*)")
_PANIC_IS_OVER = "end Kernel panic"


class VirtualMachine:
    """A machine that runs, from `launch` to `stop`; best used with ``with``.

    Args:
        command: the machine. Its ``console``, ``channel`` and ``qmp`` are connected to this object, whatever they
            say, except that ``terminal`` leaves the console alone.
        directory: where ``console.log`` and ``qemu.log`` go; a temporary folder when left out, removed by `stop`.
        on_console_line: called with each line of the console, on the console's own thread.
        terminal: gives the console to our terminal, for a person: Ctrl-A x ends the machine, Ctrl-A c is QEMU's
            monitor. Nothing of it is kept.

    Ownership: `stop`, or leaving the ``with``, ends QEMU; so does the end of this process, however it comes.
    Threading: one thread at a time.
    """

    def __init__(
        self,
        command: QemuCommand,
        *,
        directory: Path | None = None,
        on_console_line: Callable[[str], None] | None = None,
        terminal: bool = False,
    ) -> None:
        self._command = command
        self._directory = directory
        self._owned_directory: Path | None = None
        self._on_console_line = on_console_line
        self._terminal = terminal
        self._terminal_state: list[Any] | None = None
        self._process: ChildProcess | None = None
        self._console: Console | None = None
        self._channel: Channel | None = None
        self._qmp_socket: socket.socket | None = None
        self._qmp: Qmp | None = None
        self._guest: Guest | None = None
        self._exit_code: int | None = None
        self._qemu_output = ""
        self._argv: list[str] = []
        #: The reason the guest's kernel gave for its panic; None as long as there was none.
        self.panic: str | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    def launch(self, timeout: float = 60.0) -> Self:
        """Starts QEMU, and returns once it has made all its devices and runs.

        Args:
            timeout: seconds QEMU may take for that; the guest's boot comes after.

        Raises:
            VmLaunchError: QEMU ended instead; carries its command, status and output.
            VmUnavailableError: there is no such program.
            VmTimeoutError: it did neither.
            StateError: it was launched before.
        """
        if self._process is not None:
            raise StateError("this machine was launched before: make another VirtualMachine")
        directory = self._prepare_directory()
        console_here, console_there = socket.socketpair()
        channel_here, channel_there = socket.socketpair()
        qmp_here, qmp_there = socket.socketpair()
        theirs = [console_there, channel_there, qmp_there]
        try:
            connected = replace(
                self._command,
                # Sockets handed over already connected: no path, no wait for a listener, no one else to connect.
                console="stdio,mux=on,signal=off" if self._terminal else f"socket,fd={console_there.fileno()}",
                channel=f"socket,fd={channel_there.fileno()}",
                qmp=f"socket,fd={qmp_there.fileno()}",
            )
            self._argv = connected.to_argv()
            self._save_terminal()
            with (directory / "qemu.log").open("wb") as log:
                self._process = ChildProcess(
                    self._argv,
                    pass_fds=[end.fileno() for end in theirs],
                    output=log,
                    with_terminal=self._terminal,
                )
        except OSError as error:
            for end in (console_here, channel_here, qmp_here):
                end.close()
            self._remove_directory()
            raise VmUnavailableError(f"{self._argv[0]} cannot be run: {error.strerror}") from error
        finally:
            for end in theirs:
                end.close()
        self._console = Console(console_here, directory / "console.log", self._console_line)
        self._channel = Channel(channel_here)
        self._qmp_socket = qmp_here
        try:
            self._wait_until_it_runs(qmp_here, timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the machine to end by itself: the guest powers off, or panics, or reboots where that ends it.

        Args:
            timeout: seconds; forever when None.

        Returns:
            QEMU's exit status, negative for a signal. What the guest has to say is in `guest_status` and `panic`.

        Raises:
            VmTimeoutError: it still runs after that time.
        """
        process = self._launched()
        if process.wait(timeout) is None:
            raise VmTimeoutError(f"the machine still runs after {timeout:g} s; its console ends:\n{self._tail()}")
        return self.stop()

    def shutdown(self, timeout: float = 10.0) -> int:
        """Asks the guest to power off, so that its drivers let go of their devices; ends it by `stop` if it does not.

        Args:
            timeout: seconds the guest has for it.

        Returns:
            QEMU's exit status.
        """
        process = self._launched()
        if self.is_running and self._guest is not None and self._guest.power_off_nowait():
            process.wait(timeout)
        return self.stop()

    def stop(self, timeout: float = 5.0) -> int:
        """Ends QEMU: at its own next opportunity, and by force when it takes none. Does nothing a second time.

        Args:
            timeout: seconds between asking (SIGTERM) and forcing (SIGKILL).

        Returns:
            QEMU's exit status, negative for a signal.
        """
        process = self._launched()
        if self._exit_code is not None:
            return self._exit_code
        if process.exit_code is None:
            process.signal(signal.SIGTERM)
            if process.wait(timeout) is None:
                process.signal(signal.SIGKILL)
        code = process.wait()
        assert code is not None
        self._exit_code = code
        self._release(process)
        return code

    def __enter__(self) -> Self:
        """Launches it unless that was done before."""
        return self if self._process is not None else self.launch()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops it."""
        self.stop()

    # -- what it is and does ---------------------------------------------------------------------------------------

    @property
    def argv(self) -> list[str]:
        """The command line QEMU was started with."""
        return list(self._argv)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._launched().pid

    def fileno(self) -> int:
        """Readable once QEMU has ended, for who waits for other things besides."""
        return self._launched().fileno()

    @property
    def is_running(self) -> bool:
        """Whether QEMU runs."""
        return self._process is not None and self._exit_code is None and self._process.exit_code is None

    @property
    def reboots(self) -> bool:
        """Whether a guest that reboots starts again, rather than ending the machine."""
        return self._command.reboot

    @property
    def guest_status(self) -> int | None:
        """The exit status of the guest's ``main`` program, once it has ended; see `build_initramfs`."""
        words = self._channel.last_mark(b"exit") if self._channel is not None else None
        return int(words) if words is not None and words.isdigit() else None

    @property
    def console(self) -> Console:
        """The console."""
        self._launched()
        assert self._console is not None
        return self._console

    @property
    def qemu_output(self) -> str:
        """What QEMU itself wrote: its complaints, and traces that go to standard error."""
        log = (self._owned_directory or self._directory or Path()) / "qemu.log"
        if self._exit_code is None and log.exists():
            return log.read_text(errors="replace")
        return self._qemu_output

    @property
    def guest(self) -> Guest:
        """The guest's shell, on the channel. Its commands wait by themselves until the guest obeys."""
        from vfio_user.vm.guest import Guest

        self._launched()
        if self._guest is None:
            assert self._channel is not None
            self._guest = Guest(self, self._channel, is_ready=self._command.incoming is not None)
        return self._guest

    @property
    def qmp(self) -> Qmp:
        """QEMU's machine protocol: plug, unplug, reset and ask. Connected by the first use.

        Raises:
            VmUnavailableError: the package ``qemu.qmp`` is missing.
        """
        from vfio_user.vm.qmp import Qmp

        self._launched()
        if self._qmp is None:
            if self._qmp_socket is None:
                raise StateError("the machine has ended: its QMP is gone with it")
            self._qmp = Qmp(self._qmp_socket)
            self._qmp_socket = None  # the connection owns it
        return self._qmp

    def wait_console(self, pattern: str | re.Pattern[str], timeout: float = 30.0) -> re.Match[str]:
        """Waits until the console holds a pattern.

        Args:
            pattern: a regular expression, searched in all the console has written since the start.
            timeout: seconds.

        Raises:
            VmTimeoutError: it did not come in time.
            VmLaunchError: the machine ended without it.
        """
        if found := self.console.wait_for(pattern, timeout):
            return found
        if not self.is_running:
            raise self.ended_early(f"before the console said {pattern!r}")
        raise VmTimeoutError(f"the console did not say {pattern!r} in {timeout:g} s; it ends:\n{self._tail()}")

    def ended_early(self, when: str) -> VmLaunchError:
        """The error for a machine that ended while something was still expected of it.

        Args:
            when: the end of the sentence "QEMU ended ...".
        """
        # Its sockets close a moment before it has ended: let it say its own status.
        self._launched().wait(_END_TIMEOUT)
        code = self.stop()
        reason = f": guest panic: {self.panic}" if self.panic else f" (status {code})"
        output = self.qemu_output.strip()
        said = f"\nQEMU said:\n{output}" if output else ""
        console = f"\nthe console ends:\n{self._tail()}" if self._tail() else ""
        return VmLaunchError(
            f"QEMU ended {when}{reason}{said}{console}\nthe command was:\n{self._printable_command()}",
            command=self._argv,
            exit_code=code,
            output=output,
        )

    # -- inside ----------------------------------------------------------------------------------------------------

    def _launched(self) -> ChildProcess:
        if self._process is None:
            raise StateError("the machine was not launched: call launch() first")
        return self._process

    def _wait_until_it_runs(self, qmp: socket.socket, timeout: float) -> None:
        try:
            runs = negotiate(qmp, timeout)
        except TimeoutError:
            command = self._printable_command()
            raise VmTimeoutError(f"QEMU did not start in {timeout:g} s. The command was:\n{command}") from None
        if not runs:
            raise self.ended_early("at its start")

    def _console_line(self, line: str) -> None:
        if self.panic is None and (found := _PANIC.search(line)):
            self.panic = found[1]
        if _PANIC_IS_OVER in line and self._command.reboot and self._process is not None:
            # The kernel was told to stay where it is (a reboot would start over), so this is the end of the run.
            self._process.signal(signal.SIGTERM)
        if self._on_console_line is not None:
            self._on_console_line(line)

    def _prepare_directory(self) -> Path:
        if self._directory is None:
            self._owned_directory = Path(tempfile.mkdtemp(prefix="vfio-user-vm-"))
            return self._owned_directory
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory

    def _remove_directory(self) -> None:
        if self._owned_directory is not None:
            shutil.rmtree(self._owned_directory, ignore_errors=True)

    def _release(self, process: ChildProcess) -> None:
        """Frees everything but what was learned."""
        assert self._console is not None
        assert self._channel is not None
        self._console.join(_END_TIMEOUT)  # QEMU is gone: what it wrote is on its way, and then the end
        self._console.close()
        self._channel.last_mark(b"exit")  # takes over what is still on its way
        self._channel.close()
        if self._qmp is not None:
            self._qmp.close()
        if self._qmp_socket is not None:
            self._qmp_socket.close()
            self._qmp_socket = None
        process.close()
        log = (self._owned_directory or self._directory or Path()) / "qemu.log"
        self._qemu_output = log.read_text(errors="replace") if log.exists() else ""
        self._restore_terminal()
        self._remove_directory()

    def _save_terminal(self) -> None:
        if self._terminal and sys.stdin.isatty():
            self._terminal_state = termios.tcgetattr(sys.stdin.fileno())

    def _restore_terminal(self) -> None:
        """QEMU makes the terminal raw, and a QEMU that is killed cannot undo it."""
        if self._terminal_state is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._terminal_state)

    def _tail(self) -> str:
        return self._console.tail() if self._console is not None else ""

    def _printable_command(self) -> str:
        return str(self._command)

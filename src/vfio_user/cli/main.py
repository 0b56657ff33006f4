"""Parses the command line, runs one command, and turns what it raises into a line and an exit status.

Exit status: 0 all is well; 1 the operation failed; 2 the command line asks for something that cannot be; the guest's
own for ``boot``. An exception that is not a VfioUserError is a bug, and shows its traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from vfio_user.cli.output import complain
from vfio_user.errors import AddressError, DeviceNotFoundError, DeviceOptionError, VfioUserError

__all__ = ["COMMANDS", "main"]

#: What each command does, in a line. Its module has the same name.
COMMANDS = {
    "serve": "serve a device on a socket, for QEMU",
    "boot": "boot Linux in QEMU with devices plugged in",
    "demo": "see a guest drive the devices that ship",
    "devices": "list the devices there are, and their options",
    "inspect": "say what the device behind a socket is",
    "migrate": "move a device from one server to another, with its state",
    "registers": "show a register map, or turn it into another form",
    "conform": "ask whether a server, or a client, keeps to the protocol",
    "doctor": "say what this machine has of what guests need",
    "kit": "fetch what guests are made of: QEMU, a kernel, busybox",
}

_EPILOG = """\
DEVICE is a name from 'vfio-user devices', or a class of your own:
path/to/file.py:Class, module:Class, or just the file when it has only one.

start here:  vfio-user demo"""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of 80 columns. Told so, argparse need not ask the terminal, with a module that ``serve`` would wait for."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=79)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status; usage errors leave by SystemExit(2), as argparse does it.

    Args:
        argv: arguments without the program's name; those of this process when left out.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # argparse has had several ideas of what "--" does to a subcommand; what follows it is the guest's alone.
    end = words.index("--") if "--" in words else len(words)
    parser = _parser(words[:end])
    arguments = parser.parse_args(words[:end])
    arguments.rest = words[end + 1 :]
    if arguments.command is None:
        parser.print_help()
        return 2
    if arguments.rest and arguments.command != "boot":
        parser.error(f"{arguments.command} runs no command in a guest: leave '--' and what follows out, or use boot")
    try:
        status: int = import_module(f"vfio_user.cli.{arguments.command}").run(arguments)
    except VfioUserError as exc:
        return _report(exc, verbose=getattr(arguments, "verbose", None))
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells have it
    except BrokenPipeError:
        # Whoever read our output had enough. What is still buffered would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser. Only the command asked for gets its arguments: the others' modules are not even imported."""
    parser = argparse.ArgumentParser(
        prog="vfio-user",
        description="PCI devices written in Python, for unmodified guests in QEMU.",
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        if name == chosen:
            import_module(f"vfio_user.cli.{name}").add_arguments(command)
    return parser


class _Version(argparse.Action):
    """Reads the version only when it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        from vfio_user._version import __version__

        print(f"vfio-user {__version__}")
        parser.exit()


def _report(exc: VfioUserError, *, verbose: int | None) -> int:
    """Says what went wrong, and returns the exit status.

    Args:
        exc: what was raised; its notes are the traceback of the user's own code.
        verbose: how often ``-v`` was given; None for a command that has no such option.
    """
    is_usage = isinstance(exc, AddressError | DeviceNotFoundError | DeviceOptionError)
    complain(str(exc))
    for note in getattr(exc, "__notes__", ()):
        print(note, file=sys.stderr)
    if verbose:
        import traceback

        traceback.print_exception(exc)
    elif verbose == 0 and exc.__cause__ is not None and not is_usage and not hasattr(exc, "__notes__"):
        complain("-v shows the traceback")
    return 2 if is_usage else 1

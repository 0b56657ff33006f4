"""``vfio-user serve DEVICE``: one device on one socket, in the foreground, until SIGTERM or Ctrl-C.

Spec: "Backend program conventions": no daemon, standard streams that may be redirected anywhere, SIGTERM honoured,
``--socket-path`` and ``--fd``. ``--address`` takes those two and all the others.
"""

from __future__ import annotations

import argparse
import os
import signal

from vfio_user.cli.common import (
    NamedDevice,
    add_verbose,
    make_named_device,
    new_observer,
    pci_id,
    runtime_folder,
    setting,
    start_log,
)
from vfio_user.server.server import Server, run_servers
from vfio_user.transport.address import Address, FdAddress, UnixAddress, exposure, parse_address

__all__ = ["add_arguments", "run"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_EPILOG = """\
examples:
  vfio-user serve edu --socket-path=/tmp/edu.sock
  vfio-user serve my_device.py --set queues=4 -v
  vfio-user serve edu --address=tcp:5555

With --fd the descriptor is a listening socket, or a connection: then the
server ends with it.

--address is one of unix:PATH, fd:N, systemd: or systemd:NAME (a socket unit's),
tcp:PORT (of this machine alone), tcp:HOST:PORT, vsock:PORT. QEMU connects to
UNIX sockets only.
"""

#: What is printed where, for a UNIX socket, QEMU's options are.
_ELSEWHERE = """\
QEMU cannot connect to it: its vfio-user-pci takes UNIX sockets only (--socket-path).
Clients that can drive it by messages alone: no mapped memory, no eventfds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``serve``."""
    parser.epilog = _EPILOG
    parser.add_argument("device", metavar="DEVICE", help="a name from 'vfio-user devices', or file.py:Class")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--socket-path",
        metavar="PATH",
        help="where to listen; when left out, a new name in $XDG_RUNTIME_DIR or /tmp",
    )
    where.add_argument("--fd", type=_descriptor, metavar="N", help="an inherited socket to use instead")
    where.add_argument("--address", metavar="ADDRESS", help="any of these, or another kind: see below")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        type=setting,
        default=[],
        metavar="NAME=VALUE",
        help="an option of the device; may be repeated",
    )
    parser.add_argument("--mode", type=_mode, metavar="OCTAL", help="permissions of the socket, as in 0660")
    parser.add_argument("--group", metavar="GROUP", help="group of the socket, by name or number")
    parser.add_argument(
        "--migration",
        choices=("v2", "v1", "off"),
        help="how clients may migrate the device: today's protocol (the default), that of 0.9.1, or not at all",
    )
    parser.add_argument("--json", action="store_true", help="say where it listens as one line of JSON")
    parser.add_argument(
        "--suggest",
        action="store_true",
        help="at the end, print the registers the driver missed, as declarations to paste",
    )
    add_verbose(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serves until told to stop."""
    named = make_named_device(arguments.device, dict(arguments.settings))
    start_log(arguments.verbose)
    # From here to run_servers a signal would leave the socket behind: it is held back until somebody cleans up.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        server = Server(
            named.device,
            _address(arguments, named.name),
            mode=arguments.mode,
            group=arguments.group,
            observer=new_observer(named, arguments.verbose),
            migration=arguments.migration,
        )
    except BaseException:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        raise
    named.device.call_soon(_announce, named, server.address, arguments.json)
    run_servers(server)
    if arguments.suggest:
        print(_suggestions(named))
    return 0


def _address(arguments: argparse.Namespace, name: str) -> Address:
    if arguments.fd is not None:
        return FdAddress(arguments.fd)
    if arguments.address is not None:
        return parse_address(arguments.address)
    path = arguments.socket_path or f"{runtime_folder()}/vfio-user-{name}-{os.getpid()}.sock"
    return parse_address(f"unix:{path}")


def _announce(named: NamedDevice, address: Address, as_json: bool) -> None:
    """Says where it listens, once it does and signals end it cleanly; whoever waits for that line may rely on it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        if as_json:
            _announce_json(named, address)
        else:
            _announce_text(named, address)
    except BrokenPipeError:
        pass  # nobody listens to us; the device is served all the same


def _announce_text(named: NamedDevice, address: Address) -> None:
    if isinstance(address, FdAddress):
        print(f"{named.identity} on descriptor {address.fd}", flush=True)
    elif isinstance(address, UnixAddress):
        print(f"{named.identity} listening on {address.path}", flush=True)
        print(_qemu_hint(address), flush=True)
    else:
        print(f"{named.identity} listening on {address}", flush=True)
        if warning := exposure(address):
            print(warning, flush=True)
        print(_ELSEWHERE, flush=True)


def _qemu_hint(address: UnixAddress) -> str:
    from vfio_user.vm.qemu import qemu_arguments_for, shell_lines
    from vfio_user.vm.qemu_version import MINIMUM_VERSION

    least = f"{MINIMUM_VERSION.major}.{MINIMUM_VERSION.minor}"
    lines = shell_lines(qemu_arguments_for(address.path.absolute()))
    return f"plug it into QEMU >= {least} with (size: what -m says):\n  {lines}"


def _announce_json(named: NamedDevice, address: Address) -> None:
    import json

    from vfio_user.vm.qemu import qemu_arguments_for

    about: dict[str, object] = {"device": named.name, "pci_id": pci_id(named.device) or None, "pid": os.getpid()}
    if isinstance(address, FdAddress):
        about["fd"] = address.fd
    elif isinstance(address, UnixAddress):
        path = address.path.absolute()
        about.update(socket_path=str(path), qemu_arguments=qemu_arguments_for(path))
        address = UnixAddress(path)
    about["address"] = str(address)
    print(json.dumps(about), flush=True)


def _suggestions(named: NamedDevice) -> str:
    """The accesses no register took, of every register block a client can reach."""
    from vfio_user.trace.names import region_name, register_blocks

    reports = [
        f"{region_name(index)} {block.unmodelled.report()}"
        for index in range(named.device.num_regions)
        for block in register_blocks(named.device.region(index))
        if len(block.unmodelled)
    ]
    return "\n".join(reports) or f"{named.name}: every access met a register"


def _descriptor(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no descriptor: it must be a number, as in 3")
    return int(text)


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is no mode: it must be an octal number up to 777, as in 0660")
    return mode

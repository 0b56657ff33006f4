"""Listens for clients, serves each a device, and says which rules it kept."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from vfio_user.errors import VfioUserError
from vfio_user.server.device import Device
from vfio_user.testing.conformance.check import select as chosen
from vfio_user.testing.conformance.client.observation import Observation
from vfio_user.testing.conformance.client.rogue import RogueServer
from vfio_user.testing.conformance.client.rules import RULES
from vfio_user.testing.conformance.client.script import Script
from vfio_user.testing.conformance.endpoint import DeviceEndpoint, SocketWire
from vfio_user.testing.conformance.report import Report
from vfio_user.transport.address import parse_address
from vfio_user.transport.listener import listen
from vfio_user.transport.stream_socket import describe_peer

__all__ = ["observe_clients"]


def observe_clients(
    address: str | None,
    device: Device,
    *,
    script: Path | None = None,
    clients: int = 1,
    only: Iterable[str] = (),
    announce: Callable[[str], None] = lambda _address: None,
) -> Report:
    """Observes so many clients, one after another, and reports on all of them together.

    Ctrl-C ends it early, with what was seen by then; where no client came, it is raised on.

    Args:
        address: where to listen, any form of ``transport.address``; None for a socket in the temporary folder.
        device: what they drive; it can be used again afterwards.
        script: a file that says how to misbehave; see ``script``. Each client meets it from its beginning.
        clients: how many.
        only: names of rules, parts of names, or patterns; all without.
        announce: told where it listens.

    Raises:
        AddressError, ConnectError: it cannot listen there.
        ScriptError: the script means nothing.
        VfioUserError: the script cannot be read.
    """
    try:
        lines = script.read_text().splitlines() if script is not None else []
    except (OSError, UnicodeDecodeError) as exc:
        raise VfioUserError(f"the script {script} cannot be read: {exc}") from exc
    Script.parse(lines)
    where = address or f"unix:/tmp/vfio-user-conform-{os.getpid()}.sock"
    listener = listen(parse_address(where))
    endpoint = DeviceEndpoint(device)
    observation = Observation(device)
    names = []
    try:
        announce(str(listener.address))
        for _ in range(clients):
            if listener.fileno() >= 0:
                select.select([listener.fileno()], [], [])
            channel = listener.accept()
            if not isinstance(channel, socket.socket):
                continue
            names.append(describe_peer(channel))
            observation.begin()
            RogueServer(SocketWire(channel), endpoint.connect(0.0), observation, Script.parse(lines)).run()
    except KeyboardInterrupt:
        if not names:
            raise
    finally:
        endpoint.close()
        listener.close()
    return Report(", ".join(dict.fromkeys(names)) or "no client", observation.results(chosen(RULES, only)))

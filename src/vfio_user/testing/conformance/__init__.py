"""The conformance kit: does a peer keep to the protocol? Rule by rule, for any server and any client.

A *server* is asked, with raw messages, right and wrong ones, everything that can be observed from a connection::

    report = check_server("/tmp/edu.sock")  # any vfio-user server: ours, libvfio-user, SPDK...
    report = check_device(Edu())  # a device of this process, without a socket
    assert report.failures == []

A *client* is observed by a server that does as it is told: late, wrong, silent, gone (``client``).

==============  ===================================================================================
``check``       what a check is, and what can become of it
``endpoint``    where the server is: any socket, or a device of this process
``peer``        the raw end of a connection, which writes any message
``bench``       what a check works with
``facts``       what the server says of itself, so that checks know what to ask about
``server``      every check of a server, a module for each command
``client``      the server that observes a client, and its misbehaviours
``runner``      asks check by check
``report``      JSON, and JUnit's XML
==============  ===================================================================================

To add a check of a server, write a function beside its family's, ``@FAMILY.check(name, expected)``; and name a server
that breaks its rule in ``tests/testing/conformance/mutations.py``: a test demands both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from vfio_user.server.device import Device
from vfio_user.testing.conformance.check import Check, DoesNotApply, Outcome, Result, Risk, Unmet, select
from vfio_user.testing.conformance.endpoint import DeviceEndpoint, SocketEndpoint
from vfio_user.testing.conformance.report import Report
from vfio_user.testing.conformance.runner import ask_server
from vfio_user.testing.conformance.server import CHECKS
from vfio_user.transport.address import Address

__all__ = [
    "CHECKS",
    "Check",
    "DoesNotApply",
    "Outcome",
    "Report",
    "Result",
    "Risk",
    "Unmet",
    "check_device",
    "check_server",
    "select",
]


def check_server(
    address: str | Address, *, only: Iterable[str] = (), allow: Collection[Risk] = (), timeout: float = 2.0
) -> Report:
    """Asks a server that listens somewhere.

    Args:
        address: any form of ``transport.address``.
        only: names of checks, parts of names, or patterns; all without.
        allow: leave for what could hurt a server in use.
        timeout: seconds a reply may take.

    Raises:
        AddressError: the address means nothing.
        ConnectError: nobody listens there.
        Unmet: the server agrees to no version, so it cannot be asked anything.
    """
    endpoint = SocketEndpoint(address)
    checks = select(CHECKS, only)
    return Report(endpoint.name, list(ask_server(endpoint, checks, allow=allow, timeout=timeout)))


def check_device(device: Device, *, only: Iterable[str] = (), allow: Collection[Risk] = tuple(Risk)) -> Report:
    """Asks a device of this process, of which everything may be asked.

    The device works on this thread, when it is spoken to; what it has put off is done, timers go by the real clock.

    Args:
        device: which; it can be used again afterwards.
        only: names of checks, parts of names, or patterns; all without.
        allow: leave for what resets it, writes its registers, or migrates it.
    """
    endpoint = DeviceEndpoint(device)
    try:
        return Report(endpoint.name, list(ask_server(endpoint, select(CHECKS, only), allow=allow, timeout=0.0)))
    finally:
        endpoint.close()

"""VERSION from the client's side: what is proposed, what comes of it, and the twin socket that may come with it.

The twin socket is a second connection, over which the server's commands come. A server that takes up the proposal sends
one end of a socket pair with its reply, and says in ``fd_index`` which of the reply's descriptors it is.

Spec: "VFIO_USER_VERSION", capability ``twin_socket``.
"""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import replace
from typing import NamedTuple

from vfio_user.client.pending import Reply
from vfio_user.errors import VersionError
from vfio_user.protocol.framing import close_fds
from vfio_user.protocol.version import Agreement, Capabilities, VersionMessage, conclude, propose
from vfio_user.transport.channel import Channel, carries_fds

__all__ = ["MAX_VERSION_REPLY", "OFFER", "Negotiated", "proposal", "settle"]

#: What a client here can take. 16 descriptors a message is what QEMU says.
OFFER = Capabilities(max_msg_fds=16, write_multiple=True)

#: A VERSION reply, in bytes; longer than any a peer sends, and no room for a flood.
MAX_VERSION_REPLY = 4096


class Negotiated(NamedTuple):
    """What came of it.

    Attributes:
        agreement: what both can do.
        server_version: the server's side of that in its own words, those nobody knows included.
        twin: the twin socket; None without.
    """

    agreement: Agreement
    server_version: VersionMessage
    twin: socket.socket | None


def proposal(offer: Capabilities, channel: Channel, *, minor: int = 0) -> VersionMessage:
    """The request: what can be had of an offer over that channel.

    Args:
        offer: what this client can take.
        channel: where it goes.
        minor: the newest minor version to propose.
    """
    if not carries_fds(channel):
        offer = replace(offer, max_msg_fds=0, twin_socket=False)
    return propose(offer, minor=minor)


def settle(request: VersionMessage, reply: Reply) -> Negotiated:
    """What comes of the server's reply.

    Raises:
        VersionError: its version or capabilities cannot be used; or it says it has a twin socket, and sent none, or
            something else.

    Ownership: the reply's descriptors are this function's; the twin socket is the caller's.
    """
    try:
        server_version = VersionMessage.decode(reply.payload)
        agreement = conclude(request, server_version)
        return Negotiated(agreement, server_version, _twin(server_version, agreement, reply.fds))
    finally:
        close_fds(reply.fds)


def _twin(reply: VersionMessage, agreement: Agreement, fds: list[int]) -> socket.socket | None:
    if not agreement.server.twin_socket:
        return None
    index = (reply.capabilities or {})["twin_socket"].get("fd_index")
    if type(index) is not int or not 0 <= index < len(fds):
        raise VersionError(
            f"VERSION: the twin socket is said to be descriptor {index!r} of the {len(fds)} that came with the reply"
        )
    if not stat.S_ISSOCK(os.fstat(fds[index]).st_mode):
        raise VersionError("VERSION: the descriptor that came for the twin socket is no socket")
    channel = socket.socket(fileno=fds[index])
    del fds[index]
    if (channel.family, channel.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        channel.close()
        raise VersionError(f"VERSION: the twin socket is of {channel.family.name}; it must be a UNIX stream socket")
    return channel

"""VERSION: the first message of a connection, and what the two ends agree on with it.

The payload is a major and a minor number and, optionally, a NUL-terminated JSON text ``{"capabilities": {...}}``.
``VersionMessage`` is that text and nothing more; ``Capabilities`` is one side's proposal, validated. A client makes its
request with ``propose`` and judges the reply with ``conclude``; in between, ``answer`` makes a server's reply.

Spec: "VFIO_USER_VERSION". Known peers: QEMU sends 0.0 and refuses a reply of another minor or longer than its own
request; SPDK sends no JSON; the rust client cannot do without JSON in the reply; libvfio-user offers 0.2.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field, replace
from reprlib import repr as short_repr
from typing import Any

from vfio_user.errors import VersionError
from vfio_user.protocol.constants import (
    DEFAULT_MAX_DATA_XFER_SIZE,
    DEFAULT_MAX_DMA_MAPS,
    DEFAULT_MAX_MSG_FDS,
    DEFAULT_PAGE_SIZES,
)
from vfio_user.protocol.payload import Bytes

__all__ = ["MAJOR", "MAX_MINOR", "Agreement", "Capabilities", "VersionMessage", "answer", "conclude", "propose"]

#: The only major version there is.
MAJOR = 0

#: The newest minor version any peer speaks (libvfio-user). Nothing any of them does depends on it.
MAX_MINOR = 2

#: More descriptors than any message can carry; libvfio-user refuses more, so do we.
_MAX_MSG_FDS_LIMIT = 1024

#: The largest transfer, in bytes, and the most mappings QEMU lets a server announce. A server that says more cannot be
#: used with it, so a client of this package does not get used to it, either.
_MAX_DATA_XFER_SIZE_LIMIT = 64 << 20
_MAX_DMA_MAPS_LIMIT = 65535

_NUMBERS = struct.Struct("<HH")


@dataclass(frozen=True, slots=True)
class VersionMessage:
    """A VERSION payload, request or reply.

    Attributes:
        major: of the protocol.
        minor: of the protocol.
        capabilities: the JSON object under ``capabilities``; None when the payload has no JSON, which means every
            default. Anything JSON can say may be in there: ``Capabilities.parse`` judges it.
        payload_size: bytes of the payload this was decoded from; None for a message made here.
    """

    major: int
    minor: int
    capabilities: dict[str, Any] | None
    payload_size: int | None = field(default=None, compare=False)

    @classmethod
    def decode(cls, payload: Bytes) -> VersionMessage:
        """Reads a payload.

        Raises:
            VersionError: it is under 4 bytes; its text does not end in NUL, is not JSON in UTF-8, is not an object, or
                its ``capabilities`` is not an object.
        """
        if len(payload) < _NUMBERS.size:
            raise VersionError(f"VERSION: a payload of {len(payload)} bytes is shorter than the 4 it needs")
        major, minor = _NUMBERS.unpack_from(payload)
        text = bytes(payload[_NUMBERS.size :])
        if not text:
            return cls(major, minor, None, len(payload))
        if not text.endswith(b"\0"):
            raise VersionError("VERSION: the JSON text does not end in a NUL byte")
        try:
            document = json.loads(text[:-1].decode())
        except (ValueError, RecursionError) as exc:
            raise VersionError(f"VERSION: the text is not JSON: {exc}") from exc
        if not isinstance(document, dict):
            raise VersionError(f"VERSION: the JSON text is a {type(document).__name__}, not an object")
        capabilities = document.get("capabilities", {})
        if not isinstance(capabilities, dict):
            raise VersionError(f'VERSION: "capabilities" is a {type(capabilities).__name__}, not an object')
        return cls(major, minor, capabilities, len(payload))

    def encode(self) -> bytes:
        """Returns the payload."""
        numbers = _NUMBERS.pack(self.major, self.minor)
        if self.capabilities is None:
            return numbers
        # No blanks: QEMU reads a reply into a buffer as long as its own request.
        text = json.dumps({"capabilities": self.capabilities}, separators=(",", ":"))
        return numbers + text.encode() + b"\0"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one end can take, defaults filled in.

    Attributes:
        max_msg_fds: descriptors in one message.
        max_data_xfer_size: bytes of data in one region access or DMA message.
        max_dma_maps: mappings at once.
        pgsizes: page sizes a mapping may be made of, OR-ed.
        write_multiple: understands REGION_WRITE_MULTI.
        twin_socket: can use a second socket for the server's commands.
        migration_pgsize: page size of the first migration protocol's dirty bitmap; None for a peer without it.
    """

    max_msg_fds: int = DEFAULT_MAX_MSG_FDS
    max_data_xfer_size: int = DEFAULT_MAX_DATA_XFER_SIZE
    max_dma_maps: int = DEFAULT_MAX_DMA_MAPS
    pgsizes: int = DEFAULT_PAGE_SIZES
    write_multiple: bool = False
    twin_socket: bool = False
    migration_pgsize: int | None = None

    @classmethod
    def parse(cls, proposed: dict[str, Any] | None) -> Capabilities:
        """Validates a peer's capabilities; unknown keys are ignored, None is every default.

        Raises:
            VersionError: a known key has a value of the wrong type or out of range. (``true`` is no number.)
        """
        found = proposed or {}
        max_xfer = _integer(found, "max_data_xfer_size", DEFAULT_MAX_DATA_XFER_SIZE, None, None)
        migration = _object(found, "migration")
        twin = _object(found, "twin_socket")
        return cls(
            max_msg_fds=_integer(found, "max_msg_fds", DEFAULT_MAX_MSG_FDS, 0, _MAX_MSG_FDS_LIMIT),
            # Nothing could be transferred with zero or less, so it is taken for "not said".
            max_data_xfer_size=max_xfer if max_xfer > 0 else DEFAULT_MAX_DATA_XFER_SIZE,
            max_dma_maps=_integer(found, "max_dma_maps", DEFAULT_MAX_DMA_MAPS, 0, None),
            pgsizes=_integer(found, "pgsizes", DEFAULT_PAGE_SIZES, 0, None),
            write_multiple=_boolean(found, "write_multiple"),
            twin_socket=twin is not None and _boolean(twin, "supported", "twin_socket.supported"),
            migration_pgsize=None
            if migration is None
            else _integer(migration, "pgsize", DEFAULT_PAGE_SIZES, 1, None, "migration.pgsize"),
        )


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a server and a client settled on.

    Attributes:
        minor: the version is 0.``minor``.
        client: what the client can take.
        server: what the server can take, of what the reply told the client.
    """

    minor: int
    client: Capabilities
    server: Capabilities


def propose(offer: Capabilities, *, minor: int = 0) -> VersionMessage:
    """A client's request.

    The two limits every server understands always go, and what differs from its default. (The rust server cannot do
    without JSON; libvfio-user refuses a ``migration`` it does not like, so that is never said.)

    Args:
        offer: what this client can take.
        minor: the newest minor version it speaks.
    """
    capabilities: dict[str, Any] = {
        "max_msg_fds": offer.max_msg_fds,
        "max_data_xfer_size": offer.max_data_xfer_size,
    }
    if offer.max_dma_maps != DEFAULT_MAX_DMA_MAPS:
        capabilities["max_dma_maps"] = offer.max_dma_maps
    if offer.pgsizes != DEFAULT_PAGE_SIZES:
        capabilities["pgsizes"] = offer.pgsizes
    if offer.write_multiple:
        capabilities["write_multiple"] = True
    if offer.twin_socket:
        capabilities["twin_socket"] = {"supported": True}
    return VersionMessage(MAJOR, minor, capabilities)


def conclude(request: VersionMessage, reply: VersionMessage) -> Agreement:
    """What a client makes of a server's reply.

    Keys nobody asked for are tolerated, since libvfio-user sends some, and have no effect.

    Raises:
        VersionError: the version is not one the client proposed, a capability is malformed, or beyond what QEMU takes:
            transfers over 64 MiB, more than 65535 mappings, pages under 4096 bytes.
    """
    if reply.major != MAJOR or reply.minor > request.minor:
        raise VersionError(
            f"VERSION: the server answers {request.major}.{request.minor} with {reply.major}.{reply.minor}; "
            f"it must be 0.0 to 0.{request.minor}"
        )
    server = Capabilities.parse(reply.capabilities)
    if server.max_data_xfer_size > _MAX_DATA_XFER_SIZE_LIMIT:
        raise VersionError(
            f"VERSION: the server's max_data_xfer_size is {server.max_data_xfer_size}; "
            f"at most {_MAX_DATA_XFER_SIZE_LIMIT} can be used"
        )
    if server.max_dma_maps > _MAX_DMA_MAPS_LIMIT:
        raise VersionError(
            f"VERSION: the server's max_dma_maps is {server.max_dma_maps}; at most {_MAX_DMA_MAPS_LIMIT} can be used"
        )
    if server.pgsizes == 0 or server.pgsizes % DEFAULT_PAGE_SIZES:
        raise VersionError(
            f"VERSION: the server's pgsizes are {server.pgsizes:#x}; each must be at least {DEFAULT_PAGE_SIZES}"
        )
    client = Capabilities.parse(request.capabilities)
    agreed = replace(
        server,
        write_multiple=server.write_multiple and client.write_multiple,
        twin_socket=server.twin_socket and client.twin_socket,
    )
    return Agreement(reply.minor, client, agreed)


def answer(request: VersionMessage, offer: Capabilities) -> tuple[VersionMessage, Agreement]:
    """A server's reply to a client's VERSION.

    The two transfer limits always go back, as every client understands them; anything else only if the client named it,
    or QEMU would warn of "spurious capabilities". The reply is kept within the length of the request, since that is how
    long QEMU's receive buffer for it is: a limit that only repeats the default is left out where it would not fit.

    Raises:
        VersionError: the major version is not 0, or a capability is malformed.
    """
    if request.major != MAJOR:
        raise VersionError(f"VERSION: the client speaks version {request.major}.{request.minor}; only 0.x exists")
    client = Capabilities.parse(request.capabilities)
    proposed = request.capabilities or {}
    capabilities: dict[str, Any] = {
        "max_msg_fds": offer.max_msg_fds,
        "max_data_xfer_size": offer.max_data_xfer_size,
    }
    if "pgsizes" in proposed:
        capabilities["pgsizes"] = offer.pgsizes
    if "max_dma_maps" in proposed:
        capabilities["max_dma_maps"] = offer.max_dma_maps
    if client.write_multiple and offer.write_multiple:
        capabilities["write_multiple"] = True
    if client.twin_socket and offer.twin_socket and client.max_msg_fds and offer.max_msg_fds:
        # The descriptor goes with the reply. QEMU never proposes it, and refuses a reply with one.
        capabilities["twin_socket"] = {"supported": True, "fd_index": 0}
    pgsize = None
    if client.migration_pgsize is not None and offer.migration_pgsize is not None:
        # 0.9.1: the smaller one is used by both.
        pgsize = min(client.migration_pgsize, offer.migration_pgsize)
        capabilities["migration"] = {"pgsize": pgsize}
    reply = VersionMessage(MAJOR, min(request.minor, MAX_MINOR), capabilities)
    if request.capabilities is not None and offer.max_data_xfer_size == DEFAULT_MAX_DATA_XFER_SIZE:
        # The size that came, not that of the request encoded anew: a text nested just deep enough to be decoded is too
        # deep to be encoded from here.
        room = len(request.encode()) if request.payload_size is None else request.payload_size
        if len(reply.encode()) > room:
            del capabilities["max_data_xfer_size"]
    agreed = replace(
        offer,
        write_multiple="write_multiple" in capabilities,
        twin_socket="twin_socket" in capabilities,
        migration_pgsize=pgsize,
    )
    return reply, Agreement(reply.minor, client, agreed)


def _integer(
    found: dict[str, Any], key: str, default: int, lowest: int | None, highest: int | None, name: str | None = None
) -> int:
    """An integer member, within bounds."""
    value = found.get(key, default)
    if type(value) is not int:
        raise VersionError(f"VERSION: {name or key} is {short_repr(value)}; it must be an integer")
    if (lowest is not None and value < lowest) or (highest is not None and value > highest):
        bounds = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
        raise VersionError(f"VERSION: {name or key} is {short_repr(value)}; it must be {bounds}")
    return value


def _boolean(found: dict[str, Any], key: str, name: str | None = None) -> bool:
    """A boolean member; absent is false."""
    value = found.get(key, False)
    if type(value) is not bool:
        raise VersionError(f"VERSION: {name or key} is {short_repr(value)}; it must be true or false")
    return value


def _object(found: dict[str, Any], key: str) -> dict[str, Any] | None:
    """An object member; absent is None."""
    value = found.get(key)
    if key in found and not isinstance(value, dict):
        raise VersionError(f"VERSION: {key} is {short_repr(value)}; it must be an object")
    return value

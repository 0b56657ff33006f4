"""What moves bytes and file descriptors between two processes, or between two ends in one.

``address`` reads the text that names an end point, ``listener`` makes connections out of it, ``channel`` is what a
connection looks like to whoever uses it, and ``memory`` is one without a kernel in between. Nothing here looks into a
message. OS errors become errors of this package here, and nowhere above.
"""

from vfio_user.transport.address import Address, FdAddress, UnixAddress, parse_address
from vfio_user.transport.channel import (
    ANCILLARY_SIZE,
    RECEIVE_FLAGS,
    SEND_FLAGS,
    Channel,
    ancillary_fds,
    send_some,
)
from vfio_user.transport.listener import FdListener, Listener, UnixListener, listen
from vfio_user.transport.memory import MemoryChannel, memory_pair

__all__ = [
    "ANCILLARY_SIZE",
    "RECEIVE_FLAGS",
    "SEND_FLAGS",
    "Address",
    "Channel",
    "FdAddress",
    "FdListener",
    "Listener",
    "MemoryChannel",
    "UnixAddress",
    "UnixListener",
    "ancillary_fds",
    "listen",
    "memory_pair",
    "parse_address",
    "send_some",
]

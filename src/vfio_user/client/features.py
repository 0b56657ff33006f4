"""DEVICE_FEATURE and the commands a device's state moves by, as a client sends them.

``DeviceFeatures`` is the commands and no more: what they are for is ``client.migration``. A server without them answers
EINVAL, which is CommandError here. (rust-vmm's server does not read past a command it does not know: after one of
these, its connection is of no more use.)

Spec: "VFIO_USER_DEVICE_FEATURE", "VFIO_USER_MIG_DATA_READ", "VFIO_USER_MIG_DATA_WRITE".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user.errors import CommandError, RemoteProtocolError
from vfio_user.protocol.constants import Command
from vfio_user.protocol.feature import DeviceFeature, Feature, FeatureFlags
from vfio_user.protocol.migration import MigDataRead, MigDataReadReply, MigDataWrite

if TYPE_CHECKING:
    from vfio_user.client.connection import Connection

__all__ = ["DeviceFeatures"]

#: Bytes MIG_DATA_READ and MIG_DATA_WRITE have before the data.
_DATA_HEAD = 8


class DeviceFeatures:
    """The commands, over one connection.

    Every method raises CommandError (the server refused), CommandTimeoutError, RemoteProtocolError (its reply makes no
    sense) or ConnectionClosedError.

    Threading: as the connection.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def has(self, feature: int, operation: FeatureFlags | None = None) -> bool:
        """Asks whether there is such a feature (PROBE).

        Args:
            feature: a ``Feature``, or another number.
            operation: what it is to be there for, ``GET``, ``SET`` or both; None for any.
        """
        flags = FeatureFlags.PROBE if operation is None else FeatureFlags.PROBE | operation
        try:
            self._exchange(feature, flags, b"", 0)
        except CommandError:
            return False
        return True

    def get(self, feature: int, *, size: int, data: bytes = b"") -> bytes:
        """Gets a feature's data.

        Args:
            feature: a ``Feature``, or another number.
            size: bytes the data has at most.
            data: what the question itself needs.
        """
        return self._exchange(feature, FeatureFlags.GET, data, size)

    def set(self, feature: int, data: bytes = b"") -> None:
        """Sets a feature."""
        self._exchange(feature, FeatureFlags.SET, data, len(data))

    def _exchange(self, feature: int, operation: FeatureFlags, data: bytes, room: int) -> bytes:
        what = f"DEVICE_FEATURE {operation.name} of {_feature_name(feature)}"
        argsz = DeviceFeature.SIZE + max(room, len(data))
        reply = self._connection.request(
            Command.DEVICE_FEATURE,
            DeviceFeature(feature, operation, argsz).encode() + data,
            max_payload=argsz,
            request=what,
        )
        if operation != FeatureFlags.GET and not reply.payload:
            return b""  # there is nothing to learn from the echo of what was sent
        head = DeviceFeature.decode(reply.payload)
        if head.feature != feature or head.operation != operation:
            raise RemoteProtocolError(
                f"{what} was answered for {_feature_name(head.feature)} with flags {head.operation:#x}; a reply "
                "repeats both"
            )
        if operation == FeatureFlags.GET and head.argsz > argsz:
            raise RemoteProtocolError(f"{what}: the reply says argsz {head.argsz}; there was room for {argsz} bytes")
        return reply.payload[DeviceFeature.SIZE :]

    def read_data(self, size: int) -> bytes:
        """MIG_DATA_READ: the next bytes of the device's state; fewer than ``size`` are the last there are now."""
        reply = self._connection.request(
            Command.MIG_DATA_READ,
            MigDataRead(size).encode(),
            max_payload=_DATA_HEAD + size,
            request=f"MIG_DATA_READ of {size} bytes",
        )
        return MigDataReadReply.decode(reply.payload).data

    def write_data(self, data: bytes) -> None:
        """MIG_DATA_WRITE: the next bytes of the state the device is to have."""
        self._connection.request(
            Command.MIG_DATA_WRITE, MigDataWrite(data).encode(), request=f"MIG_DATA_WRITE of {len(data)} bytes"
        )


def _feature_name(feature: int) -> str:
    try:
        return Feature(feature).name
    except ValueError:
        return f"feature {feature}"

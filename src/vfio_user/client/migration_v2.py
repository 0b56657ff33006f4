"""Migration as the current specification has it: DEVICE_FEATURE, MIG_DATA_READ and MIG_DATA_WRITE.

Spec: "VFIO_USER_DEVICE_FEATURE", "VFIO_USER_MIG_DATA_READ", "VFIO_USER_MIG_DATA_WRITE"; ``linux/vfio.h``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from vfio_user.client.features import DeviceFeatures
from vfio_user.client.guest_memory import GuestMapping
from vfio_user.client.migration import Migration
from vfio_user.errors import CommandError, RemoteProtocolError, StateError
from vfio_user.protocol.feature import (
    DeviceFeature,
    DirtyReport,
    DmaLoggingStart,
    Feature,
    MigrationFlags,
    MigrationStateData,
    MigrationSupport,
    bitmap_size,
)
from vfio_user.protocol.migration import MigrationState

if TYPE_CHECKING:
    from vfio_user.client.device import VfioUserClient

__all__ = ["FeatureMigration"]

#: Bytes of one MIG_DATA_READ: large, as every one is a round trip in which the device stands still; not larger, as a
#: server makes the reply at once.
_READ_SIZE = 256 << 10

#: Bytes of one MIG_DATA_WRITE: libvfio-user reads a message's body with one receive call.
_WRITE_SIZE = 32 << 10


class FeatureMigration(Migration):
    """See the module, and the class above.

    Attributes:
        flags: what the device can.
    """

    generation = 2

    def __init__(self, client: VfioUserClient, flags: MigrationFlags) -> None:
        super().__init__(client)
        self.flags = flags
        self._features = DeviceFeatures(client.connection)
        agreement = client.connection.agreement
        self._room = min(agreement.client.max_data_xfer_size, agreement.server.max_data_xfer_size)

    @classmethod
    def find(cls, client: VfioUserClient) -> Self | None:
        """Asks the server; None if the device has none of it.

        Raises:
            RemoteProtocolError: it has migration without STOP_COPY, which is none.
        """
        features = DeviceFeatures(client.connection)
        try:
            data = features.get(Feature.MIGRATION, size=MigrationSupport.SIZE)
        except CommandError:
            return None
        flags = MigrationSupport.decode(data).flags
        if not flags & MigrationFlags.STOP_COPY:
            raise RemoteProtocolError(
                f"the device says it can migrate, with flags {flags:#x}; STOP_COPY (0x1) is a part of every migration"
            )
        return cls(client, flags)

    @property
    def has_pre_copy(self) -> bool:
        """See ``Migration``."""
        return bool(self.flags & MigrationFlags.PRE_COPY)

    @property
    def state(self) -> MigrationState:
        """See ``Migration``."""
        data = self._features.get(Feature.MIG_DEVICE_STATE, size=MigrationStateData.SIZE)
        return MigrationStateData.decode(data).state

    def go_to(self, state: MigrationState) -> None:
        """See ``Migration``."""
        self._features.set(Feature.MIG_DEVICE_STATE, MigrationStateData(state).encode())

    def read(self) -> Iterator[bytes]:
        """See ``Migration``."""
        size = min(_READ_SIZE, self._room)
        while True:
            chunk = self._features.read_data(size)
            if chunk:
                yield chunk
            if len(chunk) < size:
                return

    def write(self, chunk: bytes) -> None:
        """See ``Migration``; a chunk of any size is taken."""
        size = min(_WRITE_SIZE, self._room)
        for start in range(0, len(chunk), size):
            self._features.write_data(chunk[start : start + size])

    def _start_log(self, page_size: int) -> None:
        self._features.set(Feature.DMA_LOGGING_START, DmaLoggingStart(page_size).encode())

    def _stop_log(self) -> None:
        self._features.set(Feature.DMA_LOGGING_STOP)

    def _page_size(self, mapping: GuestMapping, page_size: int) -> int:
        # A report is about a whole mapping, and one message: of one that is large enough, in larger pages.
        while DeviceFeature.SIZE + DirtyReport.SIZE + bitmap_size(mapping.size, page_size) > self._room:
            if page_size >= mapping.size:
                least = DeviceFeature.SIZE + DirtyReport.SIZE + bitmap_size(mapping.size, page_size)
                raise StateError(
                    f"dirty pages are asked for, and a report has at least {least} bytes; the server and this client "
                    f"have agreed on {self._room} a message (max_data_xfer_size)"
                )
            page_size *= 2
        return page_size

    def _report(self, mapping: GuestMapping, page_size: int) -> bytes:
        wanted = DirtyReport(mapping.iova, mapping.size, page_size)
        size = bitmap_size(mapping.size, page_size)
        data = self._features.get(Feature.DMA_LOGGING_REPORT, size=DirtyReport.SIZE + size, data=wanted.encode())
        if DirtyReport.decode(data) != wanted:
            raise RemoteProtocolError(f"a report of dirty pages of {wanted} was answered as {DirtyReport.decode(data)}")
        return data[DirtyReport.SIZE :]

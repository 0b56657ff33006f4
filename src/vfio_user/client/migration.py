"""The migration of a device, as a client drives it: one interface to both protocols.

``find_migration`` looks at what the server offers:

==============  ====================================  ==============================================================
generation      states and data                       dirty pages
==============  ====================================  ==============================================================
2 (current)     DEVICE_FEATURE, MIG_DATA_READ/WRITE   DEVICE_FEATURE, ``DMA_LOGGING_...``
1 (0.9.1)       registers of the migration region     DIRTY_PAGES
==============  ====================================  ==============================================================

The states are those of ``protocol.migration`` in both; the older generation has other numbers for them, and not every
way between them. The data comes in chunks. Of generation 2 they are a stream, of generation 1 each is a message of the
device to itself: it must be written as it was read, whole and in order. So they are always passed on that way.

``live_migration`` is what moves a device with these.

Spec: "VFIO_USER_DEVICE_FEATURE"; vfio-user 0.9.1 "VFIO device migration".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from vfio_user.client.dirty_bitmap import DirtyBitmap
from vfio_user.client.guest_memory import GuestMapping
from vfio_user.errors import StateError
from vfio_user.memory.dirty_log import DirtyLog
from vfio_user.protocol.migration import MigrationState

if TYPE_CHECKING:
    from vfio_user.client.device import VfioUserClient

__all__ = ["PAGE_SIZE", "Migration", "find_migration"]

#: Bytes of the pages that are logged unless another size is asked for.
PAGE_SIZE = 4096


class Migration(ABC):
    """The migration of one device. Get it from ``VfioUserClient.migration``.

    Methods that send a command raise CommandError (the server refused), CommandTimeoutError, RemoteProtocolError (its
    reply makes no sense) or ConnectionClosedError.

    Attributes:
        generation: 1 or 2, of the protocol.

    Threading: as the client.
    """

    generation: ClassVar[int]

    def __init__(self, client: VfioUserClient) -> None:
        self._client = client

    # States.

    @property
    @abstractmethod
    def has_pre_copy(self) -> bool:
        """Its state can be read while it runs."""

    @property
    @abstractmethod
    def state(self) -> MigrationState:
        """The state the device says it is in."""

    @abstractmethod
    def go_to(self, state: MigrationState) -> None:
        """Takes the device to a state; when this returns, it is there.

        Raises:
            CommandError: it cannot; the device says which state it is in now, ERROR perhaps.
            StateError: no way leads there.
        """

    # Data.

    @abstractmethod
    def read(self) -> Iterator[bytes]:
        """The device's state, chunk by chunk, until there is no more: for now in PRE_COPY, at all in STOP_COPY.

        An iterator may be left at any chunk; the next one goes on behind it.
        """

    @abstractmethod
    def write(self, chunk: bytes) -> None:
        """Writes a chunk, as another device's ``read`` gave it, to the device in RESUMING.

        Raises:
            StateError: the chunk is larger than this device takes.
        """

    # Dirty pages.

    def start_log(self, page_size: int = PAGE_SIZE) -> None:
        """Begins to log what of the client's memory the device writes.

        Args:
            page_size: bytes; a power of two.
        """
        self._start_log(page_size)
        # What the device writes by messages, the server does not know of: it is written here.
        self._client.space.dirty_log = DirtyLog(page_size)

    def stop_log(self) -> None:
        """Ends that. Nothing happens if nothing is logged."""
        if self._client.space.dirty_log is not None:
            self._client.space.dirty_log = None
            self._stop_log()

    def dirty_pages(self, mapping: GuestMapping) -> DirtyBitmap:
        """What of a mapping was written since the log began, or was last asked for the same; then it counts as clean.

        A mapping that is not made of whole pages counts as written, all of it.

        Raises:
            StateError: nothing is logged.
        """
        log = self._client.space.dirty_log
        if log is None:
            raise StateError("dirty pages are asked for while none are logged: call start_log() first")
        page_size = self._page_size(mapping, log.page_size)
        if mapping.iova % page_size or mapping.size < page_size:
            return DirtyBitmap.all(mapping.iova, mapping.size, page_size)
        own = DirtyBitmap(mapping.iova, mapping.size, page_size, log.report(mapping.iova, mapping.size, page_size))
        if not mapping.shared:
            return own
        return own | DirtyBitmap(mapping.iova, mapping.size, page_size, self._report(mapping, page_size))

    def _page_size(self, mapping: GuestMapping, page_size: int) -> int:
        """The pages a mapping can be reported in."""
        return page_size

    @abstractmethod
    def _start_log(self, page_size: int) -> None:
        """Tells the server."""

    @abstractmethod
    def _stop_log(self) -> None:
        """Tells the server."""

    @abstractmethod
    def _report(self, mapping: GuestMapping, page_size: int) -> bytes:
        """The server's bitmap."""


def find_migration(client: VfioUserClient, *, generation: int | None = None) -> Migration:
    """What the server offers; of both, the current one.

    Args:
        client: connected to it.
        generation: 1 or 2, to have that and no other.

    Raises:
        StateError: the device cannot be migrated, or not by that generation.
        CommandTimeoutError, RemoteProtocolError, ConnectionClosedError: as every command.
    """
    from vfio_user.client.migration_v1 import RegionMigration
    from vfio_user.client.migration_v2 import FeatureMigration

    found: Migration | None = None
    if generation in (None, 2):
        found = FeatureMigration.find(client)
    if found is None and generation in (None, 1):
        found = RegionMigration.find(client)
    if found is None:
        which = "neither DEVICE_FEATURE nor a migration region" if generation is None else f"no generation {generation}"
        raise StateError(
            f"the device cannot be migrated: its server offers {which}. A device of this package says "
            "migratable = True in its class"
        )
    return found

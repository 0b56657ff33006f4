"""Which protocol a device is migrated by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vfio_user.client.device import VfioUserClient
from vfio_user.client.migration import Migration, find_migration
from vfio_user.devices.edu import Edu
from vfio_user.errors import StateError
from vfio_user.protocol.migration import MigrationState
from vfio_user.server.device import MigrationProtocol
from vfio_user.testing.in_process import DeviceUnderTest

pytestmark = pytest.mark.usefixtures("forget_devices")


@contextmanager
def client(protocol: MigrationProtocol) -> Iterator[VfioUserClient]:
    device = Edu()
    device.offer_migration(protocol)
    with DeviceUnderTest(device) as under_test:
        yield under_test.client


@pytest.mark.parametrize(("protocol", "generation"), [("v1", 1), ("v2", 2)])
def test_what_the_server_offers(protocol: MigrationProtocol, generation: int) -> None:
    with client(protocol) as edu:
        assert edu.migration.generation == generation
        assert edu.migration is edu.migration
        assert find_migration(edu, generation=generation).generation == generation
        with pytest.raises(StateError, match=f"its server offers no generation {3 - generation}"):
            find_migration(edu, generation=3 - generation)


def test_nothing() -> None:
    with client("off") as edu, pytest.raises(StateError, match=r"neither DEVICE_FEATURE nor .* migratable = True"):
        _ = edu.migration


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_a_state_can_be_taken_and_put_back(protocol: MigrationProtocol) -> None:
    def save(migration: Migration) -> list[bytes]:
        migration.go_to(MigrationState.STOP_COPY)
        chunks = list(migration.read())
        migration.go_to(MigrationState.RUNNING)
        return chunks

    with client(protocol) as edu:
        bar0 = edu.region(0)
        bar0.write32(0x04, 5)
        chunks = save(edu.migration)
        bar0.write32(0x04, 6)
        edu.migration.go_to(MigrationState.RESUMING)
        for chunk in chunks:
            edu.migration.write(chunk)
        edu.migration.go_to(MigrationState.RUNNING)
        assert bar0.read32(0x04) == 0xFFFF_FFFA
        assert save(edu.migration) == chunks

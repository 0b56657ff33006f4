"""The pytest plugin: devices under test as fixtures.

    def test_liveness(vfio_device):
        edu = vfio_device(Edu())
        edu.bar0.write32(0x04, 0x1234_5678)
        assert edu.bar0.read32(0x04) == 0xEDCB_A987
        assert edu.registers(0).liveness == 0xEDCB_A987

    def test_driver(guest):
        linux = guest(Edu())
        assert linux.pci_device(0x1234, 0x11E8).class_code == 0x00FF00

When the test is over everything is closed; a file descriptor the device opened while it was driven, and left open, is
an error of the test. Where no guest can be made a test that wants one is skipped, but under ``CI`` it fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import pytest

from vfio_user.testing.leaks import leaked_since, open_files

if TYPE_CHECKING:
    from vfio_user.client.device import VfioUserClient
    from vfio_user.client.pci_function import PciFunction
    from vfio_user.server.device import Device
    from vfio_user.server.session import Observer
    from vfio_user.testing.guests import GuestFactory
    from vfio_user.testing.in_process import DeviceUnderTest
    from vfio_user.vm import GuestKit

__all__ = ["ClientFactory", "DeviceFactory", "guest", "guest_kit", "vfio_client", "vfio_device"]


class _Options(TypedDict, total=False):
    """The keyword arguments of ``DeviceUnderTest``, which says what they mean."""

    real_time: bool
    observer: Observer | None
    strict: bool
    timeout: float
    share_memory: bool


class _Factory:
    """Puts devices under test, and takes them out again together."""

    def __init__(self) -> None:
        self._under_test: list[DeviceUnderTest] = []
        self._open_before: dict[int, tuple[int, int]] | None = None

    def put_under_test(self, device: Device, **options: Unpack[_Options]) -> DeviceUnderTest:
        """Puts a device under test; the arguments are those of ``DeviceUnderTest``."""
        # pytest imports this module at every start, whether the fixtures are used or not.
        from vfio_user.testing.in_process import DeviceUnderTest

        if self._open_before is None:
            self._open_before = open_files()
        under_test = DeviceUnderTest(device, **options)
        self._under_test.append(under_test)
        return under_test

    def advance(self, seconds: float) -> None:
        """Lets time pass for the devices: timers go off, each device's in their order."""
        for under_test in self._under_test:
            under_test.advance(seconds)

    def settle(self) -> None:
        """Lets the devices do what there is to do now."""
        for under_test in self._under_test:
            under_test.settle()

    def close(self) -> None:
        """Takes them all out, the last one first.

        Raises:
            Exception: what device code raised last, and nobody was told.
            Failed: a descriptor is left open.
        """
        failures: list[Exception] = []
        while self._under_test:
            under_test = self._under_test.pop()
            try:
                under_test.close()
                # What the device has still put off will never be done.
                under_test.device.loop.close()
            except Exception as exc:  # the others are to be closed as well
                failures.append(exc)
        if failures:
            raise failures[0]
        leaked = leaked_since(self._open_before or open_files())
        if leaked:
            pytest.fail(f"the device under test left open: {', '.join(leaked)}", pytrace=False)


class DeviceFactory(_Factory):
    """What the fixture ``vfio_device`` gives: call it with a PCI device."""

    def __call__(self, device: Device, **options: Unpack[_Options]) -> PciFunction:
        """Puts a device under test, and returns what a driver sees of it."""
        return self.put_under_test(device, **options).function


class ClientFactory(_Factory):
    """What the fixture ``vfio_client`` gives: call it with any device."""

    def __call__(self, device: Device, **options: Unpack[_Options]) -> VfioUserClient:
        """Puts a device under test, and returns a client that has negotiated and done nothing else."""
        return self.put_under_test(device, **options).client


@pytest.fixture
def vfio_device() -> Iterator[DeviceFactory]:
    """Puts PCI devices under test: ``vfio_device(Edu())`` returns a ``PciFunction`` that drives one, without any VM."""
    factory = DeviceFactory()
    yield factory
    factory.close()


@pytest.fixture
def vfio_client() -> Iterator[ClientFactory]:
    """Puts devices of any kind under test: ``vfio_client(device)`` returns a ``VfioUserClient``."""
    factory = ClientFactory()
    yield factory
    factory.close()


@pytest.fixture(scope="session")
def guest_kit(request: pytest.FixtureRequest) -> GuestKit:
    """What all guests are made of. The first time it is fetched, and says so past pytest's capture."""
    from vfio_user.errors import VmUnavailableError
    from vfio_user.vm import GuestKit, Progress

    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            return GuestKit.provision(progress=Progress())
        except VmUnavailableError as error:
            if os.environ.get("CI"):
                raise  # a run that is to prove something must not pass without its guests
            pytest.skip(f"no guest can be made here: {error}")


@pytest.fixture
def guest(guest_kit: GuestKit, tmp_path: Path) -> Iterator[GuestFactory]:
    """Boots Linux with devices: ``guest(Edu())`` returns a ``Guest``. Consoles stay in the test's ``tmp_path``."""
    from vfio_user.testing.guests import GuestFactory

    factory = GuestFactory(guest_kit, tmp_path)
    try:
        yield factory
    finally:
        factory.close()

"""Fixtures of the tests that boot Linux."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.support import VmFactory
from vfio_user.errors import VmUnavailableError
from vfio_user.vm import GuestKit, Progress


@pytest.fixture(scope="session")
def guest_kit(request: pytest.FixtureRequest) -> GuestKit:
    """The kit all guests are made of. The first time it is fetched, and says so past pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            return GuestKit.provision(progress=Progress())
        except VmUnavailableError as error:
            if os.environ.get("CI"):
                raise  # a run that is to prove something must not pass without its guests
            pytest.skip(f"no guest can be made here: {error}")


@pytest.fixture(autouse=True)
def _no_fd_leaks() -> None:
    """Here a guest outlives a test, and what it connects comes and goes: its own fixture checks, when it has ended."""


@pytest.fixture
def vm_factory(guest_kit: GuestKit, tmp_path: Path) -> Iterator[VmFactory]:
    """Makes machines, which are stopped after the test; their consoles stay in the test's ``tmp_path``."""
    with VmFactory(guest_kit, tmp_path) as factory:
        yield factory

"""Fixtures of the tests that boot Linux."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.support import VmFactory
from vfio_user.vm import GuestKit


@pytest.fixture(autouse=True)
def _no_fd_leaks() -> None:
    """Here a guest outlives a test, and what it connects comes and goes: its own fixture checks, when it has ended."""


@pytest.fixture
def vm_factory(guest_kit: GuestKit, tmp_path: Path) -> Iterator[VmFactory]:
    """Makes machines, which are stopped after the test; their consoles stay in the test's ``tmp_path``."""
    with VmFactory(guest_kit, tmp_path) as factory:
        yield factory

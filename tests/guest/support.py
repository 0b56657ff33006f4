"""What the tests in guests share: machines made from a few words, and stopped whatever happens."""

from __future__ import annotations

from tests.support.waiting import wait_for
from vfio_user.testing.guests import MachineFactory as VmFactory

__all__ = ["VmFactory", "wait_for"]

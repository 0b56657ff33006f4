"""Trapped doorbells: registers, each write of which is a message, and tells of itself."""

from __future__ import annotations

from vfio_user.devices.nvme.doorbells.base import DoorbellMode, Doorbells

__all__ = ["TrappedDoorbells"]


class TrappedDoorbells(Doorbells):
    """See the module; all of it is what every controller's registers do."""

    mode = DoorbellMode.TRAPPED

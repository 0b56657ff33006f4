"""How the host tells of new entries, and of completions it has taken: ``base`` has the interface, a module each way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user.devices.nvme.doorbells.base import DoorbellMode, Doorbells
from vfio_user.devices.nvme.doorbells.mapped import MappedDoorbells
from vfio_user.devices.nvme.doorbells.shadow import ShadowDoorbells
from vfio_user.devices.nvme.doorbells.trapped import TrappedDoorbells

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["DoorbellMode", "Doorbells", "make_doorbells"]

_KINDS: dict[DoorbellMode, type[Doorbells]] = {
    kind.mode: kind for kind in (TrappedDoorbells, ShadowDoorbells, MappedDoorbells)
}


def make_doorbells(controller: Nvme, mode: DoorbellMode) -> Doorbells:
    """The doorbells of a controller."""
    return _KINDS[mode](controller)

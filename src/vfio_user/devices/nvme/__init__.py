"""An NVM Express controller; ``controller.Nvme`` is the device. See ``docs/nvme.md``."""

from vfio_user.devices.nvme.controller import Nvme
from vfio_user.devices.nvme.doorbells import DoorbellMode

__all__ = ["DoorbellMode", "Nvme"]

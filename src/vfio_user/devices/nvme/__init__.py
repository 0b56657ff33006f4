"""An NVM Express controller; ``controller.Nvme`` is the device. See ``docs/nvme.md``."""

from vfio_user.devices.nvme.controller import DoorbellMode, Nvme

__all__ = ["DoorbellMode", "Nvme"]

"""A driver of NVMe controllers: ``NvmeDriver``."""

from vfio_user.drivers.nvme.driver import NvmeDriver
from vfio_user.drivers.nvme.queue_pair import NvmeError, QueuePair

__all__ = ["NvmeDriver", "NvmeError", "QueuePair"]

"""A driver of LSI 53C895A SCSI controllers: ``ScsiInitiator``; and an assembler for programs of your own."""

from vfio_user.drivers.lsi53c8xx.assembler import Script
from vfio_user.drivers.lsi53c8xx.initiator import ScsiError, ScsiInitiator, ScsiRequest

__all__ = ["Script", "ScsiError", "ScsiInitiator", "ScsiRequest"]

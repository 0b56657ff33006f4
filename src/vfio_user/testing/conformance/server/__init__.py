"""Every check of a server, by command."""

from vfio_user.testing.conformance.check import Check
from vfio_user.testing.conformance.server.dma import MAP, UNMAP
from vfio_user.testing.conformance.server.feature import DIRTY, FEATURE
from vfio_user.testing.conformance.server.header import HEADER
from vfio_user.testing.conformance.server.info import INFO, IRQ_INFO, RESET
from vfio_user.testing.conformance.server.migration import DATA, STATES
from vfio_user.testing.conformance.server.migration_region import DIRTY_PAGES, MIGRATION_REGION
from vfio_user.testing.conformance.server.region_info import IO_FDS, REGION_INFO
from vfio_user.testing.conformance.server.region_read import READ
from vfio_user.testing.conformance.server.region_write import WRITE
from vfio_user.testing.conformance.server.set_irqs import SET_IRQS
from vfio_user.testing.conformance.server.stream import STREAM
from vfio_user.testing.conformance.server.version import VERSION
from vfio_user.testing.conformance.server.write_multi import MULTI

__all__ = ["CHECKS", "FAMILIES"]

#: In the order of a report.
FAMILIES = (
    *(HEADER, STREAM, VERSION, INFO, REGION_INFO, IO_FDS, IRQ_INFO, SET_IRQS, MAP, UNMAP, READ, WRITE, MULTI),
    *(RESET, FEATURE, DIRTY, STATES, DATA, MIGRATION_REGION, DIRTY_PAGES),
)

CHECKS: tuple[Check, ...] = tuple(check for family in FAMILIES for check in family.checks)

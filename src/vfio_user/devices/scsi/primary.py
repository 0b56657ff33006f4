"""What every logical unit answers: INQUIRY, REQUEST SENSE, REPORT LUNS and the like. Spec: SPC-4 clause 6."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from vfio_user.devices.scsi.logical_unit import LogicalUnit, command, illegal, invalid_field
from vfio_user.devices.scsi.task import Task
from vfio_user.hardware.scsi.cdb import LAYOUTS, Command, ServiceAction, cdb_length
from vfio_user.hardware.scsi.codes import AdditionalSense, DeviceType
from vfio_user.hardware.scsi.codes import OperationCode as Op
from vfio_user.hardware.scsi.inquiry import VpdPage, serial_number_page, standard_inquiry, supported_pages, vpd_page
from vfio_user.hardware.scsi.sense import FieldPointer

__all__ = ["PrimaryUnit"]

_HEADER = struct.Struct(">I4x")
_COMMAND_DESCRIPTOR = struct.Struct(">BxHxBH")
_ONE_COMMAND = struct.Struct(">xBH")

#: SUPPORT of a command: not there, or as the standard has it.
_NOT_SUPPORTED, _SUPPORTED = 1, 3


class PrimaryUnit(LogicalUnit):
    """A logical unit with the commands all of them have.

    Attributes:
        peripheral: PERIPHERAL QUALIFIER and DEVICE TYPE, the first byte of INQUIRY data.
        vendor: T10 VENDOR IDENTIFICATION, 8 characters at most.
        product: PRODUCT IDENTIFICATION, 16 at most.
        revision: PRODUCT REVISION LEVEL, 4 at most.
        serial: what ``vital product data`` calls it.
        is_removable: the medium can be taken out.
    """

    peripheral: int = DeviceType.NONE
    vendor = "vfiouser"
    product = ""
    revision = "1"
    serial = ""
    is_removable = False

    @command(Op.TEST_UNIT_READY)
    def test_unit_ready(self, task: Task, cdb: Command) -> None:
        """TEST UNIT READY. Spec: 6.47."""
        self.check_ready()

    def check_ready(self) -> None:
        """Lets commands pass that need a medium; override.

        Raises:
            CommandFailed: the unit is not ready.
        """

    @command(Op.REQUEST_SENSE)
    def request_sense(self, task: Task, cdb: Command) -> bytes:
        """REQUEST SENSE. Spec: 6.39; DESC chooses the format here, not D_SENSE."""
        return self.take_sense(task.initiator).pack(descriptor=bool(cdb.descriptor))

    @command(Op.INQUIRY)
    def inquiry(self, task: Task, cdb: Command) -> bytes:
        """INQUIRY. Spec: 6.6, 7.8."""
        if not cdb.vital_product_data:
            if cdb.page:
                raise invalid_field(cdb, "page")
            return standard_inquiry(
                self.peripheral,
                removable=self.is_removable,
                vendor=self.vendor,
                product=self.product,
                revision=self.revision,
            )
        pages = self.vpd_pages()
        if cdb.page == VpdPage.SUPPORTED_PAGES:
            return supported_pages(self.peripheral, pages)
        if cdb.page not in pages:
            raise invalid_field(cdb, "page")
        return vpd_page(self.peripheral, cdb.page, pages[cdb.page])

    def vpd_pages(self) -> Mapping[int, bytes]:
        """Its pages of vital product data, without their headers; override to add to them."""
        return {VpdPage.UNIT_SERIAL_NUMBER: serial_number_page(self.serial)}

    @command(Op.REPORT_LUNS)
    def report_luns(self, task: Task, cdb: Command) -> bytes:
        """REPORT LUNS. Spec: 6.33."""
        if cdb.select_report > 2:
            raise invalid_field(cdb, "select_report")
        if cdb.allocation_length < 16:
            # SPC-4 has no such minimum, SPC-3 and older ask for it.
            raise invalid_field(cdb, "allocation_length")
        luns = [] if cdb.select_report == 1 else self.siblings()  # 1: well known ones alone, of which there are none
        # Peripheral addressing for the first 256, flat space addressing beyond. Spec: SAM-5 4.7.
        entries = [struct.pack(">H6x", lun if lun < 256 else 0x4000 | lun) for lun in luns]
        return _HEADER.pack(8 * len(entries)) + b"".join(entries)

    @command(Op.SEND_DIAGNOSTIC)
    def send_diagnostic(self, task: Task, cdb: Command) -> None:
        """SEND DIAGNOSTIC: the default self test, which passes. Spec: 6.43."""
        if cdb.self_test_code:
            raise invalid_field(cdb, "self_test_code")
        if cdb.parameter_list_length:
            raise invalid_field(cdb, "parameter_list_length")

    @command((Op.MAINTENANCE_IN, ServiceAction.REPORT_SUPPORTED_OPERATION_CODES))
    def report_supported_operation_codes(self, task: Task, cdb: Command) -> bytes:
        """REPORT SUPPORTED OPERATION CODES. Spec: 6.35. There are no timeouts to report."""
        if cdb.reporting_options == 0:
            return self._all_commands()
        if cdb.reporting_options > 3:
            raise invalid_field(cdb, "reporting_options")
        code, action = cdb.requested_code, cdb.requested_action
        with_actions = Command.has_service_actions(code) and code in self.operation_codes
        if cdb.reporting_options == 1 and with_actions:
            raise illegal(AdditionalSense.INVALID_FIELD_IN_CDB, FieldPointer(2, 2))
        if cdb.reporting_options == 2 and not with_actions:
            raise illegal(AdditionalSense.INVALID_FIELD_IN_CDB, FieldPointer(2, 2))
        key = (code, action if with_actions else None)
        if key not in self.commands or (not with_actions and action):
            return _ONE_COMMAND.pack(_NOT_SUPPORTED, 0)
        usage = bytes([code]) + LAYOUTS[key].mask()[1:]
        return _ONE_COMMAND.pack(_SUPPORTED, len(usage)) + usage

    def _all_commands(self) -> bytes:
        descriptors = [
            _COMMAND_DESCRIPTOR.pack(code, action or 0, 0 if action is None else 1, cdb_length(code))
            for code, action in sorted(self.commands, key=lambda key: (key[0], key[1] or 0))
        ]
        return struct.pack(">I", 8 * len(descriptors)) + b"".join(descriptors)

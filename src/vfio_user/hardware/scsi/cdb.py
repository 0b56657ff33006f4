"""Command descriptor blocks: what each command's bytes mean. Spec: SPC-4 clause 6, SBC-3 clause 5, MMC-6 clause 6."""

from __future__ import annotations

from typing import Final

from vfio_user.hardware.scsi.codes import OperationCode as Op
from vfio_user.hardware.scsi.layout import Layout, Place
from vfio_user.hardware.scsi.sense import FieldPointer

__all__ = ["LAYOUTS", "Command", "ServiceAction", "cdb_length"]


class ServiceAction:
    """Service actions, in bits 4 to 0 of byte 1."""

    READ_KEYS: Final = 0x00
    READ_RESERVATION: Final = 0x01
    REPORT_CAPABILITIES: Final = 0x02
    READ_FULL_STATUS: Final = 0x03
    REPORT_SUPPORTED_OPERATION_CODES: Final = 0x0C
    READ_CAPACITY_16: Final = 0x10


#: By the group, the operation code's upper three bits.
_LENGTHS = (6, 10, 10, 6, 16, 12, 6, 6)


def cdb_length(operation_code: int) -> int:
    """Bytes of a CDB, by its operation code's group (SAM-5 5.2, SPC-4 4.2.5.1); 6 for a group that has no length."""
    return _LENGTHS[operation_code >> 5]


def _cdb(code: int, /, **fields: Place) -> Layout:
    length = cdb_length(code)
    return Layout(length, operation_code=(0, 7, 8), **fields, naca=(length - 1, 2))


_BLOCKS_10: dict[str, Place] = {"lba": (2, 7, 32), "group": (6, 4, 5), "length": (7, 7, 16)}
_BLOCKS_12: dict[str, Place] = {"lba": (2, 7, 32), "length": (6, 7, 32), "group": (10, 4, 5)}
_BLOCKS_16: dict[str, Place] = {"lba": (2, 7, 64), "length": (10, 7, 32), "group": (14, 4, 5)}
_READ: dict[str, Place] = {"protect": (1, 7, 3), "dpo": (1, 4), "fua": (1, 3)}
_VERIFY: dict[str, Place] = {"protect": (1, 7, 3), "dpo": (1, 4), "byte_check": (1, 2, 2)}
_SYNCHRONIZE: dict[str, Place] = {"immediate": (1, 1)}
_SAME: dict[str, Place] = {"protect": (1, 7, 3), "anchor": (1, 4), "unmap": (1, 3)}
_ACTION: dict[str, Place] = {"service_action": (1, 4, 5)}
_RESERVE_IN: dict[str, Place] = {**_ACTION, "allocation_length": (7, 7, 16)}
_SENSE: dict[str, Place] = {
    "disable_block_descriptors": (1, 3),
    "page_control": (2, 7, 2),
    "page": (2, 5, 6),
    "subpage": (3, 7, 8),
}
_SECTORS: dict[str, Place] = {"sector_type": (1, 4, 3), "main_channel": (9, 7, 8), "sub_channel": (10, 2, 3)}
_SELECT: dict[str, Place] = {"page_format": (1, 4), "save_pages": (1, 0)}

#: By operation code, and service action where there is one.
LAYOUTS: dict[tuple[int, int | None], Layout] = {
    # Every device: SPC-4.
    (Op.TEST_UNIT_READY, None): _cdb(Op.TEST_UNIT_READY),
    (Op.REQUEST_SENSE, None): _cdb(Op.REQUEST_SENSE, descriptor=(1, 0), allocation_length=(4, 7, 8)),
    (Op.INQUIRY, None): _cdb(Op.INQUIRY, vital_product_data=(1, 0), page=(2, 7, 8), allocation_length=(3, 7, 16)),
    (Op.MODE_SELECT_6, None): _cdb(Op.MODE_SELECT_6, **_SELECT, parameter_list_length=(4, 7, 8)),
    (Op.MODE_SELECT_10, None): _cdb(Op.MODE_SELECT_10, **_SELECT, parameter_list_length=(7, 7, 16)),
    (Op.MODE_SENSE_6, None): _cdb(Op.MODE_SENSE_6, **_SENSE, allocation_length=(4, 7, 8)),
    (Op.MODE_SENSE_10, None): _cdb(Op.MODE_SENSE_10, **_SENSE, long_lba=(1, 4), allocation_length=(7, 7, 16)),
    (Op.RESERVE_6, None): _cdb(Op.RESERVE_6, third_party=(1, 4), extent=(1, 0)),
    (Op.RESERVE_10, None): _cdb(Op.RESERVE_10, third_party=(1, 4), extent=(1, 0), parameter_list_length=(7, 7, 16)),
    (Op.RELEASE_6, None): _cdb(Op.RELEASE_6, third_party=(1, 4), extent=(1, 0)),
    (Op.RELEASE_10, None): _cdb(Op.RELEASE_10, third_party=(1, 4), extent=(1, 0), parameter_list_length=(7, 7, 16)),
    (Op.SEND_DIAGNOSTIC, None): _cdb(
        Op.SEND_DIAGNOSTIC, self_test_code=(1, 7, 3), self_test=(1, 2), parameter_list_length=(3, 7, 16)
    ),
    (Op.PREVENT_ALLOW_MEDIUM_REMOVAL, None): _cdb(Op.PREVENT_ALLOW_MEDIUM_REMOVAL, prevent=(4, 1, 2)),
    (Op.LOG_SENSE, None): _cdb(
        Op.LOG_SENSE,
        save_parameters=(1, 0),
        page_control=(2, 7, 2),
        page=(2, 5, 6),
        subpage=(3, 7, 8),
        parameter_pointer=(5, 7, 16),
        allocation_length=(7, 7, 16),
    ),
    **{
        (Op.PERSISTENT_RESERVE_IN, action): _cdb(Op.PERSISTENT_RESERVE_IN, **_RESERVE_IN)
        for action in (
            ServiceAction.READ_KEYS,
            ServiceAction.READ_RESERVATION,
            ServiceAction.REPORT_CAPABILITIES,
            ServiceAction.READ_FULL_STATUS,
        )
    },
    **{
        (Op.PERSISTENT_RESERVE_OUT, action): _cdb(
            Op.PERSISTENT_RESERVE_OUT, **_ACTION, scope=(2, 7, 4), type=(2, 3, 4), parameter_list_length=(5, 7, 32)
        )
        for action in range(7)
    },
    (Op.REPORT_LUNS, None): _cdb(Op.REPORT_LUNS, select_report=(2, 7, 8), allocation_length=(6, 7, 32)),
    (Op.MAINTENANCE_IN, ServiceAction.REPORT_SUPPORTED_OPERATION_CODES): _cdb(
        Op.MAINTENANCE_IN,
        **_ACTION,
        timeouts=(2, 7),
        reporting_options=(2, 2, 3),
        requested_code=(3, 7, 8),
        requested_action=(4, 7, 16),
        allocation_length=(6, 7, 32),
    ),
    # Blocks: SBC-3, and the same on CD-ROMs.
    (Op.FORMAT_UNIT, None): _cdb(
        Op.FORMAT_UNIT,
        protection=(1, 7, 2),
        long_list=(1, 5),
        has_data=(1, 4),
        complete_list=(1, 3),
        list_format=(1, 2, 3),
    ),
    (Op.START_STOP_UNIT, None): _cdb(
        Op.START_STOP_UNIT,
        immediate=(1, 0),
        power_condition=(4, 7, 4),
        no_flush=(4, 2),
        load_eject=(4, 1),
        start=(4, 0),
    ),
    (Op.READ_CAPACITY_10, None): _cdb(Op.READ_CAPACITY_10, lba=(2, 7, 32), partial=(8, 0)),
    (Op.SERVICE_ACTION_IN_16, ServiceAction.READ_CAPACITY_16): _cdb(
        Op.SERVICE_ACTION_IN_16, **_ACTION, lba=(2, 7, 64), allocation_length=(10, 7, 32), partial=(14, 0)
    ),
    (Op.SEEK_10, None): _cdb(Op.SEEK_10, lba=(2, 7, 32)),
    (Op.READ_6, None): _cdb(Op.READ_6, lba=(1, 4, 21), length=(4, 7, 8)),
    (Op.READ_10, None): _cdb(Op.READ_10, **_READ, **_BLOCKS_10),
    (Op.READ_12, None): _cdb(Op.READ_12, **_READ, **_BLOCKS_12),
    (Op.READ_16, None): _cdb(Op.READ_16, **_READ, **_BLOCKS_16),
    (Op.WRITE_6, None): _cdb(Op.WRITE_6, lba=(1, 4, 21), length=(4, 7, 8)),
    (Op.WRITE_10, None): _cdb(Op.WRITE_10, **_READ, **_BLOCKS_10),
    (Op.WRITE_12, None): _cdb(Op.WRITE_12, **_READ, **_BLOCKS_12),
    (Op.WRITE_16, None): _cdb(Op.WRITE_16, **_READ, **_BLOCKS_16),
    (Op.VERIFY_10, None): _cdb(Op.VERIFY_10, **_VERIFY, **_BLOCKS_10),
    (Op.VERIFY_12, None): _cdb(Op.VERIFY_12, **_VERIFY, **_BLOCKS_12),
    (Op.VERIFY_16, None): _cdb(Op.VERIFY_16, **_VERIFY, **_BLOCKS_16),
    (Op.WRITE_AND_VERIFY_10, None): _cdb(Op.WRITE_AND_VERIFY_10, **_VERIFY, **_BLOCKS_10),
    (Op.WRITE_AND_VERIFY_12, None): _cdb(Op.WRITE_AND_VERIFY_12, **_VERIFY, **_BLOCKS_12),
    (Op.WRITE_AND_VERIFY_16, None): _cdb(Op.WRITE_AND_VERIFY_16, **_VERIFY, **_BLOCKS_16),
    (Op.SYNCHRONIZE_CACHE_10, None): _cdb(Op.SYNCHRONIZE_CACHE_10, **_SYNCHRONIZE, **_BLOCKS_10),
    (Op.SYNCHRONIZE_CACHE_16, None): _cdb(Op.SYNCHRONIZE_CACHE_16, **_SYNCHRONIZE, **_BLOCKS_16),
    (Op.UNMAP, None): _cdb(Op.UNMAP, anchor=(1, 0), group=(6, 4, 5), parameter_list_length=(7, 7, 16)),
    (Op.WRITE_SAME_10, None): _cdb(Op.WRITE_SAME_10, **_SAME, **_BLOCKS_10),
    (Op.WRITE_SAME_16, None): _cdb(Op.WRITE_SAME_16, **_SAME, no_data_out_buffer=(1, 0), **_BLOCKS_16),
    # CD-ROMs: MMC-6.
    (Op.READ_TOC, None): _cdb(
        Op.READ_TOC, msf=(1, 1), format=(2, 3, 4), track=(6, 7, 8), allocation_length=(7, 7, 16), old_format=(9, 7, 2)
    ),
    (Op.GET_CONFIGURATION, None): _cdb(
        Op.GET_CONFIGURATION, request_type=(1, 1, 2), starting_feature=(2, 7, 16), allocation_length=(7, 7, 16)
    ),
    (Op.GET_EVENT_STATUS_NOTIFICATION, None): _cdb(
        Op.GET_EVENT_STATUS_NOTIFICATION, polled=(1, 0), classes=(4, 7, 8), allocation_length=(7, 7, 16)
    ),
    (Op.READ_DISC_INFORMATION, None): _cdb(Op.READ_DISC_INFORMATION, data_type=(1, 2, 3), allocation_length=(7, 7, 16)),
    (Op.READ_TRACK_INFORMATION, None): _cdb(
        Op.READ_TRACK_INFORMATION, address_type=(1, 1, 2), address=(2, 7, 32), allocation_length=(7, 7, 16)
    ),
    (Op.READ_DISC_STRUCTURE, None): _cdb(
        Op.READ_DISC_STRUCTURE,
        media_type=(1, 3, 4),
        address=(2, 7, 32),
        layer=(6, 7, 8),
        format=(7, 7, 8),
        allocation_length=(8, 7, 16),
    ),
    (Op.READ_CD, None): _cdb(Op.READ_CD, **_SECTORS, lba=(2, 7, 32), length=(6, 7, 24)),
    (Op.READ_CD_MSF, None): _cdb(Op.READ_CD_MSF, **_SECTORS, start=(3, 7, 24), end=(6, 7, 24)),
    (Op.SET_CD_SPEED, None): _cdb(Op.SET_CD_SPEED, read_speed=(2, 7, 16), write_speed=(4, 7, 16)),
    (Op.MECHANISM_STATUS, None): _cdb(Op.MECHANISM_STATUS, allocation_length=(8, 7, 16)),
}

#: Operation codes that have service actions.
_WITH_ACTIONS = {code for code, action in LAYOUTS if action is not None}


class Command:
    """A CDB with its layout: fields are attributes, ``command.lba``. Bytes that are not there count as zero.

    Raises:
        KeyError: there is no such command.
    """

    __slots__ = ("_cdb", "_plans", "layout", "operation_code")

    def __init__(self, cdb: bytes) -> None:
        self.layout = LAYOUTS[self.key(cdb)]
        self._plans = self.layout.plans
        self._cdb = cdb if len(cdb) == self.layout.length else cdb.ljust(self.layout.length, b"\0")
        self.operation_code = self._cdb[0]

    @staticmethod
    def key(cdb: bytes) -> tuple[int, int | None]:
        """What ``LAYOUTS`` has it under."""
        code = cdb[0] if cdb else 0
        return code, (cdb[1] & 0x1F if len(cdb) > 1 else 0) if code in _WITH_ACTIONS else None

    @staticmethod
    def has_service_actions(operation_code: int) -> bool:
        """Whether that operation code alone does not say what is to be done."""
        return operation_code in _WITH_ACTIONS

    def __getattr__(self, name: str) -> int:
        try:
            first, end, shift, mask = self._plans[name]
        except KeyError:
            raise AttributeError(f"a CDB {self._cdb.hex(' ')} has no field {name!r}") from None
        return int.from_bytes(self._cdb[first:end], "big") >> shift & mask

    def __contains__(self, name: str) -> bool:
        return name in self._plans

    def pointer(self, name: str) -> FieldPointer:
        """Points at a field, for sense data."""
        return self.layout.pointer(name)

"""Reservations: one initiator keeping others out. Spec: SPC-4 5.13; RESERVE and RELEASE as in SPC-2 5.5.

Persistent reservations survive resets but not a loss of power (no APTPL). The older kind does not survive a reset, and
cannot be had while anybody is registered for the newer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vfio_user.devices.scsi.logical_unit import command, illegal, invalid_field, invalid_parameter
from vfio_user.devices.scsi.mode import ModeUnit
from vfio_user.devices.scsi.task import CommandFailed, DataOut, Steps, Task
from vfio_user.hardware.scsi.cdb import Command, ServiceAction
from vfio_user.hardware.scsi.codes import AdditionalSense, Status
from vfio_user.hardware.scsi.codes import OperationCode as Op
from vfio_user.hardware.scsi.reservations import (
    RESERVE_OUT,
    OutAction,
    Registrant,
    ReservationType,
    capabilities_data,
    full_status_data,
    keys_data,
    reservation_data,
)

__all__ = ["ReservableUnit"]

#: Commands no reservation forbids. Spec: SPC-4 table 50, SBC-3 table 13.
_FREE = {
    Op.INQUIRY,
    Op.REQUEST_SENSE,
    Op.REPORT_LUNS,
    Op.PERSISTENT_RESERVE_IN,
    Op.PERSISTENT_RESERVE_OUT,
    Op.MAINTENANCE_IN,
    Op.LOG_SENSE,
    Op.TEST_UNIT_READY,
    Op.READ_CAPACITY_10,
    Op.SERVICE_ACTION_IN_16,
    Op.GET_CONFIGURATION,
    Op.GET_EVENT_STATUS_NOTIFICATION,
}

#: Commands of which even the older kind of reservation leaves alone. Spec: SPC-2 table 10.
_FREE_OF_THE_OLDER_KIND = {Op.INQUIRY, Op.REQUEST_SENSE, Op.REPORT_LUNS, Op.RELEASE_6, Op.RELEASE_10}

#: Commands that change nothing, which Write Exclusive leaves alone.
_READING = {
    Op.READ_6,
    Op.READ_10,
    Op.READ_12,
    Op.READ_16,
    Op.VERIFY_10,
    Op.VERIFY_12,
    Op.VERIFY_16,
    Op.SEEK_10,
    Op.MODE_SENSE_6,
    Op.MODE_SENSE_10,
    Op.READ_TOC,
    Op.READ_DISC_INFORMATION,
    Op.READ_TRACK_INFORMATION,
    Op.READ_DISC_STRUCTURE,
    Op.MECHANISM_STATUS,
    Op.SET_CD_SPEED,
}


def _conflict() -> CommandFailed:
    return CommandFailed(Status.RESERVATION_CONFLICT)


class ReservableUnit(ModeUnit):
    """A logical unit that can be reserved."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._reserved_by: int | None = None  # the older kind
        self._keys: dict[int, int] = {}  # registrations, by initiator
        self._generation = 0
        self._type: ReservationType | None = None
        self._holder: int | None = None  # unless all registrants are

    def on_reset(self) -> None:
        """The older kind of reservation ends."""
        super().on_reset()
        self._reserved_by = None

    def admit(self, task: Task, cdb: Command) -> None:
        """Nothing stands in the way that another initiator reserved."""
        super().admit(task, cdb)
        code, who = cdb.operation_code, task.initiator
        ends_prevention = code == Op.PREVENT_ALLOW_MEDIUM_REMOVAL and not cdb.prevent
        if self._reserved_by not in (None, who) and code not in _FREE_OF_THE_OLDER_KIND and not ends_prevention:
            raise _conflict()
        kind = self._type
        if kind is None or code in _FREE or ends_prevention or self._is_holder(who):
            return
        if kind.spares_registrants and who in self._keys:
            return
        if code in _READING and not kind.excludes_reads:
            return
        raise _conflict()

    def _is_holder(self, initiator: int) -> bool:
        if self._type is None:
            return False
        return initiator in self._keys if self._type.is_held_by_all else initiator == self._holder

    # The older kind.

    @command(Op.RESERVE_6, Op.RESERVE_10)
    def reserve(self, task: Task, cdb: Command) -> None:
        """RESERVE, of the whole unit and for oneself; nothing else was ever used."""
        self._check_whole(cdb)
        if self._keys:
            raise _conflict()
        self._reserved_by = task.initiator

    @command(Op.RELEASE_6, Op.RELEASE_10)
    def release(self, task: Task, cdb: Command) -> None:
        """RELEASE; of somebody else's reservation, nothing happens."""
        self._check_whole(cdb)
        if self._keys:
            raise _conflict()
        if self._reserved_by == task.initiator:
            self._reserved_by = None

    def _check_whole(self, cdb: Command) -> None:
        for name in ("third_party", "extent", "parameter_list_length"):
            if name in cdb and getattr(cdb, name):
                raise invalid_field(cdb, name)

    # The newer kind.

    @command(
        (Op.PERSISTENT_RESERVE_IN, ServiceAction.READ_KEYS),
        (Op.PERSISTENT_RESERVE_IN, ServiceAction.READ_RESERVATION),
        (Op.PERSISTENT_RESERVE_IN, ServiceAction.REPORT_CAPABILITIES),
        (Op.PERSISTENT_RESERVE_IN, ServiceAction.READ_FULL_STATUS),
    )
    def persistent_reserve_in(self, task: Task, cdb: Command) -> bytes:
        """PERSISTENT RESERVE IN."""
        match cdb.service_action:
            case ServiceAction.READ_KEYS:
                return keys_data(self._generation, self._keys.values())
            case ServiceAction.READ_RESERVATION:
                key = 0 if self._holder is None else self._keys.get(self._holder, 0)
                return reservation_data(self._generation, key, self._type)
            case ServiceAction.REPORT_CAPABILITIES:
                return capabilities_data()
            case _:
                registrants = [Registrant(who, key, self._is_holder(who)) for who, key in self._keys.items()]
                return full_status_data(self._generation, registrants, self._type)

    @command(*((Op.PERSISTENT_RESERVE_OUT, action) for action in OutAction))
    def persistent_reserve_out(self, task: Task, cdb: Command) -> Steps:
        """PERSISTENT RESERVE OUT."""
        action, who = OutAction(cdb.service_action), task.initiator
        if cdb.parameter_list_length != RESERVE_OUT.length:
            raise illegal(AdditionalSense.PARAMETER_LIST_LENGTH_ERROR)
        kind = self._type_of(cdb, action)
        data: memoryview = yield DataOut(RESERVE_OUT.length)
        values = RESERVE_OUT.unpack(data)
        for name in ("spec_i_pt", "all_tg_pt", "aptpl"):
            if values[name]:
                field = RESERVE_OUT.fields[name]
                raise invalid_parameter(field.byte, field.bit)
        registers = action in (OutAction.REGISTER, OutAction.REGISTER_AND_IGNORE_EXISTING_KEY)
        key, action_key = values["reservation_key"], values["action_key"]
        if action is not OutAction.REGISTER_AND_IGNORE_EXISTING_KEY:
            mine = self._keys.get(who, 0 if registers else None)
            if mine != key:
                raise _conflict()
        match action:
            case OutAction.REGISTER | OutAction.REGISTER_AND_IGNORE_EXISTING_KEY:
                self._register(who, action_key)
            case OutAction.RESERVE:
                self._reserve(who, kind)
            case OutAction.RELEASE:
                self._release(who, kind)
            case OutAction.CLEAR:
                self._clear(who)
            case _:
                self._preempt(who, kind, action_key, abort=action is OutAction.PREEMPT_AND_ABORT)
        return None

    @staticmethod
    def _type_of(cdb: Command, action: OutAction) -> ReservationType:
        """The type, where one is asked for; any, where none is."""
        if action in (OutAction.REGISTER, OutAction.CLEAR, OutAction.REGISTER_AND_IGNORE_EXISTING_KEY):
            return ReservationType.WRITE_EXCLUSIVE
        if cdb.scope:
            raise invalid_field(cdb, "scope")
        try:
            return ReservationType(cdb.type)
        except ValueError:
            raise invalid_field(cdb, "type") from None

    def _register(self, who: int, key: int) -> None:
        if key:
            self._keys[who] = key
        elif who in self._keys:
            held = self._is_holder(who)
            del self._keys[who]
            kind = self._type
            if held and kind is not None and not (kind.is_held_by_all and self._keys):
                self._end_reservation(but=who)
        else:
            return
        self._generation += 1

    def _reserve(self, who: int, kind: ReservationType) -> None:
        if self._type is None:
            self._type, self._holder = kind, None if kind.is_held_by_all else who
        elif not (self._is_holder(who) and kind is self._type):
            raise _conflict()

    def _release(self, who: int, kind: ReservationType) -> None:
        if not self._is_holder(who):
            return
        if kind is not self._type:
            raise illegal(AdditionalSense.INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
        self._end_reservation(but=who)

    def _end_reservation(self, *, but: int) -> None:
        """There is none any more; those it spared are told."""
        kind, self._type, self._holder = self._type, None, None
        if kind is not None and kind.spares_registrants:
            self._tell(lambda who: who in self._keys and who != but, AdditionalSense.RESERVATIONS_RELEASED)

    def _clear(self, who: int) -> None:
        self._tell(lambda other: other in self._keys and other != who, AdditionalSense.RESERVATIONS_PREEMPTED)
        self._keys.clear()
        self._type = self._holder = None
        self._generation += 1

    def _preempt(self, who: int, kind: ReservationType, key: int, *, abort: bool) -> None:
        """Spec: SPC-4 5.13.11.4."""
        current = self._type
        everybody = current is not None and current.is_held_by_all
        if not key and not everybody:
            raise invalid_parameter(RESERVE_OUT.fields["action_key"].byte)
        holder_key = None if self._holder is None else self._keys.get(self._holder)
        takes_over = current is not None and (key == 0 if everybody else key == holder_key)
        if not takes_over and key not in self._keys.values():
            raise _conflict()
        removed = {other for other, theirs in self._keys.items() if other != who and key in (0, theirs)}
        for other in removed:
            del self._keys[other]
        if takes_over:
            self._type, self._holder = kind, None if kind.is_held_by_all else who
            if current is not kind and current is not None and current.spares_registrants:
                self._tell(lambda other: other in self._keys and other != who, AdditionalSense.RESERVATIONS_RELEASED)
        self._tell(lambda other: other in removed, AdditionalSense.REGISTRATIONS_PREEMPTED)
        self._generation += 1
        if abort:
            for other in removed:
                self.abort_all(other)

    def _tell(self, whom: Callable[[int], bool], what: AdditionalSense) -> None:
        for initiator in [each for each in self._attentions if whom(each)]:
            self.attention(what, to=initiator)

    # Saving.

    def save(self) -> dict[str, Any]:
        """With its reservations."""
        return {
            **super().save(),
            "reserved_by": self._reserved_by,
            "keys": {str(who): key for who, key in self._keys.items()},
            "generation": self._generation,
            "reservation_type": None if self._type is None else int(self._type),
            "holder": self._holder,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """With its reservations."""
        super().load(state)
        self._reserved_by, self._generation = state["reserved_by"], state["generation"]
        self._keys = {int(who): key for who, key in state["keys"].items()}
        kind = state["reservation_type"]
        self._type, self._holder = None if kind is None else ReservationType(kind), state["holder"]

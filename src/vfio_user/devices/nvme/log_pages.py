"""Get Log Page. Spec: 5.16."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.devices.nvme.features import FEATURES
from vfio_user.devices.nvme.health import ERROR_LOG_ENTRIES
from vfio_user.hardware.nvme.features import FeatureCapabilities
from vfio_user.hardware.nvme.identify import BROADCAST_NSID, namespace_list
from vfio_user.hardware.nvme.logs import (
    CommandEffects,
    CommandEffectsLog,
    CriticalWarning,
    ErrorLogEntry,
    LogPage,
    SmartLog,
)
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode
from vfio_user.hardware.nvme.status import Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["LogPages"]

_RETAIN = 1 << 15
_OFFSET_TYPE = 1 << 23
_SUPPORTED = CommandEffects.SUPPORTED

#: What commands do besides. Spec: figure 211.
_ADMIN_EFFECTS = {
    AdminOpcode.NAMESPACE_MANAGEMENT: _SUPPORTED | CommandEffects.NAMESPACE_INVENTORY_CHANGE,
    AdminOpcode.NAMESPACE_ATTACHMENT: _SUPPORTED | CommandEffects.NAMESPACE_INVENTORY_CHANGE,
    AdminOpcode.FORMAT_NVM: _SUPPORTED
    | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE
    | CommandEffects.NAMESPACE_CAPABILITY_CHANGE
    | CommandEffects.EXECUTE_ALONE_IN_NAMESPACE,
}
_CHANGING = {
    NvmOpcode.WRITE,
    NvmOpcode.WRITE_UNCORRECTABLE,
    NvmOpcode.WRITE_ZEROES,
    NvmOpcode.DATASET_MANAGEMENT,
    NvmOpcode.COPY,
}


class LogPages:
    """The log pages of a controller.

    Args:
        controller: whose.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._pages: dict[int, Callable[[Command], bytes]] = {
            LogPage.SUPPORTED_LOG_PAGES: self._supported,
            LogPage.ERROR_INFORMATION: self._errors,
            LogPage.SMART: self._smart,
            LogPage.FIRMWARE_SLOT: lambda _: controller.firmware.log().pack(),
            LogPage.CHANGED_NAMESPACE_LIST: self._changed_namespaces,
            LogPage.COMMANDS_SUPPORTED_AND_EFFECTS: self._effects,
            LogPage.DEVICE_SELF_TEST: lambda _: controller.self_test.log().pack(),
            LogPage.FEATURES_SUPPORTED_AND_EFFECTS: self._features,
        }

    def handlers(self) -> dict[int, Callable[[Command], int | None]]:
        """The admin commands handled here."""
        return {AdminOpcode.GET_LOG_PAGE: self._get}

    def _get(self, command: Command) -> int:
        entry = command.entry
        lid = entry.cdw10 & 0xFF
        page = self._pages.get(lid)
        if page is None:
            raise CommandFailed(Status.INVALID_LOG_PAGE, location=40)
        length = ((entry.cdw11 & 0xFFFF) << 16 | entry.cdw10 >> 16) * 4 + 4
        if length > self._controller.max_transfer or entry.cdw14 & _OFFSET_TYPE:
            raise CommandFailed(Status.INVALID_FIELD, location=42)
        offset = entry.cdw13 << 32 | entry.cdw12
        if offset & 3:
            raise CommandFailed(Status.INVALID_FIELD, location=48)
        data = page(command)
        if offset > len(data):
            raise CommandFailed(Status.INVALID_FIELD, location=48)
        # What is asked for beyond the end of a log is undefined: zeroes.
        self._controller.give(command, data[offset : offset + length].ljust(length, b"\0"))
        if not entry.cdw10 & _RETAIN:
            if lid == LogPage.CHANGED_NAMESPACE_LIST:
                self._controller.events.changed_namespaces.clear()
            self._controller.events.log_was_read(lid)
        return 0

    def _supported(self, command: Command) -> bytes:
        return b"".join((1 if lid in self._pages else 0).to_bytes(4, "little") for lid in range(256))

    def _errors(self, command: Command) -> bytes:
        entries = [entry.pack() for entry in self._controller.health.error_log]
        return b"".join(entries).ljust(ERROR_LOG_ENTRIES * ErrorLogEntry.SIZE, b"\0")

    def _smart(self, command: Command) -> bytes:
        nsid = command.entry.nsid
        if nsid not in (0, BROADCAST_NSID):  # LPA bit 0: not for each namespace
            self._controller.namespaces.active(nsid)
            raise CommandFailed(Status.INVALID_FIELD, location=4)
        health = self._controller.health
        return SmartLog(
            critical_warning=CriticalWarning.TEMPERATURE if self._controller.features.temperature_warning else 0,
            composite_temperature=health.temperature,
            available_spare=100,
            available_spare_threshold=10,
            data_units_read=-(-health.blocks_read // 1000),
            data_units_written=-(-health.blocks_written // 1000),
            host_read_commands=health.reads,
            host_write_commands=health.writes,
            power_cycles=health.power_cycles,
            media_errors=health.media_errors,
            error_log_entries=health.errors,
        ).pack()

    def _changed_namespaces(self, command: Command) -> bytes:
        return namespace_list(self._controller.events.changed_namespaces)

    def _effects(self, command: Command) -> bytes:
        if command.entry.cdw14 >> 24:
            raise CommandFailed(Status.INVALID_FIELD, location=59)
        admin, io = [0] * 256, [0] * 256
        for opcode in self._controller.admin_handlers:
            admin[opcode] = _ADMIN_EFFECTS.get(opcode, _SUPPORTED)  # type: ignore[call-overload]
        for opcode in NvmOpcode:
            io[opcode] = _SUPPORTED
            if opcode in _CHANGING:
                io[opcode] |= CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE
        return CommandEffectsLog(admin=tuple(admin), io=tuple(io)).pack()

    def _features(self, command: Command) -> bytes:
        rows = []
        for fid in range(256):
            rule = FEATURES.get(fid)  # type: ignore[call-overload]
            if rule is None:
                rows.append(0)
                continue
            per_namespace = rule.capabilities & FeatureCapabilities.NAMESPACE_SPECIFIC
            rows.append(1 | (1 << 20 if per_namespace else 1 << 21))
        return b"".join(row.to_bytes(4, "little") for row in rows)

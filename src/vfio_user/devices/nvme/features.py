"""Get Features and Set Features. Spec: 5.15, 5.26; what each means: 5.26.1."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.devices.nvme.health import NOMINAL_TEMPERATURE
from vfio_user.hardware.nvme.features import Feature, FeatureCapabilities, Select
from vfio_user.hardware.nvme.identify import BROADCAST_NSID
from vfio_user.hardware.nvme.logs import AsyncEventType, LogPage, SmartEvent
from vfio_user.hardware.nvme.opcodes import AdminOpcode
from vfio_user.hardware.nvme.status import Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["FEATURES", "FeatureRule", "Features"]

_SAVEABLE, _PER_NAMESPACE, _CHANGEABLE = FeatureCapabilities
_SAVE = 1 << 31
_DWORD = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class FeatureRule:
    """What the controller makes of one feature.

    Attributes:
        default: its value, where it is one number.
        mask: the bits that may be set.
        capabilities: see ``FeatureCapabilities``.
        data: bytes of a feature that is data instead.
    """

    default: int = 0
    mask: int = _DWORD
    capabilities: FeatureCapabilities = _CHANGEABLE
    data: int = 0


#: All the features the controller has.
FEATURES = {
    Feature.ARBITRATION: FeatureRule(0x07, 0xFFFF_FF07, _CHANGEABLE | _SAVEABLE),
    Feature.POWER_MANAGEMENT: FeatureRule(mask=0xFF, capabilities=_CHANGEABLE | _SAVEABLE),
    Feature.TEMPERATURE_THRESHOLD: FeatureRule(mask=0x3F_FFFF),
    Feature.ERROR_RECOVERY: FeatureRule(mask=0xFFFF, capabilities=_CHANGEABLE | _SAVEABLE | _PER_NAMESPACE),
    Feature.VOLATILE_WRITE_CACHE: FeatureRule(1, 1, _CHANGEABLE | _SAVEABLE),
    Feature.NUMBER_OF_QUEUES: FeatureRule(),
    Feature.INTERRUPT_COALESCING: FeatureRule(mask=0xFFFF, capabilities=_CHANGEABLE | _SAVEABLE),
    Feature.INTERRUPT_VECTOR_CONFIGURATION: FeatureRule(mask=0x1_FFFF),
    Feature.WRITE_ATOMICITY_NORMAL: FeatureRule(mask=1, capabilities=_CHANGEABLE | _SAVEABLE),
    Feature.ASYNC_EVENT_CONFIGURATION: FeatureRule(mask=0x3FF, capabilities=_CHANGEABLE | _SAVEABLE),
    Feature.TIMESTAMP: FeatureRule(data=8),
    Feature.KEEP_ALIVE_TIMER: FeatureRule(),
    Feature.HOST_BEHAVIOR_SUPPORT: FeatureRule(data=512),
    Feature.COMMAND_SET_PROFILE: FeatureRule(mask=0x1FF),
    Feature.SOFTWARE_PROGRESS_MARKER: FeatureRule(mask=0xFF, capabilities=_CHANGEABLE | _SAVEABLE),
}


class Features:
    """The features of a controller.

    Args:
        controller: whose.

    Attributes:
        write_cache: the volatile write cache is on; off, every write is on the medium when it completes.
        vectors_alone: interrupt vectors that are not coalesced.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._values: dict[tuple[int, int], int] = {}
        self._saved: dict[tuple[int, int], int] = {}
        self._thresholds: dict[int, int] = {}
        self._host_behavior = bytes(512)
        self._timestamp = (0, 0)
        self._timestamp_at = time.monotonic()
        self.vectors_alone: set[int] = set()
        self.write_cache = True
        self.reset()

    def handlers(self) -> dict[int, Callable[[Command], int | None]]:
        """The admin commands handled here."""
        return {AdminOpcode.SET_FEATURES: self._set, AdminOpcode.GET_FEATURES: self._get}

    def value(self, feature: Feature, nsid: int = 0) -> int:
        """The current value of a feature that is one number."""
        return self._values.get((feature, nsid), FEATURES[feature].default)

    def reset(self) -> None:
        """The controller was reset: saved values are current, others are the default."""
        self._values = dict(self._saved)
        self._thresholds.clear()
        self.vectors_alone.clear()
        self._host_behavior = bytes(512)
        self._apply()

    def _apply(self) -> None:
        self.write_cache = bool(self.value(Feature.VOLATILE_WRITE_CACHE))

    def _rule(self, command: Command) -> tuple[Feature, FeatureRule]:
        fid = command.entry.cdw10 & 0xFF
        rule = FEATURES.get(fid)  # type: ignore[call-overload]
        if rule is None:
            raise CommandFailed(Status.INVALID_FIELD, location=40)
        return Feature(fid), rule

    def _scope(self, command: Command, rule: FeatureRule, *, change: bool) -> int:
        """The namespace a feature's value is of: 0 where it is the controller's."""
        nsid = command.entry.nsid
        if rule.capabilities & _PER_NAMESPACE:
            if nsid == BROADCAST_NSID and change:
                return nsid
            return self._controller.namespaces.active(nsid).nsid
        if nsid not in (0, BROADCAST_NSID):
            self._controller.namespaces.active(nsid)
            if change:
                raise CommandFailed(Status.FEATURE_NOT_NAMESPACE_SPECIFIC, location=4)
        return 0

    # Get.

    def _get(self, command: Command) -> int:
        feature, rule = self._rule(command)
        entry = command.entry
        select = entry.cdw10 >> 8 & 7
        if select > Select.SUPPORTED_CAPABILITIES:
            raise CommandFailed(Status.INVALID_FIELD, location=41)
        if select == Select.SUPPORTED_CAPABILITIES:
            return rule.capabilities
        nsid = self._scope(command, rule, change=False)
        current = select == Select.CURRENT or (select == Select.SAVED and not rule.capabilities & _SAVEABLE)
        if rule.data:
            data = bytes(rule.data)
            if current:
                data = self._host_behavior if feature == Feature.HOST_BEHAVIOR_SUPPORT else self._now()
            self._controller.give(command, data)
            return 0
        if select == Select.SAVED and (feature, nsid) in self._saved:
            return self._saved[feature, nsid]
        special = self._special(feature, entry.cdw11, current=current)
        if special is not None:
            return special
        return self.value(feature, nsid) if current else rule.default

    def _special(self, feature: Feature, cdw11: int, *, current: bool) -> int | None:
        """The value of a feature that is not simply a number."""
        if feature == Feature.NUMBER_OF_QUEUES:
            return self._queues()
        if feature == Feature.INTERRUPT_VECTOR_CONFIGURATION:
            vector = cdw11 & 0xFFFF
            if vector >= self._controller.vector_count:
                raise CommandFailed(Status.INVALID_FIELD, location=44)
            return vector | (1 << 16 if current and vector in self.vectors_alone else 0)
        if feature == Feature.TEMPERATURE_THRESHOLD:
            which = cdw11 >> 16 & 0x3F
            self._check_sensor(which)
            default = 0 if which >> 4 else 0xFFFF
            if which >> 4 == 0 and which == 0:
                default = NOMINAL_TEMPERATURE + 30
            return self._thresholds.get(which, default) if current else default
        return None

    def _queues(self) -> int:
        count = self._controller.max_queue_pairs - 1
        return count << 16 | count

    def _check_sensor(self, which: int) -> None:
        if which >> 4 > 1 or which & 0xF not in (0, 0xF):
            raise CommandFailed(Status.INVALID_FIELD, location=46)

    # Set.

    def _set(self, command: Command) -> int | None:
        feature, rule = self._rule(command)
        entry = command.entry
        save = bool(entry.cdw10 & _SAVE)
        if save and not rule.capabilities & _SAVEABLE:
            raise CommandFailed(Status.FEATURE_IDENTIFIER_NOT_SAVEABLE, location=43 | 7 << 8)
        nsid = self._scope(command, rule, change=True)
        value = entry.cdw11
        if rule.data:
            self._set_data(feature, self._controller.take(command, rule.data))
            return 0
        if value & ~rule.mask:
            raise CommandFailed(Status.INVALID_FIELD, location=44)
        result = self._check(feature, value)
        was_cached = self.write_cache
        for one in self._namespaces(nsid):
            self._values[feature, one] = value
            if save:
                self._saved[feature, one] = value
        self._apply()
        self._controller.feature_changed(feature)

        def end(_: object) -> int | None:
            return self._controller.settings.keep(command, result) if save else result

        if was_cached and not self.write_cache:  # from now on the host has no reason to flush
            backends = [namespace.backend for namespace in self._controller.namespaces]

            def work() -> None:
                for backend in backends:
                    backend.flush()

            blocks = any(backend.flush_blocks for backend in backends)
            self._controller.jobs.start(command, work, end, blocks=blocks, write=True, is_last=True)
            return None
        return end(None)

    def _namespaces(self, nsid: int) -> list[int]:
        if nsid == BROADCAST_NSID:
            return [namespace.nsid for namespace in self._controller.namespaces if namespace.attached]
        return [nsid]

    def _check(self, feature: Feature, value: int) -> int:
        """What setting a feature does besides; its result."""
        controller = self._controller
        if feature == Feature.POWER_MANAGEMENT and value & 0x1F:
            raise CommandFailed(Status.INVALID_FIELD, location=44)
        if feature == Feature.NUMBER_OF_QUEUES:
            if controller.has_io_queues:
                raise CommandFailed(Status.COMMAND_SEQUENCE_ERROR)
            if value & 0xFFFF == 0xFFFF or value >> 16 == 0xFFFF:
                raise CommandFailed(Status.INVALID_FIELD, location=44)
            return self._queues()
        if feature == Feature.INTERRUPT_VECTOR_CONFIGURATION:
            vector = value & 0xFFFF
            if vector >= controller.vector_count:
                raise CommandFailed(Status.INVALID_FIELD, location=44)
            if value >> 16:
                if vector == 0:  # the admin queue's, which is never coalesced
                    return 0
                self.vectors_alone.add(vector)
            else:
                self.vectors_alone.discard(vector)
        if feature == Feature.COMMAND_SET_PROFILE and value:
            raise CommandFailed(Status.IO_COMMAND_SET_COMBINATION_REJECTED, location=44)
        if feature == Feature.TEMPERATURE_THRESHOLD:
            self._set_threshold(value)
        return 0

    def _set_threshold(self, value: int) -> None:
        which = value >> 16 & 0x3F
        self._check_sensor(which)
        sensors = (which & 0x30,) if which & 0xF == 0xF else (which,)
        for sensor in sensors:
            self._thresholds[sensor] = value & 0xFFFF
        if self.temperature_warning:
            self._controller.events.post(AsyncEventType.SMART, SmartEvent.TEMPERATURE_THRESHOLD, LogPage.SMART)

    @property
    def temperature_warning(self) -> bool:
        """The temperature is not between its thresholds."""
        temperature = self._controller.health.temperature
        over = self._thresholds.get(0x00, NOMINAL_TEMPERATURE + 30)
        return temperature >= over or temperature <= self._thresholds.get(0x10, 0)

    def _set_data(self, feature: Feature, data: bytes | bytearray) -> None:
        if feature == Feature.HOST_BEHAVIOR_SUPPORT:
            self._host_behavior = bytes(data)
        else:
            self._timestamp = int.from_bytes(data[:6], "little"), 1
            self._timestamp_at = time.monotonic()

    def _now(self) -> bytes:
        """The timestamp: milliseconds, and where they came from. Spec: figure 327."""
        milliseconds, origin = self._timestamp
        milliseconds += int((time.monotonic() - self._timestamp_at) * 1000)
        return (milliseconds & (1 << 48) - 1).to_bytes(6, "little") + bytes([origin << 1, 0])

    # State.

    def restore(self, saved: list[list[int]]) -> None:
        """Takes the saved values of a process before this one; they are current, too.

        Raises:
            ValueError: there is no such feature, or it cannot be saved or have that value.
        """
        values = {}
        for fid, nsid, value in saved:
            rule = FEATURES.get(fid)  # type: ignore[call-overload]
            if rule is None or not rule.capabilities & _SAVEABLE or not 0 <= value <= _DWORD or value & ~rule.mask:
                raise ValueError(f"feature {fid!r} of namespace {nsid!r} is {value!r}")
            values[fid, nsid] = value
        self._saved = values
        self.reset()

    def save(self) -> dict[str, Any]:
        """What is saved."""
        return {
            "values": [[int(fid), nsid, value] for (fid, nsid), value in self._values.items()],
            "saved": [[int(fid), nsid, value] for (fid, nsid), value in self._saved.items()],
            "thresholds": [list(item) for item in self._thresholds.items()],
            "host_behavior": self._host_behavior,
            "timestamp": self._now(),
            "vectors_alone": sorted(self.vectors_alone),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Puts ``save`` back."""
        self._values = {(fid, nsid): value for fid, nsid, value in saved["values"]}
        self._saved = {(fid, nsid): value for fid, nsid, value in saved["saved"]}
        self._thresholds = dict(saved["thresholds"])
        self._host_behavior = saved["host_behavior"]
        self._timestamp = int.from_bytes(saved["timestamp"][:6], "little"), saved["timestamp"][6] >> 1
        self._timestamp_at = time.monotonic()
        self.vectors_alone = set(saved["vectors_alone"])
        self._apply()

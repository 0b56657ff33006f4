"""The second migration protocol: states and the log by DEVICE_FEATURE, data by MIG_DATA_READ and MIG_DATA_WRITE.

Spec: "VFIO_USER_DEVICE_FEATURE", "VFIO_USER_MIG_DATA_READ", "VFIO_USER_MIG_DATA_WRITE".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from vfio_user.errors import InvalidAccess
from vfio_user.protocol.constants import Command
from vfio_user.protocol.feature import (
    DeviceFeature,
    DirtyReport,
    DmaLoggingStart,
    Feature,
    FeatureFlags,
    MigrationFlags,
    MigrationStateData,
    MigrationSupport,
)
from vfio_user.protocol.migration import MigDataRead, MigDataReadReply, MigDataWrite, MigrationState
from vfio_user.protocol.payload import check_argsz
from vfio_user.server.migration import REGION_ACCESSES, Migration

if TYPE_CHECKING:
    from vfio_user.server.commands import Limits
    from vfio_user.server.pci_device import PciDevice

__all__ = ["FeatureMigration"]


class FeatureMigration(Migration):
    """The migration of one device by the second protocol; see ``Migration``.

    A stopped device may be looked at, until its state is being read.
    """

    allowed: ClassVar[Mapping[MigrationState, frozenset[int]]] = {
        MigrationState.STOP: REGION_ACCESSES | {Command.DEVICE_FEATURE},
        MigrationState.STOP_COPY: frozenset({Command.DEVICE_FEATURE, Command.MIG_DATA_READ}),
    }

    def __init__(self, device: PciDevice) -> None:
        super().__init__(device)
        self._features: Mapping[Feature, Callable[[DeviceFeature, bytes], bytes]] = {
            Feature.MIGRATION: self._support,
            Feature.MIG_DEVICE_STATE: self._device_state,
            Feature.DMA_LOGGING_START: self._start_log,
            Feature.DMA_LOGGING_STOP: self._stop_log,
            Feature.DMA_LOGGING_REPORT: self._report,
        }

    @property
    def operations(self) -> Mapping[int, Callable[[bytes, Limits], bytes]]:
        """See ``Migration.operations``."""
        return {
            Command.DEVICE_FEATURE: self._feature,
            Command.MIG_DATA_READ: self._read,
            Command.MIG_DATA_WRITE: self._write,
        }

    def goal_of(self, command: int, payload: bytes) -> MigrationState | None:
        """See ``Migration.goal_of``."""
        if command != Command.DEVICE_FEATURE:
            return None
        request = DeviceFeature.decode(payload)
        if (request.feature, request.operation) != (Feature.MIG_DEVICE_STATE, FeatureFlags.SET):
            return None
        return MigrationStateData.decode(payload[DeviceFeature.SIZE :]).state

    def _feature(self, payload: bytes, _limits: Limits) -> bytes:
        request = DeviceFeature.decode(payload)
        request.check_supported()
        if request.operation & FeatureFlags.PROBE:
            check_argsz(request.argsz, len(payload), "DEVICE_FEATURE")
            return payload
        feature = Feature(request.feature)
        if request.operation == FeatureFlags.SET:
            check_argsz(request.argsz, len(payload), "DEVICE_FEATURE")
            self._features[feature](request, payload[DeviceFeature.SIZE :])
            return payload
        data = self._features[feature](request, payload[DeviceFeature.SIZE :])
        return DeviceFeature(feature, request.operation, DeviceFeature.SIZE + len(data)).encode() + data

    def _support(self, request: DeviceFeature, _data: bytes) -> bytes:
        check_argsz(request.argsz, DeviceFeature.SIZE + MigrationSupport.SIZE, "feature MIGRATION")
        return MigrationSupport(MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY).encode()

    def _device_state(self, request: DeviceFeature, data: bytes) -> bytes:
        if request.operation == FeatureFlags.SET:
            self.go_to(MigrationStateData.decode(data).state)
            return b""
        check_argsz(request.argsz, DeviceFeature.SIZE + MigrationStateData.SIZE, "feature MIG_DEVICE_STATE")
        return MigrationStateData(self.state).encode()

    def _start_log(self, _request: DeviceFeature, data: bytes) -> bytes:
        # Everything is logged, whatever ranges are asked for: what nobody asks a report of costs an integer a chunk.
        self.start_log(DmaLoggingStart.decode(data).page_size)
        return b""

    def _stop_log(self, _request: DeviceFeature, _data: bytes) -> bytes:
        self.stop_log()
        return b""

    def _report(self, request: DeviceFeature, data: bytes) -> bytes:
        wanted = DirtyReport.decode(data)

        def check_room(size: int) -> None:
            check_argsz(request.argsz, DeviceFeature.SIZE + DirtyReport.SIZE + size, "feature DMA_LOGGING_REPORT")

        return wanted.encode() + self.report(wanted.iova, wanted.length, wanted.page_size, check_room)

    def _read(self, payload: bytes, limits: Limits) -> bytes:
        size = MigDataRead.decode(payload).size
        if size > limits.client:
            raise InvalidAccess(f"MIG_DATA_READ of {size} bytes; the client takes {limits.client} (max_data_xfer_size)")
        return MigDataReadReply(self.take(size)).encode()

    def _write(self, payload: bytes, limits: Limits) -> bytes:
        data = MigDataWrite.decode(payload).data
        if len(data) > limits.server:
            raise InvalidAccess(f"MIG_DATA_WRITE of {len(data)} bytes; at most {limits.server} go in one message")
        self.put(data)
        return b""

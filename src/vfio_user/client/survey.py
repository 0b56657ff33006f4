"""Asks a device for everything it says about itself, without changing it: what ``vfio-user inspect`` shows.

Only what cannot have side effects is sent: no reset, no write, no register of a BAR is read. Nothing that comes back is
trusted; what is refused, or makes no sense, is kept as a fault beside what it was about, and the rest is asked for all
the same. A server that hangs up, or is too slow, ends the survey where it is; if it does so at a command it need not
know, nothing is missing but what that would have told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from vfio_user.client.device import VfioUserClient
from vfio_user.client.region import map_areas
from vfio_user.errors import CommandError, CommandTimeoutError, ConnectionClosedError, RemoteProtocolError
from vfio_user.pci.config_space import EXPRESS_SIZE
from vfio_user.protocol.constants import Command, DeviceFlags, RegionFlags, RegionIndex
from vfio_user.protocol.device import DeviceInfo
from vfio_user.protocol.feature import (
    FEATURE_OPERATIONS,
    DeviceFeature,
    Feature,
    FeatureFlags,
    MigrationStateData,
    MigrationSupport,
)
from vfio_user.protocol.framing import close_fds
from vfio_user.protocol.irq import IrqInfo
from vfio_user.protocol.region import RegionInfo
from vfio_user.protocol.region_io_fds import RegionIoFds, RegionIoFdsRequest

__all__ = ["DeviceSurvey", "IrqSurvey", "RegionSurvey", "survey_device"]

T = TypeVar("T")

#: Room for the ioeventfds of a region: more entries than a kernel lets one message carry descriptors for.
_IO_FDS_ROOM = 16 + 256 * 48

#: Seconds for a command a server need not know; rust-vmm's answers nothing any more after one.
_OPTIONAL_SECONDS = 1.0


@dataclass
class RegionSurvey:
    """A region.

    Attributes:
        index: which.
        info: its description; None if there is none.
        mapped: bytes of it that can be mapped here: tried, not only claimed.
        io_fds: writes that may go through an eventfd; empty without any, or on a server that cannot say.
        fault: why something of it is not known.
    """

    index: int
    info: RegionInfo | None = None
    mapped: int = 0
    io_fds: RegionIoFds | None = None
    fault: str = ""


@dataclass
class IrqSurvey:
    """A kind of interrupt.

    Attributes:
        index: which.
        info: its description; None if there is none.
        fault: why there is none.
    """

    index: int
    info: IrqInfo | None = None
    fault: str = ""


@dataclass
class DeviceSurvey:
    """A device.

    Attributes:
        info: what it says of itself; None when not even that came.
        regions: all it claims.
        irqs: all it claims.
        features: what it can do with each that it has.
        migration: which kinds of migration it can; None if none.
        migration_state: the state that is in; None if it has none.
        config: its configuration space, as far as it could be read.
        config_fault: why not all of it could.
        ended: why the survey is not complete; empty when it is.
        optional_ended: why it is not known what the device has of what it need not have: features, ioeventfds.
    """

    info: DeviceInfo | None = None
    regions: list[RegionSurvey] = field(default_factory=list)
    irqs: list[IrqSurvey] = field(default_factory=list)
    features: dict[Feature, FeatureFlags] = field(default_factory=dict)
    migration: MigrationSupport | None = None
    migration_state: MigrationStateData | None = None
    config: bytes = b""
    config_fault: str = ""
    ended: str = ""
    optional_ended: str = ""


def survey_device(
    client: VfioUserClient, *, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
) -> DeviceSurvey:
    """Asks.

    Args:
        client: the device. Its connection's time limit is put back afterwards.
        seconds: for all of it; each command has the connection's limit, too.
        clock: the time, in seconds.
    """
    survey = DeviceSurvey()
    usual = client.connection.timeout
    surveyor = _Surveyor(client, survey, clock() + seconds, clock)
    try:
        surveyor.ask()
        try:
            surveyor.ask_for_more()
        except (CommandTimeoutError, ConnectionClosedError) as exc:
            survey.optional_ended = str(exc)
    except (CommandTimeoutError, ConnectionClosedError, CommandError, RemoteProtocolError) as exc:
        survey.ended = str(exc)
    finally:
        client.connection.timeout = usual
    return survey


class _Surveyor:
    def __init__(
        self, client: VfioUserClient, survey: DeviceSurvey, deadline: float, clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._survey = survey
        self._deadline = deadline
        self._clock = clock
        self._usual = client.connection.timeout

    def ask(self) -> None:
        """What every server knows."""
        survey = self._survey
        with self._limit():
            survey.info = self._client.get_info()
        survey.regions = [RegionSurvey(index) for index in range(survey.info.num_regions)]
        survey.irqs = [IrqSurvey(index) for index in range(survey.info.num_irqs)]
        for region in survey.regions:
            with self._keeping_faults(region):
                self._region(region)
        for irq in survey.irqs:
            with self._keeping_faults(irq):
                irq.info = self._client.irq_info(irq.index)
        if survey.info.flags & DeviceFlags.PCI and len(survey.regions) > RegionIndex.CONFIG:
            self._config(survey.regions[RegionIndex.CONFIG].info)

    def ask_for_more(self) -> None:
        """What not every server knows: some hang up at a command they do not know, or never answer again."""
        survey = self._survey
        self._usual = min(self._usual, _OPTIONAL_SECONDS)
        self._features()
        for region in survey.regions:
            info = region.info
            if info is not None and info.size and info.flags & RegionFlags.WRITE and info.index != RegionIndex.CONFIG:
                region.io_fds = self._unless_refused(partial(self._io_fds, region.index))

    @contextmanager
    def _limit(self) -> Iterator[None]:
        """What is asked in it has the time that is left."""
        left = self._deadline - self._clock()
        if left <= 0:
            raise CommandTimeoutError("the server answers too slowly: the time for all of it is over")
        self._client.connection.timeout = min(left, self._usual)
        yield

    @contextmanager
    def _keeping_faults(self, what: RegionSurvey | IrqSurvey) -> Iterator[None]:
        with self._limit():
            try:
                yield
            except (CommandError, RemoteProtocolError) as exc:
                what.fault = str(exc)
                self._client.connection.check_open()

    def _unless_refused(self, ask: Callable[[], T]) -> T | None:
        """Of what a device need not have, a refusal, or an answer that makes no sense, says that it has not."""
        with self._limit():
            try:
                return ask()
            except (CommandError, RemoteProtocolError):
                self._client.connection.check_open()
                return None

    def _region(self, region: RegionSurvey) -> None:
        region.info, fd = self._client.region_info(region.index)
        if fd is None:
            return
        try:
            areas = map_areas(region.info, fd)
        finally:
            close_fds([fd])
        region.mapped = sum(area.end - area.offset for area in areas)
        for area in areas:
            area.close()

    def _config(self, info: RegionInfo | None) -> None:
        if info is None:
            return
        with self._limit():
            try:
                self._survey.config = self._client.region_read(RegionIndex.CONFIG, 0, min(info.size, EXPRESS_SIZE))
            except (CommandError, RemoteProtocolError) as exc:
                self._survey.config_fault = str(exc)
                self._client.connection.check_open()

    def _features(self) -> None:
        for feature in Feature:
            if self._unless_refused(partial(self._feature, feature, FeatureFlags.PROBE)) is not None:
                self._survey.features[feature] = FEATURE_OPERATIONS[feature]
        if Feature.MIGRATION in self._survey.features:
            data = self._unless_refused(partial(self._feature, Feature.MIGRATION, FeatureFlags.GET))
            self._survey.migration = self._unless_refused(partial(MigrationSupport.decode, data or b""))
        if Feature.MIG_DEVICE_STATE in self._survey.features:
            data = self._unless_refused(partial(self._feature, Feature.MIG_DEVICE_STATE, FeatureFlags.GET))
            self._survey.migration_state = self._unless_refused(partial(MigrationStateData.decode, data or b""))

    def _feature(self, feature: Feature, operation: FeatureFlags) -> bytes:
        """The data of a feature; none with PROBE, which asks whether it can do all there is to do with it."""
        if operation & FeatureFlags.PROBE:
            operation |= FEATURE_OPERATIONS[feature]
        size = DeviceFeature.SIZE + MigrationStateData.SIZE
        reply = self._client.connection.request(
            Command.DEVICE_FEATURE,
            DeviceFeature(feature, operation, size).encode(),
            max_payload=size,
            request=f"DEVICE_FEATURE {feature.name}",
        )
        return reply.payload[DeviceFeature.SIZE :]

    def _io_fds(self, index: int) -> RegionIoFds:
        reply = self._client.connection.request(
            Command.DEVICE_GET_REGION_IO_FDS,
            RegionIoFdsRequest(index, _IO_FDS_ROOM).encode(),
            max_payload=_IO_FDS_ROOM,
            max_fds=self._client.connection.offer.max_msg_fds,
            request=f"DEVICE_GET_REGION_IO_FDS of region {index}",
        )
        close_fds(reply.fds)
        return RegionIoFds.decode(reply.payload)

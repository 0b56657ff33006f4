"""What the peer says of itself: learned once, before the checks, so that these know what to ask about.

Nothing is judged here. What cannot be learned stays empty, and the checks that need it say so.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import Command, IrqIndex, RegionFlags, RegionIndex
from vfio_user.protocol.feature import DeviceFeature, Feature, FeatureFlags
from vfio_user.protocol.region import RegionInfo
from vfio_user.testing.conformance.check import DoesNotApply, Unmet

if TYPE_CHECKING:
    from vfio_user.testing.conformance.bench import Bench

__all__ = ["Facts", "IrqFacts", "RegionFacts", "index_name", "survey"]

#: Regions and kinds of interrupt asked about, however many are claimed; QEMU's limits.
_MAX_REGIONS = 100
_MAX_IRQS = 50


@dataclass(frozen=True, slots=True)
class RegionFacts:
    """One region.

    Attributes:
        index: which.
        flags: ``RegionFlags``.
        size: bytes; 0 for one that is not there.
        argsz: bytes of its whole description.
        payload: its whole description.
        had_fd: a descriptor came with that.
    """

    index: int
    flags: int
    size: int
    argsz: int
    payload: bytes
    had_fd: bool

    @property
    def decoded(self) -> RegionInfo | None:
        """It, with its areas; None where its capabilities make no sense."""
        try:
            return RegionInfo.decode(self.payload)
        except RemoteProtocolError:
            return None


@dataclass(frozen=True, slots=True)
class IrqFacts:
    """One kind of interrupt.

    Attributes:
        index: which.
        flags: ``IrqInfoFlags``.
        count: vectors.
    """

    index: int
    flags: int
    count: int


@dataclass(slots=True)
class Facts:
    """See the module.

    Attributes:
        carries_fds: the connection does.
        version: (major, minor) of the answer to 0.0.
        capabilities: what stood in it.
        num_regions: as claimed.
        num_irqs: as claimed.
        device_flags: as claimed.
        regions: by index.
        irqs: by index.
        migration: flags of the feature MIGRATION; None where there is none.
        config: the first 256 bytes of configuration space; empty where they cannot be read.
    """

    carries_fds: bool = False
    version: tuple[int, int] = (0, 0)
    capabilities: dict[str, Any] = field(default_factory=dict)
    num_regions: int = 0
    num_irqs: int = 0
    device_flags: int = 0
    regions: dict[int, RegionFacts] = field(default_factory=dict)
    irqs: dict[int, IrqFacts] = field(default_factory=dict)
    migration: int | None = None
    config: bytes = b""

    def region(self, index: int) -> RegionFacts:
        """A region that is there.

        Raises:
            DoesNotApply: it is not.
        """
        region = self.regions.get(index)
        if region is None or not region.size:
            raise DoesNotApply(f"the device has no {index_name(RegionIndex, index)}")
        return region

    def absent_region(self) -> int:
        """The index of a region that may be asked about, and is not there.

        Raises:
            DoesNotApply: all are there.
        """
        for region in self.regions.values():
            if not region.size:
                return region.index
        raise DoesNotApply("the device has every region there can be")

    def vectors(self, least: int = 1) -> IrqFacts:
        """A kind of interrupt with that many vectors at least: MSI-X, MSI or INTx, in this order.

        Raises:
            DoesNotApply: there is none.
        """
        for index in (IrqIndex.MSIX, IrqIndex.MSI, IrqIndex.INTX):
            irq = self.irqs.get(index)
            if irq is not None and irq.count >= least:
                return irq
        raise DoesNotApply(f"no kind of interrupt has {least} vectors" if least > 1 else "the device has no interrupts")

    def need_fds(self) -> None:
        """Checks that descriptors can be sent.

        Raises:
            DoesNotApply: they cannot.
        """
        if not self.carries_fds:
            raise DoesNotApply("only UNIX sockets carry descriptors")

    def need_migration(self) -> int:
        """The device's ``MigrationFlags``.

        Raises:
            DoesNotApply: it cannot be migrated.
        """
        if self.migration is None:
            raise DoesNotApply("the device has no migration (feature MIGRATION)")
        return self.migration

    def need_write_multiple(self) -> None:
        """Checks that REGION_WRITE_MULTI was agreed on.

        Raises:
            DoesNotApply: it was not.
        """
        if self.capabilities.get("write_multiple") is not True:
            raise DoesNotApply("the server did not say write_multiple")

    @property
    def max_data_xfer_size(self) -> int:
        """Bytes the server takes in one access."""
        size = self.capabilities.get("max_data_xfer_size")
        return size if isinstance(size, int) and size > 0 else 1 << 20


def index_name(kind: type[RegionIndex | IrqIndex], index: int) -> str:
    """``BAR0``; the number of what has no name."""
    try:
        return kind(index).name
    except ValueError:
        return f"index {index}"


def survey(bench: Bench) -> Facts:
    """Learns what can be learned.

    Raises:
        Unmet: no version could be agreed on: there is nothing to examine.
        ConnectError: nobody listens.
    """
    facts = Facts()
    bench.facts = facts
    reply = bench.version_reply
    facts.carries_fds = bench.peer.wire.carries_fds
    if len(reply.payload) >= 4:
        facts.version = struct.unpack_from("<HH", reply.payload)
    try:
        facts.capabilities = dict(json.loads(reply.payload[4:].rstrip(b"\0")).get("capabilities", {}))
    except (ValueError, TypeError, AttributeError):
        facts.capabilities = {}
    for learn in (_learn_info, _learn_regions, _learn_irqs, _learn_config, _learn_migration):
        try:
            learn(bench, facts)
        except Unmet:
            if bench.peer.is_out_of_step:
                bench.drop()
        finally:
            bench.tidy()
    return facts


def _learn_info(bench: Bench, facts: Facts) -> None:
    payload = bench.success(bench.ask(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)))
    if len(payload) >= 16:
        _, facts.device_flags, facts.num_regions, facts.num_irqs = struct.unpack_from("<IIII", payload)


def _learn_regions(bench: Bench, facts: Facts) -> None:
    for index in range(min(facts.num_regions, _MAX_REGIONS)):
        argsz = 32
        for _ in range(2):
            message = bench.ask(Command.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0))
            if message.is_error or len(message.payload) < 32:
                break
            needed, flags, _, _, size, _ = struct.unpack_from("<IIIIQQ", message.payload)
            facts.regions[index] = RegionFacts(index, flags, size, needed, message.payload, bool(message.fds))
            if not argsz < needed <= 65536:
                break
            argsz = needed


def _learn_irqs(bench: Bench, facts: Facts) -> None:
    for index in range(min(facts.num_irqs, _MAX_IRQS)):
        message = bench.ask(Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
        if not message.is_error and len(message.payload) >= 16:
            _, flags, _, count = struct.unpack_from("<IIII", message.payload)
            facts.irqs[index] = IrqFacts(index, flags, count)


def _learn_config(bench: Bench, facts: Facts) -> None:
    config = facts.regions.get(RegionIndex.CONFIG)
    if config is not None and config.size >= 256 and config.flags & RegionFlags.READ:
        request = struct.pack("<QII", 0, RegionIndex.CONFIG, 256)
        facts.config = bench.success(bench.ask(Command.REGION_READ, request))[16:]


def _learn_migration(bench: Bench, facts: Facts) -> None:
    request = DeviceFeature(Feature.MIGRATION, FeatureFlags.GET, 16).encode()
    message = bench.ask(Command.DEVICE_FEATURE, request)
    if not message.is_error and len(message.payload) >= 16:
        (facts.migration,) = struct.unpack_from("<Q", message.payload, 8)

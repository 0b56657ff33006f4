"""What a device needs to use its own translations and process address spaces: ATS, PASID, page requests.

Software turns them on through these registers, and the device hears of it as ``on_capability``. vfio-user has no
messages for translated requests; DMA goes through the client's mappings all the same.

Spec: PCI Express Base 10.5 (ATS and page requests), 7.8.9 (PASID).
"""

from __future__ import annotations

from vfio_user.pci.capabilities.base import ExtendedCapability
from vfio_user.pci.capabilities.express import PciExpress
from vfio_user.pci.registers import RO, RW1C, W1P, Field, Register, before_write, on_change, on_write

__all__ = ["AddressTranslationServices", "PageRequest", "Pasid"]


class AddressTranslationServices(ExtendedCapability):
    """Address translation services (ATS).

    Args:
        invalidate_queue_depth: invalidate requests it takes before it pushes back, 1 to 32.
        page_aligned: its untranslated addresses are always page aligned.
        global_invalidate: it takes invalidations of all PASIDs at once.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: the queue depth is not in 1..32.
    """

    cap_id = 0x0F

    capability = Register(
        0x04,
        width=16,
        access=RO,
        fields=[
            Field("invalidate_queue_depth", (4, 0), doc="0 means 32"),
            Field("page_aligned", 5),
            Field("global_invalidate", 6),
            Field("relaxed_ordering", 7),
        ],
    )
    control = Register(
        0x06,
        width=16,
        fields=[Field("smallest_translation_unit", (4, 0), doc="4096 << n bytes"), Field("enable", 15)],
    )

    def __init__(
        self,
        *,
        invalidate_queue_depth: int = 32,
        page_aligned: bool = True,
        global_invalidate: bool = False,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if not 1 <= invalidate_queue_depth <= 32:
            raise self.refuse(f"invalidate_queue_depth={invalidate_queue_depth}; it is 1 to 32")
        self._depth = invalidate_queue_depth % 32
        self._page_aligned = page_aligned
        self._global_invalidate = global_invalidate

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.capability.invalidate_queue_depth = self._depth
        self.capability.page_aligned = self._page_aligned
        self.capability.global_invalidate = self._global_invalidate

    @property
    def enabled(self) -> bool:
        """Software turned it on."""
        return bool(self.control.enable)

    @on_change("control")
    def _tell(self) -> None:
        self.notify("control")


class PageRequest(ExtendedCapability):
    """The page request interface (PRI).

    Args:
        capacity: outstanding page requests it can have.
        pasid_required: responses must carry the PASID of the request.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: ``capacity`` does not fit 32 bits.
    """

    cap_id = 0x13

    control = Register(0x04, width=16, fields=[Field("enable", 0), Field("reset_", 1, access=W1P)])
    status = Register(
        0x06,
        width=16,
        access=RO,
        fields=[
            Field("response_failure", 0, access=RW1C),
            Field("unexpected_index", 1, access=RW1C),
            Field("stopped", 8, reset=1),
            Field("pasid_required", 15),
        ],
    )
    outstanding_capacity = Register(0x08, access=RO)
    outstanding_allocation = Register(0x0C)

    def __init__(self, *, capacity: int = 32, pasid_required: bool = False, at: int | None = None) -> None:
        super().__init__(at=at)
        self.check_range(capacity=(capacity, 0xFFFF_FFFF))
        self._requests = capacity
        self._pasid_required = pasid_required

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.outstanding_capacity = self._requests
        self.status.pasid_required = self._pasid_required

    @property
    def enabled(self) -> bool:
        """Software turned it on."""
        return bool(self.control.enable)

    @on_change("control.enable")
    def _start_or_stop(self, enable: int) -> None:
        # A device with requests in flight would set Stopped once they are answered; ours has none on the wire.
        self.status.stopped = not enable
        self.notify("control")

    @on_write("control.reset_")
    def _reset_requests(self, value: int) -> None:
        # "[...] clears the associated implementation's page request credit counter and pending request state",
        # and only while the interface is off.
        if value and not self.enabled:
            self.status.response_failure = self.status.unexpected_index = 0
            self.notify("control")


class Pasid(ExtendedCapability):
    """Process address space ids.

    Args:
        width: bits of a PASID it supports, 0 to 20.
        execute: it can ask for execute permission.
        privileged: it can ask for privileged access.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: ``width`` is not in 0..20.
    """

    cap_id = 0x1B

    capability = Register(
        0x04,
        width=16,
        access=RO,
        fields=[Field("execute", 1), Field("privileged", 2), Field("width", (12, 8))],
    )
    control = Register(0x06, width=16, fields=[Field("enable", 0), Field("execute", 1), Field("privileged", 2)])

    def __init__(
        self, *, width: int = 20, execute: bool = False, privileged: bool = False, at: int | None = None
    ) -> None:
        super().__init__(at=at)
        if not 0 <= width <= 20:
            raise self.refuse(f"width={width}; a PASID has 0 to 20 bits")
        self._bits = width << 8 | privileged << 2 | execute << 1

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.capability = self._bits
        # A PASID travels as an end-to-end TLP prefix; Linux leaves PASID off unless the device says it has one.
        express = None if self._host is None else self._host.find(PciExpress)
        if express is not None:
            express.device_capabilities_2.extended_fmt = 1
            express.device_capabilities_2.end_to_end_prefix = 1
            express.device_capabilities_2.max_end_to_end_prefixes = 1

    @property
    def enabled(self) -> bool:
        """Software turned it on."""
        return bool(self.control.enable)

    @before_write("control")
    def _limit(self, value: int) -> int:
        return value & (self._bits & 0b110 | 1)

    @on_change("control")
    def _tell(self) -> None:
        self.notify("control")

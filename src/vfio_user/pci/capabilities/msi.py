"""Message signalled interrupts: one address, up to 32 consecutive messages.

Clients that speak vfio-user deliver the interrupts themselves, through the eventfds of SET_IRQS. What stands here is
what the guest sees and what the device may ask: is MSI on, with how many vectors.

Spec: PCI 3.0 6.8.1; PCI Express Base 7.7.1.
"""

from __future__ import annotations

from vfio_user.pci.capabilities.base import Capability
from vfio_user.pci.registers import RO, Field, Register, before_write, on_change

__all__ = ["Msi"]

_MAX_VECTORS = 32
_64_BIT = {"control.address_64": 1}
_32_BIT = {"control.address_64": 0}


class Msi(Capability):
    """The MSI capability.

    Args:
        vectors: messages the device can send, a power of two from 1 to 32. Software may enable fewer.
        address_64: the message address has 64 bits; PCI Express endpoints must have it so.
        per_vector_masking: software can mask single vectors, and the device shows which are pending.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: ``vectors`` is no power of two, or not in 1..32.
    """

    cap_id = 0x05

    control = Register(
        0x02,
        width=16,
        fields=[
            Field("enable", 0),
            Field("multiple_message_capable", (3, 1), access=RO, doc="log2 of the vectors it asks for"),
            Field("multiple_message_enable", (6, 4), doc="log2 of the vectors it got"),
            Field("address_64", 7, access=RO),
            Field("per_vector_masking", 8, access=RO),
        ],
    )
    address = Register(0x04, fields=[Field("address", (31, 2))], doc="message address, aligned to four bytes")
    address_high = Register(0x08, when=_64_BIT)
    data_64 = Register(0x0C, width=16, when=_64_BIT)
    mask_64 = Register(0x10, when=_64_BIT)
    pending_64 = Register(0x14, access=RO, when=_64_BIT)
    data_32 = Register(0x08, width=16, when=_32_BIT)
    mask_32 = Register(0x0C, when=_32_BIT)
    pending_32 = Register(0x10, access=RO, when=_32_BIT)

    def __init__(
        self,
        *,
        vectors: int = 1,
        address_64: bool = True,
        per_vector_masking: bool = False,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        # Without the mask and pending registers the capability ends early, and what follows is another's.
        self.size = (12, 16, 20, 24)[address_64 + 2 * per_vector_masking]
        if not 1 <= vectors <= _MAX_VECTORS or vectors & (vectors - 1):
            better = min(1 << max(vectors - 1, 0).bit_length(), _MAX_VECTORS)
            raise self.refuse(
                f"vectors={vectors}; MSI has a power of two from 1 to 32: write vectors={better}, or use "
                "MsiX(vectors=...), which takes any number up to 2048"
            )
        self.vectors = vectors
        self._address_64 = address_64
        self._per_vector_masking = per_vector_masking

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.control.multiple_message_capable = self.vectors.bit_length() - 1
        self.control.address_64 = self._address_64
        self.control.per_vector_masking = self._per_vector_masking

    @property
    def enabled(self) -> bool:
        """Software turned MSI on."""
        return bool(self.control.enable)

    @property
    def vectors_enabled(self) -> int:
        """How many vectors software allows, 0 while MSI is off."""
        return 1 << self.control.multiple_message_enable if self.enabled else 0

    @property
    def message(self) -> tuple[int, int]:
        """Address and data of vector 0, as software wrote them."""
        if self._address_64:
            return self.address_high << 32 | self.address, int(self.data_64)
        return int(self.address), int(self.data_32)

    @property
    def masked(self) -> int:
        """The masked vectors, bit i for vector i."""
        return int(self.mask_64 if self._address_64 else self.mask_32)

    def set_pending(self, vector: int, pending: bool) -> None:
        """Shows software that a masked vector waits, or no longer does. Without per-vector masking nothing shows.

        Raises:
            IndexError: there is no such vector.
        """
        if not 0 <= vector < self.vectors:
            raise IndexError(f"MSI vector {vector} of {self.vectors}: vectors count from 0")
        if not self._per_vector_masking:
            return
        bit = 1 << vector
        if self._address_64:
            self.pending_64 = self.pending_64 & ~bit | bit * pending
        else:
            self.pending_32 = self.pending_32 & ~bit | bit * pending

    @before_write("control.multiple_message_enable")
    def _limit_vectors(self, value: int) -> int:
        # More than multiple_message_capable is software's mistake; the device cannot send more than it has.
        return min(value, self.vectors.bit_length() - 1)

    @before_write("mask_64")
    @before_write("mask_32")
    def _limit_mask(self, value: int) -> int:
        return value & (1 << self.vectors) - 1

    @on_change("control")
    def _tell_control(self) -> None:
        host = self.host
        host.config.call_after_access(lambda: host.events.on_msi(self.enabled, self.vectors_enabled))

    @on_change("mask_64")
    @on_change("mask_32")
    def _tell_masks(self, new: int, old: int) -> None:
        host = self.host
        for vector in range(self.vectors):
            if (new ^ old) >> vector & 1:
                host.config.call_after_access(host.events.on_msi_mask, vector, bool(new >> vector & 1))

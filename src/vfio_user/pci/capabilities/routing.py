"""How a function's requests are named and routed: ARI, ACS.

Spec: PCI Express Base 7.8.8 (ARI), 7.7.8 and 6.12 (ACS).
"""

from __future__ import annotations

from vfio_user.pci.capabilities.base import ExtendedCapability
from vfio_user.pci.registers import RO, Field, Register, before_write, on_change

__all__ = ["AccessControlServices", "AlternativeRoutingId"]


class AlternativeRoutingId(ExtendedCapability):
    """Alternative routing-id interpretation: up to 256 functions in a device.

    Args:
        next_function: number of the next function of the device, 0 for the last one.
        mfvc_groups: functions are in groups for arbitration.
        acs_groups: functions are in groups for access control.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: ``next_function`` does not fit 8 bits.
    """

    cap_id = 0x0E

    capability = Register(
        0x04,
        width=16,
        access=RO,
        fields=[Field("mfvc_groups", 0), Field("acs_groups", 1), Field("next_function", (15, 8))],
    )
    control = Register(
        0x06,
        width=16,
        fields=[Field("mfvc_groups", 0), Field("acs_groups", 1), Field("function_group", (6, 4))],
    )

    def __init__(
        self,
        *,
        next_function: int = 0,
        mfvc_groups: bool = False,
        acs_groups: bool = False,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        self.check_range(next_function=(next_function, 0xFF))
        self._bits = next_function << 8 | acs_groups << 1 | mfvc_groups

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.capability = self._bits

    @before_write("control")
    def _limit(self, value: int) -> int:
        groups = self._bits & 0b11
        # Function groups exist only when one of the two uses them.
        return value & (groups | (0x70 if groups else 0))

    @on_change("control")
    def _tell(self) -> None:
        self.notify("control")


_ACS_BITS = (
    "source_validation",
    "translation_blocking",
    "request_redirect",
    "completion_redirect",
    "upstream_forwarding",
    "egress_control",
    "direct_translated",
)


class AccessControlServices(ExtendedCapability):
    """Access control services: what peer-to-peer requests may do.

    Args:
        source_validation: downstream ports only.
        translation_blocking: downstream ports only.
        request_redirect: peer-to-peer requests can be sent upstream.
        completion_redirect: so can completions.
        upstream_forwarding: downstream ports only.
        egress_control: single peers can be barred; ``egress_vector_size`` says how many.
        direct_translated: translated requests may go to peers directly.
        egress_vector_size: bits of the egress control vector, 1 to 256, with ``egress_control``.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: the vector's size is not in 1..256, or given without ``egress_control``.
    """

    cap_id = 0x0D

    capability = Register(
        0x04,
        width=16,
        access=RO,
        fields=[
            *(Field(name, bit) for bit, name in enumerate(_ACS_BITS)),
            Field("enhanced", 7),
            Field("egress_vector_size", (15, 8), doc="0 means 256"),
        ],
    )
    control = Register(0x06, width=16, fields=[Field(name, bit) for bit, name in enumerate(_ACS_BITS)])
    egress_vector = Register(0x08, count=8)

    def __init__(
        self,
        *,
        source_validation: bool = False,
        translation_blocking: bool = False,
        request_redirect: bool = False,
        completion_redirect: bool = False,
        upstream_forwarding: bool = False,
        egress_control: bool = False,
        direct_translated: bool = False,
        egress_vector_size: int = 0,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if egress_control != (1 <= egress_vector_size <= 256):
            raise self.refuse(
                f"egress_control={egress_control} with egress_vector_size={egress_vector_size}; the vector has 1 to "
                "256 bits, and is there with egress_control alone"
            )
        self.size = 8 + -(-egress_vector_size // 32) * 4
        self._vector_size = egress_vector_size
        bits = (
            source_validation,
            translation_blocking,
            request_redirect,
            completion_redirect,
            upstream_forwarding,
            egress_control,
            direct_translated,
        )
        self._bits = sum(present << bit for bit, present in enumerate(bits))

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.capability = self._vector_size % 256 << 8 | self._bits

    @before_write("control")
    def _limit(self, value: int) -> int:
        return value & self._bits

    @before_write("egress_vector")
    def _limit_vector(self, index: int, value: int) -> int:
        left = self._vector_size - 32 * index
        return value & (1 << max(left, 0)) - 1

    @on_change("control")
    def _tell(self) -> None:
        self.notify("control")

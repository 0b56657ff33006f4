"""The PCI Express capability of an endpoint: device and link, first and second generation registers.

A function that declares it has 4096 bytes of configuration space and may have extended capabilities. QEMU never turns a
function level reset into a command of its own: the guest's write of Initiate Function Level Reset arrives here, and
resets the function.

Spec: PCI Express Base 7.5.3; 6.6.2 for what a function level reset leaves alone.
"""

from __future__ import annotations

import enum

from vfio_user.pci.capabilities.base import Capability
from vfio_user.pci.config_registers import STICKY
from vfio_user.pci.registers import RO, RW1C, W1P, Field, Register, ResetKind, before_write, on_write

__all__ = ["LINK_SPEEDS", "PciExpress", "PortType"]

#: Link speeds in GT/s, in the order of their encoding, which begins at 1.
LINK_SPEEDS = (2.5, 5.0, 8.0, 16.0, 32.0, 64.0)

_PAYLOADS = (128, 256, 512, 1024, 2048, 4096)
_LINK_WIDTHS = (1, 2, 4, 8, 12, 16, 32)


class PortType(enum.IntEnum):
    """The kinds of function this package builds. Spec: PCI Express Base 7.5.3.2, Device/Port Type."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_COMPLEX_INTEGRATED_ENDPOINT = 9


class PciExpress(Capability):
    """The PCI Express capability, version 2.

    Args:
        port_type: what the function is.
        flr: it can do function level resets.
        max_payload: bytes, 128 to 4096: the largest payload it supports.
        link_speed: GT/s of the link, the greatest and the current one; one of LINK_SPEEDS.
        link_width: lanes.
        extended_tags: it can use eight-bit tags.
        aspm: 0 to 3: bit 0 L0s, bit 1 L1.
        ltr: it supports latency tolerance reporting.
        atomic_completer: it completes 32- and 64-bit AtomicOps.
        interrupt_message: the MSI or MSI-X vector of its own events.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: a value is none of those the specification encodes.
    """

    cap_id = 0x10

    capabilities = Register(
        0x02,
        width=16,
        access=RO,
        fields=[
            Field("version", (3, 0), reset=2),
            Field("port_type", (7, 4), values=PortType),
            Field("slot_implemented", 8),
            Field("interrupt_message", (13, 9)),
        ],
    )
    device_capabilities = Register(
        0x04,
        access=RO,
        fields=[
            Field("max_payload", (2, 0), doc="128 << n bytes"),
            Field("phantom_functions", (4, 3)),
            Field("extended_tags", 5),
            Field("l0s_latency", (8, 6)),
            Field("l1_latency", (11, 9)),
            Field("role_based_error_reporting", 15, reset=1),
            Field("slot_power_limit", (25, 18)),
            Field("slot_power_scale", (27, 26)),
            Field("flr", 28),
        ],
    )
    device_control = Register(
        0x08,
        width=16,
        fields=[
            Field("correctable_enable", 0),
            Field("nonfatal_enable", 1),
            Field("fatal_enable", 2),
            Field("unsupported_request_enable", 3),
            Field("relaxed_ordering", 4, reset=1),
            # "Max_Payload_Size" is one of the few things a function level reset does not touch.
            Field("max_payload", (7, 5), sticky=[ResetKind.FLR]),
            Field("extended_tags", 8),
            Field("phantom_functions", 9, access=RO),
            Field("aux_power", 10, access=RO),
            Field("no_snoop", 11, reset=1),
            Field("max_read_request", (14, 12), reset=2, doc="128 << n bytes"),
            Field("initiate_flr", 15, access=W1P),
        ],
    )
    device_status = Register(
        0x0A,
        width=16,
        access=RW1C,
        fields=[
            Field("correctable", 0),
            Field("nonfatal", 1),
            Field("fatal", 2),
            Field("unsupported_request", 3),
            Field("aux_power", 4, access=RO),
            Field("transactions_pending", 5, access=RO),
        ],
    )
    link_capabilities = Register(
        0x0C,
        access=RO,
        fields=[
            Field("max_speed", (3, 0)),
            Field("max_width", (9, 4)),
            Field("aspm", (11, 10)),
            Field("l0s_exit_latency", (14, 12)),
            Field("l1_exit_latency", (17, 15)),
            Field("clock_power_management", 18),
            Field("aspm_optionality_compliance", 22),
            Field("port_number", (31, 24)),
        ],
    )
    link_control = Register(
        0x10,
        width=16,
        # Those a function level reset must leave alone, as the other functions of the link share them.
        fields=[
            Field("aspm", (1, 0), sticky=[ResetKind.FLR]),
            Field("read_completion_boundary", 3, sticky=[ResetKind.FLR]),
            Field("common_clock", 6, sticky=[ResetKind.FLR]),
            Field("extended_synch", 7, sticky=[ResetKind.FLR]),
            Field("clock_power_management", 8, access=RO),
            Field("hardware_autonomous_width_disable", 9, sticky=[ResetKind.FLR]),
        ],
    )
    link_status = Register(
        0x12,
        width=16,
        access=RO,
        fields=[
            Field("speed", (3, 0)),
            Field("width", (9, 4)),
            Field("slot_clock", 12),
        ],
    )
    slot_capabilities = Register(0x14, access=RO, doc="endpoints have no slot: 0")
    slot_control = Register(0x18, width=16, access=RO)
    slot_status = Register(0x1A, width=16, access=RO)
    root_control = Register(0x1C, width=16, access=RO)
    root_capabilities = Register(0x1E, width=16, access=RO)
    root_status = Register(0x20, access=RO)
    device_capabilities_2 = Register(
        0x24,
        access=RO,
        fields=[
            Field("completion_timeout_ranges", (3, 0)),
            Field("completion_timeout_disable", 4, reset=1),
            Field("atomic_routing", 6),
            Field("atomic_completer_32", 7),
            Field("atomic_completer_64", 8),
            Field("atomic_completer_128", 9),
            Field("ltr", 11),
            Field("tph_completer", (13, 12)),
            Field("obff", (19, 18)),
            Field("extended_fmt", 20),
            Field("end_to_end_prefix", 21),
            Field("max_end_to_end_prefixes", (23, 22)),
        ],
    )
    device_control_2 = Register(
        0x28,
        width=16,
        fields=[
            Field("completion_timeout", (3, 0), access=RO),
            Field("completion_timeout_disable", 4),
            Field("ari_forwarding", 5, access=RO, doc="of ports with something below them"),
            Field("atomic_requester", 6),
            Field("atomic_egress_blocking", 7, access=RO),
            Field("ido_request", 8),
            Field("ido_completion", 9),
            Field("ltr", 10),
            Field("obff", (14, 13), access=RO),
            Field("end_to_end_prefix_blocking", 15, access=RO),
        ],
    )
    device_status_2 = Register(0x2A, width=16, access=RO)
    link_capabilities_2 = Register(
        0x2C,
        access=RO,
        fields=[Field("speeds", (7, 1), doc="bit i: LINK_SPEEDS[i]"), Field("crosslink", 8), Field("drs", 31)],
    )
    link_control_2 = Register(
        0x30,
        width=16,
        fields=[
            Field("target_speed", (3, 0), sticky=STICKY),
            Field("enter_compliance", 4, sticky=STICKY),
            Field("hardware_autonomous_speed_disable", 5, sticky=STICKY),
            Field("selectable_deemphasis", 6, access=RO),
            Field("transmit_margin", (9, 7), sticky=STICKY),
            Field("enter_modified_compliance", 10, sticky=STICKY),
            Field("compliance_sos", 11, sticky=STICKY),
            Field("compliance_preset", (15, 12), sticky=STICKY),
        ],
    )
    link_status_2 = Register(
        0x32,
        width=16,
        access=RO,
        fields=[
            Field("deemphasis", 0),
            Field("equalization", (4, 1), doc="complete, and phases 1 to 3 successful"),
            Field("equalization_request", 5, access=RW1C, sticky=STICKY),
        ],
    )
    slot_capabilities_2 = Register(0x34, access=RO)
    slot_control_2 = Register(0x38, width=16, access=RO)
    slot_status_2 = Register(0x3A, width=16, access=RO)

    def __init__(
        self,
        *,
        port_type: PortType = PortType.ENDPOINT,
        flr: bool = True,
        max_payload: int = 256,
        link_speed: float = 2.5,
        link_width: int = 1,
        extended_tags: bool = True,
        aspm: int = 0,
        ltr: bool = False,
        atomic_completer: bool = False,
        interrupt_message: int = 0,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        for what, value, choices in (
            ("max_payload", max_payload, _PAYLOADS),
            ("link_speed", link_speed, LINK_SPEEDS),
            ("link_width", link_width, _LINK_WIDTHS),
            ("aspm", aspm, range(4)),
            ("interrupt_message", interrupt_message, range(32)),
        ):
            if value not in choices:
                shown = f"0 to {choices[-1]}" if isinstance(choices, range) else ", ".join(map(str, choices))
                raise self.refuse(f"{what}={value}; the register can say {shown}")
        self.port_type = PortType(port_type)
        self._has_flr = flr
        self._payload = _PAYLOADS.index(max_payload)
        self._speed = LINK_SPEEDS.index(link_speed) + 1
        self._width = link_width
        self._has_extended_tags = extended_tags
        self._aspm = aspm
        self._has_ltr = ltr
        self._atomic_completer = atomic_completer
        self._interrupt_message = interrupt_message

    @property
    def has_link(self) -> bool:
        """An endpoint inside the root complex has no link, and its link registers are 0."""
        return self.port_type is not PortType.ROOT_COMPLEX_INTEGRATED_ENDPOINT

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.capabilities.port_type = self.port_type
        self.capabilities.interrupt_message = self._interrupt_message
        self.device_capabilities.max_payload = self._payload
        self.device_capabilities.extended_tags = self._has_extended_tags
        self.device_capabilities.flr = self._has_flr
        self.device_capabilities_2.ltr = self._has_ltr
        self.device_capabilities_2.atomic_completer_32 = self._atomic_completer
        self.device_capabilities_2.atomic_completer_64 = self._atomic_completer
        if self.has_link:
            self.link_capabilities.max_speed = self.link_status.speed = self._speed
            self.link_capabilities.max_width = self.link_status.width = self._width
            self.link_capabilities.aspm = self._aspm
            self.link_capabilities.aspm_optionality_compliance = 1
            self.link_capabilities_2.speeds = (1 << self._speed) - 1

    def reset(self, kind: ResetKind = ResetKind.DEVICE) -> None:
        """Resets the registers; the target link speed starts at the greatest one, and is sticky from then on."""
        super().reset(kind)
        if kind is ResetKind.POWER_ON and self.has_link:
            self.link_control_2.target_speed = self._speed

    def report(self, severity: str) -> bool:
        """Latches an error in the device status register.

        Args:
            severity: "correctable", "nonfatal", "fatal" or "unsupported_request".

        Returns:
            Whether software enabled the error message for it.
        """
        setattr(self.device_status, severity, 1)
        return bool(getattr(self.device_control, f"{severity}_enable"))

    @before_write("device_control.max_payload")
    def _limit_payload(self, value: int, old: int) -> int:
        # More than the device can take is undefined; keeping the old value keeps the register true.
        return value if value <= self._payload else old

    @before_write("device_control.extended_tags")
    def _extended_tags_bit(self, value: int) -> int:
        return value if self._has_extended_tags else 0

    @before_write("device_control_2.ltr")
    def _ltr_bit(self, value: int) -> int:
        return value if self._has_ltr else 0

    @before_write("link_control")
    @before_write("link_control_2")
    def _link_bits(self, value: int) -> int:
        return value if self.has_link else 0

    @on_write("device_control.initiate_flr")
    def _initiate_flr(self, value: int) -> None:
        if value and self._has_flr:
            self.host.config.call_after_access(self._reset_function)

    def _reset_function(self) -> None:
        self.host.reset(ResetKind.FLR)
        self.host.events.on_flr()

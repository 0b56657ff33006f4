"""The type 0 configuration header: the first 64 bytes of an endpoint's configuration space.

Which bits a guest can write is fixed by the specification, except for two things the device decides: how many address
bits each base address register decodes, and whether there is a ROM. Those are given as masks.

Spec: PCI 3.0 6.1, 6.2; PCI Express Base 7.5.1.1 and 7.5.1.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vfio_user.pci.config_registers import ConfigRegisters
from vfio_user.pci.registers import RO, RW1C, Field, Register, before_write, on_change

__all__ = ["HEADER_SIZE", "MULTIFUNCTION", "Type0Header"]

#: Bytes of the header.
HEADER_SIZE = 0x40

#: Bit 7 of the header type: the device has functions other than this one.
MULTIFUNCTION = 0x80


class Type0Header(ConfigRegisters):
    """The header registers of an endpoint.

    Args:
        constants: what the read-only registers show, by register name.
        bar_masks: the bits of each of the six base address registers that software can write; the upper half of a
            64-bit BAR is a register of its own, and what no BAR uses is 0.
        bar_flags: the constant low bits of each: I/O, 64-bit, prefetchable.
        rom_mask: address bits and enable bit of the ROM's register; 0 without a ROM, so that it reads 0 for ever.
        express: the function is a PCI Express one, whose latency timer is hard-wired to 0.
        on_command: called with (old, new) when a write changed the command register.
    """

    vendor_id = Register(0x00, width=16, access=RO)
    device_id = Register(0x02, width=16, access=RO)
    command = Register(
        0x04,
        width=16,
        fields=[
            Field("io_space", 0, doc="answer I/O accesses"),
            Field("memory_space", 1, doc="answer memory accesses"),
            Field("bus_master", 2, doc="may read and write memory, and send MSIs"),
            Field("special_cycles", 3, access=RO),
            Field("memory_write_and_invalidate", 4, access=RO),
            Field("vga_palette_snoop", 5, access=RO),
            Field("parity_error_response", 6),
            Field("serr_enable", 8),
            Field("fast_back_to_back", 9, access=RO),
            Field("interrupt_disable", 10, doc="do not raise INTx"),
        ],
    )
    status = Register(
        0x06,
        width=16,
        access=RW1C,
        fields=[
            Field("immediate_readiness", 0, access=RO),
            Field("interrupt", 3, access=RO, doc="INTx is asserted, or would be but for interrupt_disable"),
            Field("capabilities_list", 4, access=RO),
            Field("capable_66mhz", 5, access=RO),
            Field("fast_back_to_back_capable", 7, access=RO),
            Field("master_data_parity_error", 8),
            Field("devsel_timing", (10, 9), access=RO),
            Field("signaled_target_abort", 11),
            Field("received_target_abort", 12),
            Field("received_master_abort", 13),
            Field("signaled_system_error", 14),
            Field("detected_parity_error", 15),
        ],
    )
    revision = Register(0x08, width=8, access=RO)
    programming_interface = Register(0x09, width=8, access=RO)
    subclass = Register(0x0A, width=8, access=RO)
    base_class = Register(0x0B, width=8, access=RO)
    cache_line_size = Register(0x0C, width=8)
    latency_timer = Register(0x0D, width=8)
    header_type = Register(0x0E, width=8, access=RO)
    bist = Register(0x0F, width=8, access=RO)
    bars = Register(0x10, count=6, doc="base address registers")
    cardbus_cis = Register(0x28, access=RO)
    subsystem_vendor_id = Register(0x2C, width=16, access=RO)
    subsystem_id = Register(0x2E, width=16, access=RO)
    rom_bar = Register(0x30, doc="expansion ROM base address: bit 0 enables the ROM")
    capabilities_pointer = Register(0x34, width=8, access=RO)
    interrupt_line = Register(0x3C, width=8, doc="which input of the interrupt controller; software's notebook")
    interrupt_pin = Register(0x3D, width=8, access=RO, doc="0 none, 1 INTA to 4 INTD")
    min_gnt = Register(0x3E, width=8, access=RO)
    max_lat = Register(0x3F, width=8, access=RO)

    def __init__(
        self,
        constants: Mapping[str, int],
        *,
        bar_masks: Sequence[int],
        bar_flags: Sequence[int],
        rom_mask: int,
        express: bool,
        on_command: Callable[[int, int], None],
    ) -> None:
        super().__init__()
        self._constants = dict(constants)
        self._bar_masks = tuple(bar_masks)
        self._bar_flags = tuple(bar_flags)
        self._rom_mask = rom_mask
        self._express = express
        self._on_command = on_command
        self.configure()

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        for name, value in self._constants.items():
            setattr(self, name, value)
        for index, flags in enumerate(self._bar_flags):
            self.bars[index] = flags

    @before_write("bars")
    def _decode_address(self, index: int, value: int) -> int:
        # Sizing falls out of this: all ones written, the address bits the BAR does not decode read back as 0.
        return value & self._bar_masks[index] | self._bar_flags[index]

    def resize_bar(self, index: int, mask: int) -> None:
        """Changes the address bits a BAR decodes; its address is 0 until software writes one.

        Args:
            index: 0 to 5; a 64-bit BAR's lower half.
            mask: the address bits, 64 of them for a 64-bit BAR.
        """
        masks = list(self._bar_masks)
        masks[index] = mask & 0xFFFF_FFFF
        self.bars[index] = self._bar_flags[index]
        if self._bar_flags[index] & 7 == 4:
            masks[index + 1] = mask >> 32 & 0xFFFF_FFFF
            self.bars[index + 1] = 0
        self._bar_masks = tuple(masks)

    @before_write("rom_bar")
    def _decode_rom_address(self, value: int) -> int:
        return value & self._rom_mask

    @before_write("latency_timer")
    def _no_latency_timer(self, value: int) -> int:
        return 0 if self._express else value

    @on_change("command")
    def _tell_command(self, new: int, old: int) -> None:
        self._on_command(old, new)

"""ACCES PCI-IDIO-16: 16 outputs a driver sets, 16 inputs it reads, and an interrupt when an input changes.

In Linux the module gpio-pci-idio-16 makes it a GPIO chip of 32 lines.

Ref: "PCI-IDIO-16 User Manual", ACCES I/O Products, chapter 4.
"""

from __future__ import annotations

from vfio_user.hardware.pci_idio_16 import Idio16Registers
from vfio_user.pci import IoBar, ResetKind
from vfio_user.server.pci_device import PciDevice

__all__ = ["GpioPciIdio16"]


class GpioPciIdio16(PciDevice):
    """ACCES PCI-IDIO-16, 16 isolated inputs and 16 outputs.

    Args:
        inputs: levels of the inputs at the start, bit i for input i.
    """

    vendor_id, device_id, class_code = 0x494F, 0x0DC8, 0x118000
    bar2 = IoBar(size=8, registers=Idio16Registers)
    linux_modules = ("gpio-pci-idio-16",)
    migratable = True
    saved_attributes = ("_inputs", "_interrupt_enabled")

    def __init__(self, *, inputs: int = 0) -> None:
        super().__init__()
        self._interrupt_enabled = False
        self._inputs = inputs
        self._show_inputs()

    @property
    def outputs(self) -> int:
        """Levels of the outputs as the driver set them, bit i for output i. Any thread."""
        return self.bar2.outputs_low | self.bar2.outputs_high << 8

    @property
    def inputs(self) -> int:
        """Levels of the inputs, bit i for input i. Any thread."""
        return self._inputs

    def set_inputs(self, levels: int) -> None:
        """Changes the inputs, soon: the world outside the card moved. Any thread."""
        self.call_soon(self._change_inputs, levels)

    def _change_inputs(self, levels: int) -> None:
        changed, self._inputs = levels ^ self._inputs, levels
        self._show_inputs()
        if changed and self._interrupt_enabled:
            status = self.bar2.interrupt_status
            status.low_changed |= changed & 0xFF != 0
            status.high_changed |= changed >> 8 != 0
            status.pending = 1
            self.raise_interrupt()

    def _show_inputs(self) -> None:
        self.bar2.inputs_low, self.bar2.inputs_high = self._inputs & 0xFF, self._inputs >> 8 & 0xFF

    @bar2.on_read("interrupt_control")
    def enable_interrupt(self) -> None:
        self._interrupt_enabled = True

    @bar2.on_write("interrupt_control")
    def disable_interrupt(self) -> None:
        self._interrupt_enabled = False

    @bar2.on_write("inputs_low")
    def clear_interrupt(self) -> None:
        self.bar2.interrupt_status = 0
        self.lower_interrupt()

    @bar2.on_read("filter_control")
    def filter_all(self) -> None:
        self.bar2.filters_low = 0xFF

    @bar2.on_write("filter_control")
    def filter_none(self) -> None:
        self.bar2.filters_low = 0

    def on_reset(self, kind: ResetKind) -> None:
        # The levels of the inputs are the world's: a reset of the card does not change them.
        self._interrupt_enabled = False
        self._show_inputs()

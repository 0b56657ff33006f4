"""ACCES PCI-IDIO-16, a card with 16 isolated inputs and 16 FET outputs: its registers.

Several have one meaning when read and another when written.

Ref: "PCI-IDIO-16 User Manual", ACCES I/O Products, chapter 4.
"""

from __future__ import annotations

from vfio_user.pci.registers import RO, Field, Register, RegisterBlock

__all__ = ["Idio16Registers"]


class Idio16Registers(RegisterBlock):
    """The eight I/O ports behind BAR2, one byte each."""

    access_sizes = (1,)

    outputs_low = Register(0, width=8, doc="outputs 0 to 7")
    inputs_low = Register(1, width=8, access=RO, doc="inputs 0 to 7; writing anything clears the interrupt")
    interrupt_control = Register(2, width=8, access=RO, doc="reading enables the interrupt, writing disables it")
    filter_control = Register(3, width=8, access=RO, doc="reading filters all inputs, writing none")
    outputs_high = Register(4, width=8, doc="outputs 8 to 15")
    inputs_high = Register(5, width=8, access=RO, doc="inputs 8 to 15")
    interrupt_status = Register(
        6,
        width=8,
        access=RO,
        doc="the manual leaves the bits unnamed; these are what Linux' driver asks for",
        fields=[
            Field("low_changed", 0, doc="an input of 0 to 7 changed"),
            Field("high_changed", 1, doc="an input of 8 to 15 changed"),
            Field("pending", 2, doc="the card asserts its interrupt"),
        ],
    )
    filters_low = Register(7, width=8, doc="which of inputs 0 to 7 are filtered")

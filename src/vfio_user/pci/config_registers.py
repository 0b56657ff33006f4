"""Register blocks of configuration space: what the header and every capability have in common."""

from __future__ import annotations

from vfio_user.pci.registers import RegisterBlock, ResetKind

__all__ = ["STICKY", "ConfigRegisters"]

#: What a sticky bit (ROS, RWS, RW1CS) survives: everything but power-on. Spec: PCI Express Base 7.4.
STICKY = tuple(kind for kind in ResetKind if kind is not ResetKind.POWER_ON)


class ConfigRegisters(RegisterBlock):
    """Registers in configuration space, some of which show what the device was declared with."""

    def configure(self) -> None:
        """Stores what does not come from the register descriptions. Runs after every reset."""

    def reset(self, kind: ResetKind = ResetKind.DEVICE) -> None:
        """Resets the registers, then shows the configuration again. See ``RegisterBlock.reset``."""
        super().reset(kind)
        self.configure()

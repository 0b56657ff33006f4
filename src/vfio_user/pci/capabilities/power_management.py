"""PCI Power Management: D-states, and PME.

A guest that suspends, and Linux at every bind of a driver, writes the power state here. Going back from D3hot resets
the function unless ``no_soft_reset`` says otherwise.

Spec: PCI Bus Power Management Interface 1.2, chapter 3; PCI Express Base 7.5.2.
"""

from __future__ import annotations

import enum
from collections.abc import Collection

from vfio_user.pci.capabilities.base import Capability
from vfio_user.pci.config_registers import STICKY
from vfio_user.pci.registers import RO, RW1C, Field, Register, ResetKind, before_write, on_change

__all__ = ["PowerManagement", "PowerState"]

_PME_STATES = ("D0", "D1", "D2", "D3hot", "D3cold")


class PowerState(enum.IntEnum):
    """The power states software can choose."""

    D0 = 0
    D1 = 1
    D2 = 2
    D3HOT = 3


class PowerManagement(Capability):
    """The power management capability.

    Args:
        d1: the function has D1.
        d2: the function has D2.
        pme_from: the states it can send PME from: "D0", "D1", "D2", "D3hot", "D3cold".
        no_soft_reset: registers keep their contents from D3hot to D0. QEMU's own devices say so, and drivers resume
            faster; without it the way back to D0 is a reset.
        device_specific_initialization: the driver must set the function up after a reset to D0.
        aux_current: 0 to 7, the current drawn in D3cold as the specification encodes it.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: ``pme_from`` names a state the function does not have.
    """

    cap_id = 0x01

    capabilities = Register(
        0x02,
        width=16,
        access=RO,
        fields=[
            Field("version", (2, 0), reset=3),
            Field("pme_clock", 3),
            Field("immediate_readiness", 4),
            Field("device_specific_initialization", 5),
            Field("aux_current", (8, 6)),
            Field("d1", 9),
            Field("d2", 10),
            Field("pme_support", (15, 11), doc="bit i: PME from D0, D1, D2, D3hot, D3cold"),
        ],
    )
    control = Register(
        0x04,
        width=16,
        fields=[
            Field("power_state", (1, 0), values=PowerState),
            Field("no_soft_reset", 3, access=RO),
            Field("pme_enable", 8, sticky=STICKY),
            Field("data_select", (12, 9), access=RO),
            Field("data_scale", (14, 13), access=RO),
            Field("pme_status", 15, access=RW1C, sticky=STICKY),
        ],
    )
    bridge_support = Register(0x06, width=8, access=RO)
    data = Register(0x07, width=8, access=RO)

    def __init__(
        self,
        *,
        d1: bool = False,
        d2: bool = False,
        pme_from: Collection[str] = (),
        no_soft_reset: bool = True,
        device_specific_initialization: bool = False,
        aux_current: int = 0,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        self._states = {PowerState.D0, PowerState.D3HOT}
        if d1:
            self._states.add(PowerState.D1)
        if d2:
            self._states.add(PowerState.D2)
        self._pme = 0
        for state in pme_from:
            if state not in _PME_STATES or (state, d1, d2) in (("D1", False, d2), ("D2", d1, False)):
                raise self.refuse(
                    f"pme_from names {state!r}; this function can send PME from "
                    f"{', '.join(_PME_STATES)}, of which D1 and D2 need d1=True and d2=True"
                )
            self._pme |= 1 << _PME_STATES.index(state)
        if not 0 <= aux_current <= 7:
            raise self.refuse(f"aux_current={aux_current} does not fit its 3 bits, 0 to 7")
        self._no_soft_reset = no_soft_reset
        self._initialization = device_specific_initialization
        self._aux_current = aux_current

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.capabilities.device_specific_initialization = self._initialization
        self.capabilities.aux_current = self._aux_current
        self.capabilities.d1 = PowerState.D1 in self._states
        self.capabilities.d2 = PowerState.D2 in self._states
        self.capabilities.pme_support = self._pme
        self.control.no_soft_reset = self._no_soft_reset

    @property
    def state(self) -> PowerState:
        """The power state software chose."""
        return PowerState(self.control.power_state)

    def signal_pme(self) -> bool:
        """Latches PME status.

        Returns:
            Whether software enabled PME, so that the device is to send it.
        """
        self.control.pme_status = 1
        return bool(self.control.pme_enable)

    @before_write("control.power_state")
    def _refuse_missing_state(self, state: int, old: int) -> int:
        # "If software attempts to write an unsupported, optional state to this field, the write operation must complete
        # normally [...] however, the data is discarded and no state change occurs."
        return state if state in self._states else old

    @before_write("control.pme_enable")
    def _refuse_pme(self, enable: int) -> int:
        return enable if self._pme else 0

    @on_change("control.power_state")
    def _change_state(self, new: int, old: int) -> None:
        self.host.config.call_after_access(self._enter, PowerState(old), PowerState(new))

    def _enter(self, old: PowerState, new: PowerState) -> None:
        host = self.host
        if old is PowerState.D3HOT and new is PowerState.D0 and not self._no_soft_reset:
            host.reset(ResetKind.D3_HOT)
        host.events.on_power_state(old, new)

"""TPH requester: hints where the data of a request should go.

Spec: PCI Express Base 7.9.13.
"""

from __future__ import annotations

import enum

from vfio_user.pci.capabilities.base import ExtendedCapability
from vfio_user.pci.registers import RO, Field, Register, before_write, on_change

__all__ = ["SteeringTable", "TphRequester"]

_MAX_ENTRIES = 64  # those that fit the capability


class SteeringTable(enum.IntEnum):
    """Where the steering tags are."""

    NONE = 0
    CAPABILITY = 1
    MSIX_TABLE = 2


class TphRequester(ExtendedCapability):
    """The TPH requester capability.

    Args:
        table: where the steering tags are.
        entries: how many there are: up to 64 in the capability, up to 2048 in the MSI-X table.
        interrupt_vector_mode: tags can be chosen by interrupt vector.
        device_specific_mode: tags can be chosen by the device.
        extended: it can send 16-bit tags.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: ``entries`` does not go with ``table``.
    """

    cap_id = 0x17

    capability = Register(
        0x04,
        access=RO,
        fields=[
            Field("no_tag_mode", 0, reset=1),
            Field("interrupt_vector_mode", 1),
            Field("device_specific_mode", 2),
            Field("extended", 8),
            Field("table", (10, 9), values=SteeringTable),
            Field("table_size", (26, 16), doc="entries - 1"),
        ],
    )
    control = Register(0x08, fields=[Field("mode", (2, 0)), Field("enable", (9, 8))])
    tags = Register(0x0C, count=_MAX_ENTRIES, width=16)

    def __init__(
        self,
        *,
        table: SteeringTable = SteeringTable.NONE,
        entries: int = 0,
        interrupt_vector_mode: bool = False,
        device_specific_mode: bool = False,
        extended: bool = False,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        most = {SteeringTable.NONE: 0, SteeringTable.CAPABILITY: _MAX_ENTRIES, SteeringTable.MSIX_TABLE: 2048}[table]
        if not min(most, 1) <= entries <= most:
            raise self.refuse(f"entries={entries}; {table.name} has {min(most, 1)} to {most}")
        self._entries = entries
        in_capability = entries if table is SteeringTable.CAPABILITY else 0
        self.size = 0x0C + -(-in_capability * 2 // 4) * 4
        self._in_capability = in_capability
        self._modes = 1 | interrupt_vector_mode << 1 | device_specific_mode << 2
        self._bits = max(entries - 1, 0) << 16 | table << 9 | extended << 8 | self._modes
        self._extended = extended

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.capability = self._bits

    @before_write("control.mode")
    def _supported_modes_only(self, mode: int, old: int) -> int:
        return mode if mode < 3 and self._modes >> mode & 1 else old

    @before_write("control.enable")
    def _limit_enable(self, value: int) -> int:
        # 1 is 8-bit tags, 3 is 8- and 16-bit ones; 2 is reserved.
        return value if self._extended else value & 1

    @before_write("tags")
    def _limit_tags(self, index: int, value: int) -> int:
        if index >= self._in_capability:
            return 0
        return value if self._extended else value & 0xFF

    @on_change("control")
    def _tell(self) -> None:
        self.notify("control")

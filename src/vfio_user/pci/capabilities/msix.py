"""MSI-X: up to 2048 vectors, each with its own message and mask bit, in a table that lies behind a BAR.

QEMU hides the table: it takes the accesses itself and sends SET_IRQS for the vectors the guest uses; the server sees
reads of the pending bits alone. Other clients leave both to the device, so both work here.

Spec: PCI 3.0 6.8.2; PCI Express Base 7.7.2.
"""

from __future__ import annotations

from vfio_user.pci.capabilities.base import Capability
from vfio_user.pci.msix_table import MSIX_ENTRY_SIZE, MsiXPendingBits, MsiXTable
from vfio_user.pci.registers import RO, Field, Register, ResetKind, on_change

__all__ = ["MsiX"]

_MAX_VECTORS = 2048


class MsiX(Capability):
    """The MSI-X capability.

    Without further arguments the table and the pending bits get a BAR of their own: the first free index. With ``bar``
    they go behind the registers of that BAR, each on a page of its own where there is room, or where the offsets say.

    Args:
        vectors: 1 to 2048, any number.
        bar: index of the BAR the table lies in; None takes a free one and makes a memory BAR there.
        table_offset: bytes from the start of the BAR, a multiple of 8; None places it.
        pba_bar: index of the BAR of the pending bits; the table's when not given.
        pba_offset: bytes from the start of that BAR, a multiple of 8; None places it.
        at: offset of the capability in configuration space; None places it.

    Attributes:
        table: address, data and mask bit of each vector, as software wrote them.
        pending: the pending bits.

    Raises:
        DefinitionError: ``vectors`` is not in 1..2048, an offset is no multiple of 8, or an offset has no ``bar``.
    """

    cap_id = 0x11
    bar: int | None = None
    table_offset: int | None = None
    pba_bar: int | None = None
    pba_offset: int | None = None

    control = Register(
        0x02,
        width=16,
        fields=[
            Field("table_size", (10, 0), access=RO, doc="vectors - 1"),
            Field("function_mask", 14),
            Field("enable", 15),
        ],
    )
    table_location = Register(0x04, access=RO, fields=[Field("bar", (2, 0)), Field("offset_8", (31, 3))])
    pba_location = Register(0x08, access=RO, fields=[Field("bar", (2, 0)), Field("offset_8", (31, 3))])

    def __init__(
        self,
        *,
        vectors: int,
        bar: int | None = None,
        table_offset: int | None = None,
        pba_bar: int | None = None,
        pba_offset: int | None = None,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if not 1 <= vectors <= _MAX_VECTORS:
            raise self.refuse(f"vectors={vectors}; MSI-X has 1 to {_MAX_VECTORS}")
        for name, offset in (("table_offset", table_offset), ("pba_offset", pba_offset)):
            if offset is None:
                continue
            if bar is None and not (name == "pba_offset" and pba_bar is not None):
                raise self.refuse(f"{name}={offset:#x} says nothing without bar=, the BAR it counts from")
            if offset < 0 or offset % 8:
                raise self.refuse(f"{name}={offset:#x}; the registers hold multiples of 8 bytes")
        for name, index in (("bar", bar), ("pba_bar", pba_bar)):
            if index is not None and not 0 <= index <= 5:
                raise self.refuse(f"{name}={index}; BARs count from 0 to 5")
        self.vectors = vectors
        self.bar, self.table_offset = bar, table_offset
        self.pba_bar, self.pba_offset = bar if pba_bar is None else pba_bar, pba_offset
        self.table = MsiXTable(vectors, self._tell_mask)
        self.pending = MsiXPendingBits(vectors)
        self._table_at = self._pba_at = (0, 0)

    @property
    def table_size(self) -> int:
        """Bytes of the table."""
        return self.vectors * MSIX_ENTRY_SIZE

    @property
    def pba_size(self) -> int:
        """Bytes of the pending bit array."""
        return self.pending.size

    def locate(self, table: tuple[int, int], pba: tuple[int, int]) -> None:
        """Takes the places the function's builder found, as (BAR index, offset)."""
        self._table_at, self._pba_at = table, pba
        self.configure()

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.control.table_size = self.vectors - 1
        self.table_location = self._table_at[1] | self._table_at[0]
        self.pba_location = self._pba_at[1] | self._pba_at[0]

    def reset(self, kind: ResetKind = ResetKind.DEVICE) -> None:
        """Resets the registers, the table and the pending bits."""
        super().reset(kind)
        self.table.reset()
        self.pending.reset()

    @property
    def enabled(self) -> bool:
        """Software turned MSI-X on."""
        return bool(self.control.enable)

    @property
    def function_masked(self) -> bool:
        """Software masked all vectors at once."""
        return bool(self.control.function_mask)

    def is_masked(self, vector: int) -> bool:
        """Whether a vector is masked, alone or with all others.

        Under QEMU the mask bits in the table stay as reset left them, because QEMU keeps the table itself.

        Raises:
            IndexError: there is no such vector.
        """
        return self.table.is_masked(vector) or self.function_masked

    def set_pending(self, vector: int, pending: bool) -> None:
        """Shows software that a masked vector waits, or no longer does.

        Raises:
            IndexError: there is no such vector.
        """
        self.pending.set(vector, pending)

    @on_change("control")
    def _tell_control(self) -> None:
        host = self.host
        host.config.call_after_access(lambda: host.events.on_msix(self.enabled, self.function_masked))

    def _tell_mask(self, vector: int, masked: bool) -> None:
        self.host.events.on_msix_mask(vector, masked)

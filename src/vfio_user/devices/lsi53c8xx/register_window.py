"""The registers once more, behind another BAR."""

from __future__ import annotations

from collections.abc import Callable

from vfio_user.pci.registers import RegisterBlock
from vfio_user.regions import Region

__all__ = ["RegisterWindow"]


class RegisterWindow(Region):
    """Shows the beginning of a register block that stands behind another BAR, so that both reach the same registers.

    Args:
        size: bytes.
        block: gives the block, which may be made after this.
    """

    def __init__(self, size: int, block: Callable[[], RegisterBlock]) -> None:
        self.size = size
        self._block = block

    def read(self, offset: int, size: int) -> int:
        """See ``Region.read``."""
        return self._block().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``."""
        self._block().write(offset, size, value)

    def save_state(self) -> None:
        """Nothing: what is here is saved there."""

    def load_state(self, state: object) -> None:
        """See ``save_state``."""

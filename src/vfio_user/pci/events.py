"""What a function tells its device: the writes to configuration space that set something off.

Every event comes after the whole write has reached the registers, on the thread that carried it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FunctionEvents"]


def _nothing(*_: object) -> None:
    """The handler of an event nobody wants."""


@dataclass(kw_only=True)
class FunctionEvents:
    """The callbacks of one function; those not given do nothing.

    What a callback raises leaves ``ConfigSpace.write``, with the write done.

    Attributes:
        on_flr: a function level reset was asked for, and the function's registers have been reset already.
        on_power_state: (old, new) PowerState. A way back from D3hot that resets has reset the registers already.
        on_command: (old, new) value of the command register.
        on_msi: (enabled, vectors): MSI was turned on or off, or its number of vectors changed; 0 vectors when off.
        on_msi_mask: (vector, masked): software masked or unmasked one MSI vector.
        on_msix: (enabled, function_masked): MSI-X was turned on or off, or all of it was masked or unmasked.
        on_msix_mask: (vector, masked): the mask bit of one entry of the MSI-X table was changed.
        on_capability: (name, register): software wrote to a capability that has no event of its own: the enable bits
            of ATS, PASID, page requests, SR-IOV and the like. ``name`` is the attribute it was declared as.
        on_error_message: (severity): the function sends ERR_COR, ERR_NONFATAL or ERR_FATAL.
    """

    on_flr: Callable[[], None] = _nothing
    on_power_state: Callable[[int, int], None] = _nothing
    on_command: Callable[[int, int], None] = _nothing
    on_msi: Callable[[bool, int], None] = _nothing
    on_msi_mask: Callable[[int, bool], None] = _nothing
    on_msix: Callable[[bool, bool], None] = _nothing
    on_msix_mask: Callable[[int, bool], None] = _nothing
    on_capability: Callable[[str, str], None] = _nothing
    on_error_message: Callable[[str], None] = _nothing

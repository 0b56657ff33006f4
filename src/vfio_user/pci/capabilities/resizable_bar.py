"""Resizable BARs: software chooses how much of a BAR's memory it wants to see.

The BAR's declaration has the greatest size, which is the size of its region for as long as the device lives; a smaller
choice changes how many address bits the BAR decodes.

Spec: PCI Express Base 7.8.6.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vfio_user.pci.bars import Bar
from vfio_user.pci.capabilities.base import ExtendedCapability
from vfio_user.pci.registers import RO, Field, Register, ResetKind, before_write, on_change

__all__ = ["ResizableBar"]

_SMALLEST = 1 << 20  # size code 0
_CODES = 28  # the capability register has room for 1 MiB to 128 TiB


class ResizableBar(ExtendedCapability):
    """The resizable BAR capability.

    Args:
        sizes: for each BAR index the sizes it can have, in bytes: powers of two from 1 MiB to 128 TiB, the BAR's
            declared size the greatest.
        initial: for each BAR index the size it begins with; the greatest when not given.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: a size is not encodable, or does not fit the BAR's declaration.
    """

    cap_id = 0x15

    capability = Register(0x04, count=6, stride=8, access=RO, fields=[Field("sizes", (31, 4), doc="bit i: 1 MiB << i")])
    control = Register(
        0x08,
        count=6,
        stride=8,
        fields=[
            Field("bar", (2, 0), access=RO),
            Field("bars", (7, 5), access=RO, doc="how many there are, in the first one"),
            Field("size", (13, 8), doc="1 MiB << n"),
        ],
    )

    def __init__(
        self,
        sizes: Mapping[int, Collection[int]],
        *,
        initial: Mapping[int, int] | None = None,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        self._sizes = {index: sorted(sizes[index]) for index in sorted(sizes)}
        self._indexes = list(self._sizes)
        self._initial = {index: (initial or {}).get(index, max(of)) for index, of in self._sizes.items() if of}
        self.size = 4 + 8 * len(self._sizes)
        if not self._sizes:
            raise self.refuse("sizes is empty: name the BARs and their sizes, {0: [256 << 20, 1 << 30]}")
        for index, of in self._sizes.items():
            if not 0 <= index <= 5 or not of:
                raise self.refuse(f"sizes[{index}] = {of}; BARs count from 0 to 5, and have at least one size")
            for size in of:
                if size & (size - 1) or not _SMALLEST <= size < _SMALLEST << _CODES:
                    raise self.refuse(f"size {size:#x} of bar {index}; sizes are powers of two from 1 MiB to 128 TiB")
            if self._initial[index] not in of:
                raise self.refuse(f"initial[{index}] = {self._initial[index]:#x} is none of its sizes")

    def validate(self, bars: Mapping[int, Bar[Any]]) -> None:
        """See ``AnyCapability.validate``."""
        for index, of in self._sizes.items():
            bar = bars.get(index)
            if bar is None or bar.is_io:
                raise self.refuse(f"bar {index} is no memory BAR of this device")
            if bar.size != of[-1]:
                raise self.refuse(
                    f"bar {index} ({bar.location}) has {bar.size:#x} bytes and its greatest size is {of[-1]:#x}; "
                    "declare it with the greatest"
                )

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        for at, (index, of) in enumerate(self._sizes.items()):
            self.capability[at] = sum(1 << _code(size) + 4 for size in of)
            self.control[at] = _code(self._initial[index]) << 8 | (len(self._sizes) << 5 if at == 0 else 0) | index

    def reset(self, kind: ResetKind = ResetKind.DEVICE) -> None:
        """Resets the registers, and the BARs to their initial sizes."""
        super().reset(kind)
        for index in self._indexes:
            self._apply(index, self._initial[index])

    def current_size(self, index: int) -> int:
        """Bytes software chose for a BAR.

        Raises:
            ValueError: the BAR is not resizable.
        """
        return _SMALLEST << int(self.control[self._indexes.index(index)].size)

    def restored(self) -> None:
        """Makes the BARs decode the sizes the registers say; they lose their addresses."""
        for index in self._indexes:
            self._apply(index, self.current_size(index))

    def _apply(self, index: int, size: int) -> None:
        if self._host is not None:
            self._host.header.resize_bar(index, -size)

    @before_write("control.size")
    def _supported_sizes_only(self, at: int, code: int, old: int) -> int:
        # A size that is not supported is undefined; keeping the old one keeps BAR and register in step.
        supported = at < len(self._indexes) and _SMALLEST << code in self._sizes[self._indexes[at]]
        return code if supported else old

    @on_change("control.size")
    def _resize(self, at: int, code: int) -> None:
        self._apply(self._indexes[at], _SMALLEST << code)
        self.notify("control")


def _code(size: int) -> int:
    return (size // _SMALLEST).bit_length() - 1

"""Single root I/O virtualization: a physical function offers virtual ones.

The registers are those of the physical function: how many virtual functions there can be and are, where their routing
ids begin, and BARs that are sized for one virtual function and decode as many of them as are enabled. vfio-user has one
function a connection, so the virtual functions themselves are other devices of the author's; ``on_capability`` says
when software wants them.

Spec: PCI Express Base 9.3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vfio_user.pci.bars import Bar, MemoryBar
from vfio_user.pci.capabilities.base import ExtendedCapability
from vfio_user.pci.registers import RO, Field, Register, before_write, on_change

__all__ = ["SrIov"]

_PAGE = 4096
#: 4 KiB, 8 KiB, 64 KiB, 256 KiB, 1 MiB and 4 MiB: "PFs are required to support".
_REQUIRED_PAGE_SIZES = 0x553


class SrIov(ExtendedCapability):
    """The SR-IOV capability of a physical function.

    Args:
        total_vfs: the most virtual functions there can be, 1 to 65535.
        vf_device_id: device id of a virtual function, 16 bits.
        bars: BARs of one virtual function, by index; memory BARs of 4 KiB or more, without regions.
        first_vf_offset: routing id of the first virtual function, relative to this one.
        vf_stride: from one virtual function's routing id to the next.
        supported_page_sizes: bit i: 4096 << i bytes.
        function_link: number of the function this one depends on; its own, 0, for none.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: a number does not fit its field, a required page size is missing, or a BAR is not as above.
    """

    cap_id = 0x10

    capability = Register(
        0x04,
        access=RO,
        fields=[Field("migration", 0), Field("ari_preserved", 1), Field("interrupt_message", (31, 21))],
    )
    control = Register(
        0x08,
        width=16,
        fields=[
            Field("vf_enable", 0),
            Field("migration_enable", 1, access=RO),
            Field("migration_interrupt", 2, access=RO),
            Field("vf_memory_space", 3),
            Field("ari_capable_hierarchy", 4),
        ],
    )
    status = Register(0x0A, width=16, access=RO)
    initial_vfs = Register(0x0C, width=16, access=RO)
    total_vfs = Register(0x0E, width=16, access=RO)
    num_vfs = Register(0x10, width=16)
    function_link = Register(0x12, width=8, access=RO)
    first_vf_offset = Register(0x14, width=16, access=RO)
    vf_stride = Register(0x16, width=16, access=RO)
    vf_device_id = Register(0x1A, width=16, access=RO)
    supported_page_sizes = Register(0x1C, access=RO)
    system_page_size = Register(0x20, reset=1, doc="one of the supported ones: bit i, 4096 << i bytes")
    vf_bars = Register(0x24, count=6)
    migration_state = Register(0x3C, access=RO)

    def __init__(
        self,
        *,
        total_vfs: int,
        vf_device_id: int,
        bars: Mapping[int, Bar[Any]] | None = None,
        first_vf_offset: int = 1,
        vf_stride: int = 1,
        supported_page_sizes: int = _REQUIRED_PAGE_SIZES,
        function_link: int = 0,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        self.check_range(
            total_vfs=(total_vfs, 0xFFFF),
            vf_device_id=(vf_device_id, 0xFFFF),
            first_vf_offset=(first_vf_offset, 0xFFFF),
            vf_stride=(vf_stride, 0xFFFF),
            supported_page_sizes=(supported_page_sizes, 0xFFFF_FFFF),
            function_link=(function_link, 0xFF),
        )
        if not total_vfs:
            raise self.refuse("total_vfs=0 offers nothing: leave the capability out")
        if _REQUIRED_PAGE_SIZES & ~supported_page_sizes:
            raise self.refuse(
                f"supported_page_sizes={supported_page_sizes:#x} lacks some of {_REQUIRED_PAGE_SIZES:#x}, "
                "which every function has"
            )
        self.vf_bar_declarations = dict(sorted((bars or {}).items()))
        for index, bar in self.vf_bar_declarations.items():
            if not isinstance(bar, MemoryBar) or bar.size < _PAGE or not 0 <= index <= 6 - bar.width // 32:
                raise self.refuse(f"bars[{index}] = {bar!r}; they are memory BARs of 4096 bytes or more, from 0 to 5")
            if bar.width == 64 and index + 1 in self.vf_bar_declarations:
                raise self.refuse(f"bars[{index + 1}] is the upper half of bars[{index}], which has 64 bits")
        self._total_vfs = total_vfs
        self._constants = {
            "initial_vfs": total_vfs,
            "total_vfs": total_vfs,
            "function_link": function_link,
            "first_vf_offset": first_vf_offset,
            "vf_stride": vf_stride,
            "vf_device_id": vf_device_id,
            "supported_page_sizes": supported_page_sizes,
        }

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        for name, value in self._constants.items():
            setattr(self, name, value)
        for index, bar in self.vf_bar_declarations.items():
            self.vf_bars[index] = bar.flags

    @property
    def vfs_enabled(self) -> int:
        """How many virtual functions software turned on."""
        return int(self.num_vfs) if self.control.vf_enable else 0

    def vf_bar_size(self, index: int) -> int:
        """Bytes of one virtual function's BAR: its own, or a system page where those are larger.

        Raises:
            KeyError: there is no such BAR.
        """
        page = _PAGE * int(self.system_page_size)
        return max(self.vf_bar_declarations[index].size, page)

    def vf_bar_address(self, index: int, vf: int = 0) -> int:
        """Where software put a BAR of one virtual function; they follow each other.

        Raises:
            KeyError: there is no such BAR.
        """
        bar = self.vf_bar_declarations[index]
        address = int(self.vf_bars[index]) & ~0xF
        if bar.width == 64:
            address |= int(self.vf_bars[index + 1]) << 32
        return address + vf * self.vf_bar_size(index)

    @before_write("num_vfs")
    def _limit_number(self, value: int, old: int) -> int:
        # NumVFs "must only be written while VF Enable is Clear", and more than TotalVFs is undefined.
        return old if self.control.vf_enable or value > self._total_vfs else value

    @before_write("system_page_size")
    def _limit_page_size(self, value: int, old: int) -> int:
        one_bit = value and not value & (value - 1)
        return value if one_bit and value & self.supported_page_sizes and not self.control.vf_enable else old

    @before_write("vf_bars")
    def _decode_address(self, index: int, value: int) -> int:
        bar = self.vf_bar_declarations.get(index)
        if bar is not None:
            return value & -self.vf_bar_size(index) & 0xFFFF_FFFF | bar.flags
        lower = self.vf_bar_declarations.get(index - 1)
        if lower is not None and lower.width == 64:
            return value & -self.vf_bar_size(index - 1) >> 32 & 0xFFFF_FFFF
        return 0

    @on_change("control")
    def _tell_control(self) -> None:
        self.notify("control")

    @on_change("num_vfs")
    def _tell_number(self) -> None:
        self.notify("num_vfs")

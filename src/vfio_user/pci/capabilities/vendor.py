"""Capabilities whose contents a vendor defines: plain bytes, or a subclass with registers.

A driver that looks for one reads id and length and then whatever the vendor agreed on with itself::

    class Doorbells(VendorSpecificExtended):
        vsec_id = 0x0042
        offset = Register(0x08, access=RO, reset=0x1000)

Spec: PCI 3.0 appendix H; PCI Express Base 7.9.4 to 7.9.6.
"""

from __future__ import annotations

from vfio_user.pci.capabilities.base import Capability, ExtendedCapability
from vfio_user.pci.registers import RO, Field, Register

__all__ = ["DesignatedVendorSpecific", "VendorSpecific", "VendorSpecificExtended"]

_ROOM = 0xC0  # bytes between the header and 0x100
_EXTENDED_ROOM = 0xF00  # bytes between 0x100 and 0x1000


class VendorSpecific(Capability):
    """The conventional vendor-specific capability.

    Args:
        contents: the bytes from offset 3 on, behind the length. A subclass may declare registers there instead.
        writable: software may change them.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: it does not fit configuration space.
    """

    cap_id = 0x09
    repeatable = True

    length = Register(0x02, width=8, access=RO, doc="bytes of the capability, its header included")

    def __init__(self, contents: bytes = b"", *, writable: bool = False, at: int | None = None) -> None:
        start = type(self).size
        self._length = start + len(contents)
        super().__init__(at=at, size=self._length)
        if self._length > _ROOM:
            raise self.refuse(
                f"{self._length} bytes; there are {_ROOM} for all capabilities: use VendorSpecificExtended"
            )
        if contents:
            self.add_contents(start, contents, writable=writable)

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.length = self._length


class VendorSpecificExtended(ExtendedCapability):
    """The vendor-specific extended capability (VSEC).

    Args:
        vsec_id: which of the vendor's structures it is, 16 bits; None takes the class's.
        contents: the bytes from offset 8 on. A subclass may declare registers there instead.
        revision: of the structure, 0 to 15.
        writable: software may change the contents.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: a number does not fit its field, or all of it does not fit configuration space.
    """

    cap_id = 0x0B
    repeatable = True
    vsec_id: int = 0

    vendor_header = Register(
        0x04,
        access=RO,
        fields=[Field("id", (15, 0)), Field("revision", (19, 16)), Field("length", (31, 20))],
    )

    def __init__(
        self,
        vsec_id: int | None = None,
        contents: bytes = b"",
        *,
        revision: int = 0,
        writable: bool = False,
        at: int | None = None,
    ) -> None:
        start = type(self).size
        self._length = start + len(contents)
        super().__init__(at=at, size=self._length)
        self.vsec_id = type(self).vsec_id if vsec_id is None else vsec_id
        self._revision = revision
        self.check_range(
            vsec_id=(self.vsec_id, 0xFFFF), revision=(revision, 0xF), length=(self._length, _EXTENDED_ROOM)
        )
        if contents:
            self.add_contents(start, contents, writable=writable)

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.vendor_header = self._length << 20 | self._revision << 16 | self.vsec_id


class DesignatedVendorSpecific(ExtendedCapability):
    """The designated vendor-specific extended capability (DVSEC), which names the vendor too. CXL devices have several.

    Args:
        dvsec_vendor_id: whose structure it is, 16 bits; None takes the class's.
        dvsec_id: which one, 16 bits; None takes the class's.
        contents: the bytes from offset 0x0A on. A subclass may declare registers there instead.
        revision: of the structure, 0 to 15.
        writable: software may change the contents.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: a number does not fit its field, or all of it does not fit configuration space.
    """

    cap_id = 0x23
    repeatable = True
    dvsec_vendor_id: int = 0
    dvsec_id: int = 0

    vendor_header = Register(
        0x04,
        access=RO,
        fields=[Field("vendor_id", (15, 0)), Field("revision", (19, 16)), Field("length", (31, 20))],
    )
    structure_id = Register(0x08, width=16, access=RO)

    def __init__(
        self,
        dvsec_vendor_id: int | None = None,
        dvsec_id: int | None = None,
        contents: bytes = b"",
        *,
        revision: int = 0,
        writable: bool = False,
        at: int | None = None,
    ) -> None:
        start = type(self).size
        self._length = start + len(contents)
        super().__init__(at=at, size=self._length)
        self.dvsec_vendor_id = type(self).dvsec_vendor_id if dvsec_vendor_id is None else dvsec_vendor_id
        self.dvsec_id = type(self).dvsec_id if dvsec_id is None else dvsec_id
        self._revision = revision
        self.check_range(
            dvsec_vendor_id=(self.dvsec_vendor_id, 0xFFFF),
            dvsec_id=(self.dvsec_id, 0xFFFF),
            revision=(revision, 0xF),
            length=(self._length, _EXTENDED_ROOM),
        )
        if contents:
            self.add_contents(start, contents, writable=writable)

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.vendor_header = self._length << 20 | self._revision << 16 | self.dvsec_vendor_id
        self.structure_id = self.dvsec_id

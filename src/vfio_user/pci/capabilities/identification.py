"""Capabilities that say who a device is: serial number, subsystem ids, vital product data.

Spec: PCI Express Base 7.9.3 (serial number), 7.9.17 (VPD); PCI 3.0 6.4 and appendix I (VPD); PCI-to-PCI Bridge 1.2
3.2.5.13 (subsystem ids).
"""

from __future__ import annotations

from collections.abc import Mapping

from vfio_user.errors import DefinitionError
from vfio_user.pci.capabilities.base import Capability, ExtendedCapability
from vfio_user.pci.registers import RO, Field, Register, on_write

__all__ = ["DeviceSerialNumber", "SubsystemIds", "VitalProductData", "build_vital_product_data"]

_VPD_MAX = 1 << 15  # the address field has 15 bits
_TAG_NAME, _TAG_READ_ONLY, _TAG_WRITABLE, _TAG_END = 0x82, 0x90, 0x91, 0x78


class DeviceSerialNumber(ExtendedCapability):
    """The device serial number.

    Args:
        serial: 64 bits, an IEEE EUI-64.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: ``serial`` has more than 64 bits.
    """

    cap_id = 0x03

    low = Register(0x04, access=RO)
    high = Register(0x08, access=RO)

    def __init__(self, serial: int, *, at: int | None = None) -> None:
        super().__init__(at=at)
        self.check_range(serial=(serial, (1 << 64) - 1))
        self.serial = serial

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.low = self.serial & 0xFFFF_FFFF
        self.high = self.serial >> 32


class SubsystemIds(Capability):
    """Subsystem ids as bridges have them; an endpoint's are in its header.

    Args:
        subsystem_vendor_id: 16 bits.
        subsystem_id: 16 bits.
        at: offset in configuration space; None places it.

    Raises:
        DefinitionError: an id has more than 16 bits.
    """

    cap_id = 0x0D

    vendor = Register(0x04, width=16, access=RO)
    subsystem = Register(0x06, width=16, access=RO)

    def __init__(self, subsystem_vendor_id: int, subsystem_id: int, *, at: int | None = None) -> None:
        super().__init__(at=at)
        self.check_range(subsystem_vendor_id=(subsystem_vendor_id, 0xFFFF), subsystem_id=(subsystem_id, 0xFFFF))
        self._ids = subsystem_vendor_id, subsystem_id

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        super().configure()
        self.vendor, self.subsystem = self._ids


class VitalProductData(Capability):
    """Vital product data: a small memory software reads four bytes at a time.

    Args:
        contents: what it holds; ``build_vital_product_data`` makes it from names and keywords.
        writable: bytes software may change, as a range of offsets.
        at: offset of the capability in configuration space; None places it.

    Attributes:
        memory: the data, which software's writes change.

    Raises:
        DefinitionError: more than 32 KiB.
    """

    cap_id = 0x03

    address = Register(0x02, width=16, fields=[Field("address", (14, 0)), Field("flag", 15)])
    word = Register(0x04, doc="the four bytes at address")

    def __init__(self, contents: bytes, *, writable: range = range(0), at: int | None = None) -> None:
        super().__init__(at=at)
        if len(contents) > _VPD_MAX:
            raise self.refuse(f"{len(contents)} bytes; the address has 15 bits: {_VPD_MAX} at most")
        self.memory = bytearray(contents.ljust(-(-len(contents) // 4) * 4, b"\0"))
        self._writable = writable

    @on_write("address.flag")
    def _transfer(self, flag: int) -> None:
        # The flag is the direction; when it turns over, the transfer is done. Ours are done at once.
        start = self.address.address & ~3
        if flag:
            data = int(self.word).to_bytes(4, "little")
            for at, byte in enumerate(data, start):
                if at in self._writable and at < len(self.memory):
                    self.memory[at] = byte
            self.notify("word")
        else:
            self.word = int.from_bytes(self.memory[start : start + 4], "little")
        self.address.flag = not flag


def build_vital_product_data(
    name: str, read_only: Mapping[str, str | bytes], writable: Mapping[str, str | bytes] | None = None
) -> bytes:
    """Makes vital product data: the identifier string, the read-only keywords with their checksum, the writable ones.

    Args:
        name: the product's name.
        read_only: two-letter keywords: PN part number, SN serial number, MN manufacturer, EC engineering change,
            V0 to VZ vendor-specific.
        writable: two-letter keywords: YA asset tag, Y0 to YZ system-specific, V0 to VZ vendor-specific.

    Raises:
        DefinitionError: a keyword is not two characters long, or its value is longer than 255 bytes.
    """
    data = _large(_TAG_NAME, name.encode())
    fields = b"".join(_keyword(keyword, value) for keyword, value in read_only.items())
    # RV, the last one: a byte that makes everything up to and including it add up to 0.
    head = data + _large(_TAG_READ_ONLY, fields + b"RV\x01\x00")[:-1]
    data = head + bytes([-sum(head) & 0xFF])
    if writable:
        data += _large(_TAG_WRITABLE, b"".join(_keyword(keyword, value) for keyword, value in writable.items()))
    return data + bytes([_TAG_END])


def _large(tag: int, contents: bytes) -> bytes:
    return bytes([tag]) + len(contents).to_bytes(2, "little") + contents


def _keyword(keyword: str, value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    if len(keyword) != 2 or not keyword.isascii() or len(encoded) > 0xFF:
        raise DefinitionError(
            f"vital product data: {keyword!r} with {len(encoded)} bytes; a keyword has two ASCII characters and at "
            "most 255 bytes"
        )
    return keyword.encode() + bytes([len(encoded)]) + encoded

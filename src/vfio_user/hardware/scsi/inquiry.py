"""INQUIRY data: the standard data, and the pages of vital product data. Spec: SPC-4 6.6.2 and 7.8, SBC-3 6.5."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

from vfio_user.hardware.scsi.layout import Layout

__all__ = [
    "BLOCK_LIMITS",
    "PROVISIONING",
    "VpdPage",
    "block_characteristics_page",
    "identification_page",
    "serial_number_page",
    "standard_inquiry",
    "supported_pages",
    "vpd_page",
]

_STANDARD = Layout(
    74,
    peripheral=(0, 7, 8),
    removable=(1, 7),
    version=(2, 7, 8),
    response_format=(3, 3, 4),
    hierarchical=(3, 4),
    additional_length=(4, 7, 8),
    command_queuing=(7, 1),
    synchronous=(7, 4),
    wide_16=(7, 5),
    vendor=(8, 7, 64),
    product=(16, 7, 128),
    revision=(32, 7, 32),
    clocking=(56, 3, 2),
    version_1=(58, 7, 16),
    version_2=(60, 7, 16),
    version_3=(62, 7, 16),
)

#: VERSION DESCRIPTORs, no version claimed: SAM-5, SPC-4, and SBC-3 or MMC-6.
_SAM, _SPC = 0x00A0, 0x0460
_COMMAND_SETS = {0x00: 0x04C0, 0x05: 0x04E0}

#: VERSION of a device that follows SPC-4.
_SPC_4 = 6


class VpdPage(IntEnum):
    """Pages of vital product data."""

    SUPPORTED_PAGES = 0x00
    UNIT_SERIAL_NUMBER = 0x80
    DEVICE_IDENTIFICATION = 0x83
    BLOCK_LIMITS = 0xB0
    BLOCK_DEVICE_CHARACTERISTICS = 0xB1
    LOGICAL_BLOCK_PROVISIONING = 0xB2


#: Block Limits, without its header. Lengths are in blocks. Spec: SBC-3 6.5.3.
BLOCK_LIMITS = Layout(
    60,
    write_same_non_zero=(0, 0),
    max_compare_and_write=(1, 7, 8),
    optimal_granularity=(2, 7, 16),
    max_transfer_length=(4, 7, 32),
    optimal_transfer_length=(8, 7, 32),
    max_prefetch_length=(12, 7, 32),
    max_unmap_blocks=(16, 7, 32),
    max_unmap_descriptors=(20, 7, 32),
    optimal_unmap_granularity=(24, 7, 32),
    max_write_same_length=(32, 7, 64),
)

#: Logical Block Provisioning, without its header. Spec: SBC-3 6.5.4.
PROVISIONING = Layout(
    4,
    threshold_exponent=(0, 7, 8),
    unmap=(1, 7),
    write_same_16=(1, 6),
    write_same_10=(1, 5),
    reads_zeroes=(1, 4, 3),
    type=(2, 2, 3),
)


def standard_inquiry(peripheral: int, *, removable: bool, vendor: str, product: str, revision: str) -> bytes:
    """Standard INQUIRY data.

    Raises:
        ValueError: a text is too long: 8, 16 and 4 characters of ASCII at most.
    """
    return bytes(
        _STANDARD.pack(
            peripheral=peripheral,
            removable=int(removable),
            version=_SPC_4,
            response_format=2,
            hierarchical=1,
            additional_length=_STANDARD.length - 5,
            command_queuing=1,
            # A parallel bus of any speed: what adapters of other buses do not look at.
            synchronous=1,
            wide_16=1,
            clocking=3,
            vendor=vendor,
            product=product,
            revision=revision,
            version_1=_SAM,
            version_2=_SPC,
            version_3=_COMMAND_SETS.get(peripheral, 0),
        )
    )


def vpd_page(peripheral: int, code: int, body: bytes) -> bytes:
    """A page of vital product data, with its header. Spec: SPC-4 7.8.1."""
    return struct.pack(">BBH", peripheral, code, len(body)) + body


def supported_pages(peripheral: int, pages: Iterable[int]) -> bytes:
    """The page that lists the others, and itself. Spec: SPC-4 7.8.14."""
    return vpd_page(peripheral, VpdPage.SUPPORTED_PAGES, bytes(sorted({VpdPage.SUPPORTED_PAGES, *pages})))


def serial_number_page(serial: str) -> bytes:
    """Unit Serial Number, without its header. Spec: SPC-4 7.8.15."""
    return serial.encode("ascii")


def identification_page(vendor: str, product: str, serial: str, naa: int) -> bytes:
    """Device Identification, without its header. Spec: SPC-4 7.8.6.

    Args:
        vendor: 8 characters.
        product: 16 characters.
        serial: what makes the two unique.
        naa: 64 bits, a locally assigned name: NAA 3.
    """
    text = (vendor.ljust(8) + product.ljust(16) + serial).encode("ascii")
    t10 = struct.pack(">BBxB", 0x02, 0x01, len(text)) + text
    name = struct.pack(">BBxBQ", 0x01, 0x03, 8, naa)
    return t10 + name


def block_characteristics_page(*, rotation_rate: int = 1) -> bytes:
    """Block Device Characteristics, without its header: 1 means that nothing rotates. Spec: SBC-3 6.5.2."""
    return struct.pack(">H58x", rotation_rate)

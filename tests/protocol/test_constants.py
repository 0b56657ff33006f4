"""The numbers: against the specification's tables, and against the kernel's own header where VFIO shares them."""

from __future__ import annotations

import re
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from vfio_user.protocol import constants
from vfio_user.protocol.constants import (
    Command,
    DeviceFlags,
    DmaUnmapFlags,
    HeaderFlags,
    IrqIndex,
    IrqInfoFlags,
    IrqSetFlags,
    RegionCapability,
    RegionFlags,
    RegionIndex,
)

VFIO_HEADER = Path("/usr/include/linux/vfio.h")

# Ours -> the kernel's, member by member. VFIO_DMA_MAP_FLAG_* and VFIO_DEVICE_FLAGS_* are shared in part: vfio-user has
# access modes of its own in the former's free bits.
SHARED: list[tuple[IntEnum | IntFlag | int, str]] = [
    *((member, f"VFIO_PCI_{member.name}_REGION_INDEX") for member in RegionIndex if member.name != "MIGRATION"),
    (constants.NUM_PCI_REGIONS, "VFIO_PCI_NUM_REGIONS"),
    *((member, f"VFIO_PCI_{member.name}_IRQ_INDEX") for member in IrqIndex),
    (constants.NUM_PCI_IRQS, "VFIO_PCI_NUM_IRQS"),
    *((member, f"VFIO_DEVICE_FLAGS_{member.name}") for member in DeviceFlags),
    *((member, f"VFIO_REGION_INFO_FLAG_{member.name}") for member in RegionFlags),
    *((member, f"VFIO_REGION_INFO_CAP_{member.name}") for member in RegionCapability),
    (constants.DmaMapFlags.READ, "VFIO_DMA_MAP_FLAG_READ"),
    (constants.DmaMapFlags.WRITE, "VFIO_DMA_MAP_FLAG_WRITE"),
    *((member, f"VFIO_DMA_UNMAP_FLAG_{member.name}") for member in DmaUnmapFlags),
    *((member, f"VFIO_IRQ_INFO_{member.name}") for member in IrqInfoFlags),
    *((member, f"VFIO_IRQ_SET_{member.name}") for member in IrqSetFlags),
    (IrqSetFlags.DATA_MASK, "VFIO_IRQ_SET_DATA_TYPE_MASK"),
    (IrqSetFlags.ACTION_TYPE_MASK, "VFIO_IRQ_SET_ACTION_TYPE_MASK"),
]


@pytest.fixture(scope="module")
def kernel_values() -> dict[str, int]:
    """Every constant of the kernel's header whose value is a plain expression: #defines, and anonymous enums."""
    if not VFIO_HEADER.exists():
        pytest.skip(f"{VFIO_HEADER} is not there; linux-libc-dev (Debian) or kernel-headers (Fedora) has it")
    text = re.sub(r"/\*.*?\*/", " ", VFIO_HEADER.read_text(), flags=re.DOTALL).replace("\\\n", " ")
    values: dict[str, int] = {}
    for name, expression in re.findall(r"^#define[ \t]+(VFIO_\w+)[ \t]+(\S.*)$", text, flags=re.MULTILINE):
        value = evaluate(expression, values)
        if value is not None:
            values[name] = value
    for body in re.findall(r"\benum\s*\{(.*?)\}", text, flags=re.DOTALL):
        following = 0
        for name, expression in re.findall(r"(\w+)\s*(?:=\s*([^,]+))?(?:,|\s*$)", body):
            following = int(expression, 0) if expression else following
            values[name] = following
            following += 1
    return values


def evaluate(expression: str, known: dict[str, int]) -> int | None:
    """The value of an expression made of numbers, known names, ``|``, ``<<`` and parentheses; None for any other."""
    python = re.sub(r"[A-Za-z_]\w*", lambda name: str(known.get(name[0], name[0])), expression)
    if not re.fullmatch(r"[\d\s()|<xXa-fA-F]+", python):
        return None
    return int(eval(python, {"__builtins__": {}}))


@pytest.mark.parametrize(("ours", "theirs"), SHARED, ids=[name for _, name in SHARED])
def test_agrees_with_the_kernel(kernel_values: dict[str, int], ours: int, theirs: str) -> None:
    if theirs == "VFIO_DMA_UNMAP_FLAG_ALL" and theirs not in kernel_values:
        pytest.skip("this header is older than Linux 5.12, which introduced it")
    assert int(ours) == kernel_values[theirs]


# What is vfio-user's own: the specification's table of commands, and the header's flags.
def test_command_numbers() -> None:
    names = """
        VERSION DMA_MAP DMA_UNMAP DEVICE_GET_INFO DEVICE_GET_REGION_INFO DEVICE_GET_REGION_IO_FDS DEVICE_GET_IRQ_INFO
        DEVICE_SET_IRQS REGION_READ REGION_WRITE DMA_READ DMA_WRITE DEVICE_RESET DIRTY_PAGES REGION_WRITE_MULTI
        DEVICE_FEATURE MIG_DATA_READ MIG_DATA_WRITE
    """
    assert {name: number for number, name in enumerate(names.split(), start=1)} == {c.name: c.value for c in Command}


def test_header_flags() -> None:
    assert {flag.name: flag.value for flag in HeaderFlags} == {"REPLY": 0x01, "NO_REPLY": 0x10, "ERROR": 0x20}
    assert int(HeaderFlags.TYPE_MASK) == 0x0F


def test_io_fds() -> None:
    assert [(kind.name, kind.value) for kind in constants.IoFdType] == [
        ("IOEVENTFD", 0),
        ("IOREGIONFD", 1),
        ("IOEVENTFD_SHADOW", 2),
    ]
    assert {flag.name: flag.value for flag in constants.IoEventFdFlags} == {
        "DATAMATCH": 1,
        "PIO": 2,
        "VIRTIO_CCW_NOTIFY": 8,
    }
    assert {flag.name: flag.value for flag in constants.IoRegionFdFlags} == {"PIO": 1, "POSTED_WRITES": 2}


def test_dma_access_modes_are_the_bits_vfio_leaves_free() -> None:
    assert int(constants.DmaMapFlags.ACCESS_MMAP) == 0x4
    assert int(constants.DmaMapFlags.ACCESS_FILE_IO) == 0x8


def test_the_migration_region_follows_the_pci_ones() -> None:
    assert RegionIndex.MIGRATION == constants.NUM_PCI_REGIONS == 9


def test_defaults_of_a_silent_peer() -> None:
    assert constants.DEFAULT_MAX_DATA_XFER_SIZE == 1048576
    assert constants.DEFAULT_MAX_MSG_FDS == 1
    assert constants.DEFAULT_MAX_DMA_MAPS == 65535
    assert constants.DEFAULT_PAGE_SIZES == 4096
    assert constants.HEADER_SIZE == 16

"""The numbers of the protocol, one enumeration for each table of the specification.

Spec: vfio-user 0.9.1 (2021) and the text QEMU ships today as ``docs/interop/vfio-user.rst``; values shared with
VFIO are those of ``linux/vfio.h``.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = [
    "DEFAULT_MAX_DATA_XFER_SIZE",
    "DEFAULT_MAX_DMA_MAPS",
    "DEFAULT_MAX_MSG_FDS",
    "DEFAULT_PAGE_SIZES",
    "HEADER_SIZE",
    "MAX_FDS_PER_MESSAGE",
    "NUM_PCI_IRQS",
    "NUM_PCI_REGIONS",
    "Command",
    "DeviceFlags",
    "DmaMapFlags",
    "DmaUnmapFlags",
    "HeaderFlags",
    "IoEventFdFlags",
    "IoFdType",
    "IoRegionFdFlags",
    "IrqIndex",
    "IrqInfoFlags",
    "IrqSetFlags",
    "MessageType",
    "RegionCapability",
    "RegionFlags",
    "RegionIndex",
]

#: Bytes of the header every message begins with. Spec: "Header".
HEADER_SIZE = 16

#: What a silent peer is taken to accept in one region access or DMA message, in bytes. Spec: "VFIO_USER_VERSION".
DEFAULT_MAX_DATA_XFER_SIZE = 1 << 20

#: File descriptors a silent peer is taken to accept in one message. Spec: "VFIO_USER_VERSION". (QEMU assumes 8.)
DEFAULT_MAX_MSG_FDS = 1

#: Mappings a silent peer is taken to keep at once. Spec: "VFIO_USER_VERSION".
DEFAULT_MAX_DMA_MAPS = 65535

#: Page sizes, OR-ed, a silent peer is taken to map by. Spec: "VFIO_USER_VERSION".
DEFAULT_PAGE_SIZES = 4096

#: File descriptors the kernel lets one message carry (SCM_MAX_FD of linux/net/scm.h). Room for all of them is always
#: offered: cloud-hypervisor sends 16 whatever the server advertises, and a truncated control message loses the rest.
MAX_FDS_PER_MESSAGE = 253

#: Regions of a PCI device, present or not. libvfio-user's client insists on exactly this number.
NUM_PCI_REGIONS = 9

#: Interrupt indexes of a PCI device, present or not.
NUM_PCI_IRQS = 5


class Command(IntEnum):
    """What a message asks for. Spec: "Commands"; 14 is in 0.9.1 only, 15 to 18 are in the current text only."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    #: Server to client, as DMA_WRITE is.
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    #: Of the first migration protocol.
    DIRTY_PAGES = 14
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class MessageType(IntEnum):
    """The low four bits of the header's flags. Spec: "Header"; every other value is invalid."""

    COMMAND = 0
    REPLY = 1


class HeaderFlags(IntFlag):
    """The header's flags. Spec: "Header"."""

    REPLY = 1 << 0
    #: The sender wants no reply, not even an error.
    NO_REPLY = 1 << 4
    #: A reply whose ``error`` field holds an errno.
    ERROR = 1 << 5

    TYPE_MASK = 0xF


class RegionIndex(IntEnum):
    """The regions of a PCI device. Spec: ``VFIO_PCI_*_REGION_INDEX`` of ``linux/vfio.h``."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8
    #: The migration region of 0.9.1, only present when asked for.
    MIGRATION = 9


class IrqIndex(IntEnum):
    """The kinds of interrupt of a PCI device. Spec: ``VFIO_PCI_*_IRQ_INDEX`` of ``linux/vfio.h``."""

    INTX = 0
    MSI = 1
    MSIX = 2
    #: Uncorrectable error notification. QEMU stops the whole machine when it fires.
    ERR = 3
    #: The server asks the client to let go of the device.
    REQ = 4


class DeviceFlags(IntFlag):
    """Spec: "VFIO_USER_DEVICE_GET_INFO"."""

    #: DEVICE_RESET is supported.
    RESET = 1 << 0
    PCI = 1 << 1


class RegionFlags(IntFlag):
    """Spec: "VFIO_USER_DEVICE_GET_REGION_INFO"."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    #: A chain of capabilities follows the structure.
    CAPS = 1 << 3


class RegionCapability(IntEnum):
    """Capability ids of a region. Spec: ``VFIO_REGION_INFO_CAP_*`` of ``linux/vfio.h``."""

    SPARSE_MMAP = 1
    TYPE = 2
    MSIX_MAPPABLE = 3


class IoFdType(IntEnum):
    """How a client passes on an access without a message. Spec: "VFIO_USER_DEVICE_GET_REGION_IO_FDS"."""

    IOEVENTFD = 0
    IOREGIONFD = 1
    #: libvfio-user's addition: the value written goes to shared memory first.
    IOEVENTFD_SHADOW = 2


class IoEventFdFlags(IntFlag):
    """Spec: ``KVM_IOEVENTFD_FLAG_*`` of ``linux/kvm.h``; the bit between is for taking one away."""

    DATAMATCH = 1 << 0
    PIO = 1 << 1
    VIRTIO_CCW_NOTIFY = 1 << 3


class IoRegionFdFlags(IntFlag):
    """Spec: "VFIO_USER_DEVICE_GET_REGION_IO_FDS", after an ioctl KVM never got."""

    PIO = 1 << 0
    POSTED_WRITES = 1 << 1


class DmaMapFlags(IntFlag):
    """Spec: "VFIO_USER_DMA_MAP"; the access modes are of the current text (2026)."""

    READ = 1 << 0
    WRITE = 1 << 1
    #: The server maps the descriptor. The default where one came.
    ACCESS_MMAP = 1 << 2
    #: The server uses pread and pwrite on the descriptor.
    ACCESS_FILE_IO = 1 << 3


class DmaUnmapFlags(IntFlag):
    """Spec: "VFIO_USER_DMA_UNMAP". The first is of 0.9.1; the second is practice (libvfio-user, QEMU)."""

    GET_DIRTY_BITMAP = 1 << 0
    ALL = 1 << 1


class IrqInfoFlags(IntFlag):
    """Spec: "VFIO_USER_DEVICE_GET_IRQ_INFO"; ``VFIO_IRQ_INFO_*`` of ``linux/vfio.h``."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    #: Masks itself when it fires, until unmasked: INTx.
    AUTOMASKED = 1 << 2
    #: Vectors can only be set up all at once.
    NORESIZE = 1 << 3


class IrqSetFlags(IntFlag):
    """Spec: "VFIO_USER_DEVICE_SET_IRQS": exactly one of the first three, exactly one of the last three."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5

    DATA_MASK = 0x07
    ACTION_TYPE_MASK = 0x38

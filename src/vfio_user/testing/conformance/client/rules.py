"""What a client has to keep to: every rule that a server can see kept or broken."""

from __future__ import annotations

from typing import NoReturn

from vfio_user.testing.conformance.bench import Bench
from vfio_user.testing.conformance.check import Check

__all__ = ["RULES"]


def _not_asked(_bench: Bench) -> NoReturn:
    raise NotImplementedError("a client is not asked, it is observed")


_MAP, _UNMAP = "vfio-user, VFIO_USER_DMA_MAP", "vfio-user, VFIO_USER_DMA_UNMAP"
_REGION, _IRQS = "vfio-user, VFIO_USER_DEVICE_GET_REGION_INFO", "vfio-user, VFIO_USER_DEVICE_SET_IRQS"
_VERSION, _HEADER = "vfio-user, VFIO_USER_VERSION", "vfio-user, Header"
_FDS = "vfio-user, File descriptor passing"
_READ, _WRITE = "vfio-user, VFIO_USER_REGION_READ", "vfio-user, VFIO_USER_REGION_WRITE"
_MULTI, _FEATURE = "vfio-user, VFIO_USER_REGION_WRITE_MULTI", "vfio-user, VFIO_USER_DEVICE_FEATURE"
_DMA_READ, _DMA_WRITE = "vfio-user, VFIO_USER_DMA_READ", "vfio-user, VFIO_USER_DMA_WRITE"

#: name, clause, what a client is to do; "advised" where real clients do otherwise.
_TABLE: tuple[tuple[str, str, str, str], ...] = (
    ("header.size", _HEADER, "a message has 16 bytes or more, and no more than was agreed on", ""),
    ("header.type", _HEADER, "a message is a command or a reply", ""),
    ("header.reserved-flags", _HEADER, "flags without a meaning are 0", ""),
    ("header.error-flag", _HEADER, "a command has no flag Error", ""),
    ("header.error-field", _HEADER, "the error field of a command is 0", ""),
    ("header.command", _HEADER, "a command that a client has", ""),
    ("header.id-in-use", _HEADER, "no two commands that wait for replies have one id", "advised"),
    ("header.no-reply", _HEADER, "flag No_reply only where a reply would bring nothing but success", "advised"),
    (
        "header.whole-header",
        "practice (QEMU's and libvfio-user's way to read)",
        "a header comes in one piece",
        "advised",
    ),
    ("header.ends-whole", _HEADER, "the connection ends between two messages", ""),
    ("version.first", _VERSION, "VERSION is the first message", ""),
    ("version.once", _VERSION, "VERSION comes once", ""),
    ("version.waits", _VERSION, "nothing is sent before VERSION is answered", ""),
    ("version.form", _VERSION, "4 bytes, then nothing or JSON that ends in a NUL byte", ""),
    ("version.major", _VERSION, "major version 0", ""),
    ("version.capabilities", _VERSION, "capabilities of the right types, within their ranges", ""),
    ("version.no-fds", _VERSION, "no descriptors", ""),
    ("fds.where", _FDS, "descriptors with DMA_MAP and DEVICE_SET_IRQS alone", "advised"),
    ("fds.how-many", _FDS, "no more descriptors than the server's max_msg_fds", ""),
    ("info.form", "vfio-user, VFIO_USER_DEVICE_GET_INFO", "16 bytes, argsz no less", ""),
    ("region_info.form", _REGION, "32 bytes, argsz no less", ""),
    ("region_info.index", _REGION, "a region there is", ""),
    ("region_info.room", _REGION, "asked again, it gives the room it was told is needed", ""),
    ("io_fds.form", "vfio-user, VFIO_USER_DEVICE_GET_REGION_IO_FDS", "16 bytes, argsz no less, flags and count 0", ""),
    ("io_fds.index", "vfio-user, VFIO_USER_DEVICE_GET_REGION_IO_FDS", "a region there is", ""),
    ("irq_info.form", "vfio-user, VFIO_USER_DEVICE_GET_IRQ_INFO", "16 bytes, argsz no less", ""),
    ("irq_info.index", "vfio-user, VFIO_USER_DEVICE_GET_IRQ_INFO", "a kind of interrupt there is", ""),
    ("set_irqs.form", _IRQS, "20 bytes, one kind of data and one action, a byte for each BOOL", ""),
    ("set_irqs.index", _IRQS, "a kind of interrupt there is", ""),
    ("set_irqs.range", _IRQS, "vectors there are", ""),
    ("set_irqs.none", _IRQS, "no vectors only with NONE|TRIGGER from 0, which turns the index off", ""),
    ("set_irqs.fds", _IRQS, "a descriptor for each vector, or none, with EVENTFD alone", ""),
    ("dma_map.form", _MAP, "32 bytes, argsz no less", ""),
    ("dma_map.flags", _MAP, "no flags without a meaning", ""),
    (
        "dma_map.mode",
        "vfio-user (2026), VFIO_USER_DMA_MAP",
        "at most one way of access, and that with a descriptor",
        "",
    ),
    ("dma_map.one-fd", _MAP, "one descriptor at most", ""),
    ("dma_map.range", _MAP, "a range of 1 byte or more within 64 bits of address", ""),
    ("dma_map.pages", _MAP, "address, size and offset are multiples of a page", ""),
    ("dma_map.apart", _MAP, "no range that overlaps another, unless it is the same again", ""),
    ("dma_map.how-many", _MAP, "no more ranges than the server's max_dma_maps", ""),
    ("dma_unmap.form", _UNMAP, "24 bytes, argsz no less, no flags that exclude each other", ""),
    ("dma_unmap.exact", _UNMAP, "exactly a range that was mapped, or everything", ""),
    ("region_read.form", _READ, "16 bytes", ""),
    ("region_read.inside", _READ, "inside a region there is", ""),
    ("region_read.limit", _READ, "no more bytes than the server's max_data_xfer_size", ""),
    ("region_read.flags", _READ, "of a region that can be read", ""),
    ("region_write.form", _WRITE, "16 bytes, and as many of data as its count says", ""),
    ("region_write.inside", _WRITE, "inside a region there is", ""),
    ("region_write.limit", _WRITE, "no more bytes than the server's max_data_xfer_size", ""),
    ("region_write.flags", _WRITE, "of a region that can be written", ""),
    ("write_multi.agreed", _MULTI, "only to a server that said write_multiple", ""),
    ("write_multi.form", _MULTI, "8 bytes, and 24 for each of up to 200 writes of up to 8 bytes", ""),
    ("write_multi.inside", _MULTI, "inside regions there are", ""),
    ("reset.form", "vfio-user, VFIO_USER_DEVICE_RESET", "no payload", ""),
    ("reset.offered", "vfio-user, VFIO_USER_DEVICE_RESET", "only to a device with flag RESET", "advised"),
    ("feature.form", _FEATURE, "8 bytes: one operation, or a probe; with room for the reply", ""),
    (
        "mig_data.form",
        "vfio-user, VFIO_USER_MIG_DATA_READ and VFIO_USER_MIG_DATA_WRITE",
        "8 bytes; argsz 8 and the data",
        "",
    ),
    ("dirty_pages.form", "vfio-user 0.9.1, VFIO_USER_DIRTY_PAGES", "8 bytes and one of three flags; GET_BITMAP 40", ""),
    ("reply.asked-for", _HEADER, "a reply answers something the server asked", ""),
    ("reply.command", _HEADER, "a reply repeats its command", ""),
    ("reply.error-form", _HEADER, "an error reply is a header alone, with an errno that is not 0", ""),
    ("dma_read.reply", _DMA_READ, "the address, the count, and as many bytes; no more than were asked for", ""),
    ("dma_write.reply", _DMA_WRITE, "the address and the count, no more than was sent", ""),
    ("reply.unknown-command", _HEADER, "a command there is not is refused", ""),
)

RULES: tuple[Check, ...] = tuple(
    Check(name, clause, expected, _not_asked, advised=bool(advised)) for name, clause, expected, advised in _TABLE
)

"""What the payloads say of commands few clients send: doorbells, features, migration, dirty pages.

As in ``payloads``, one function for each form.
"""

from __future__ import annotations

import struct

from vfio_user.protocol.dirty_pages import BitmapHeader, DirtyPages, DirtyPagesFlags
from vfio_user.protocol.feature import (
    DeviceFeature,
    DirtyReport,
    DmaLoggingStart,
    Feature,
    FeatureFlags,
    MigrationStateData,
    MigrationSupport,
)
from vfio_user.protocol.migration import MigDataRead, MigDataReadReply, MigDataWrite
from vfio_user.protocol.region_io_fds import IoEventFd, IoRegionFd, RegionIoFds, RegionIoFdsRequest
from vfio_user.trace.names import region_name
from vfio_user.trace.text import Described, Fields, flag_names, show_data, span

__all__ = [
    "bitmap_fields",
    "device_feature",
    "device_feature_reply",
    "dirty_pages",
    "mig_data_read",
    "mig_data_read_reply",
    "mig_data_write",
    "region_io_fds",
    "region_io_fds_request",
    "unmap_bitmap",
]

#: Entries, or ranges, whose fields are listed.
_SHOWN = 32

_HEAD = struct.Struct("<II")

#: Bytes of a request of DIRTY_PAGES that asks for a bitmap, which follows in the reply.
_DIRTY_PAGES_SIZE = 40

_FEATURES = {feature.value: feature for feature in Feature}
_ACTIONS = ((FeatureFlags.GET, "get"), (FeatureFlags.SET, "set"), (FeatureFlags.PROBE, "probe"))


def bitmap_fields(bitmap: bytes, page_size: int) -> tuple[str, Fields]:
    """A dirty bitmap: how many of its bits are set, and the first of them."""
    number = int.from_bytes(bitmap, "little")
    dirty = f"{number.bit_count()} page{'s' if number.bit_count() != 1 else ''} dirty"
    fields = [("page_size", str(page_size)), ("bitmap", f"{len(bitmap)} bytes, {dirty}")]
    if number:
        first = (number & -number).bit_length() - 1
        fields.append(("first dirty", f"page {first}, at {first * page_size:#x} of the range"))
    return dirty, fields


# DEVICE_GET_REGION_IO_FDS.


def region_io_fds_request(payload: bytes) -> Described:
    """Which accesses of a region need no message?"""
    request = RegionIoFdsRequest.decode(payload)
    return region_name(request.index), [("index", region_name(request.index)), ("argsz", str(request.argsz))]


def region_io_fds(payload: bytes) -> Described:
    """These."""
    reply = RegionIoFds.decode(payload)
    name = region_name(reply.index)
    fields = [("index", name), ("argsz", str(reply.argsz)), ("count", str(reply.count))]
    if len(payload) < reply.argsz:
        return f"{name} {reply.count} entries need room for {reply.argsz} bytes", fields
    lines = [_io_fd(entry) for entry in reply.entries]
    fields += [(f"entry {number}", line) for number, line in enumerate(lines[:_SHOWN])]
    if len(lines) > _SHOWN:
        fields.append(("...", f"{len(lines) - _SHOWN} entries more"))
    if not lines:
        return f"{name} none", fields
    return f"{name} {lines[0]}{f', and {len(lines) - 1} more' if len(lines) > 1 else ''}", fields


def _io_fd(entry: IoEventFd | IoRegionFd) -> str:
    place = span(entry.offset, entry.size) if entry.size else f"{entry.offset:#x} of any size"
    if isinstance(entry, IoRegionFd):
        return f"ioregionfd {place} by fd {entry.fd_index}"
    text = f"ioeventfd {place} by fd {entry.fd_index}"
    if entry.flags:
        text += f" {flag_names(entry.flags)}"
    if entry.flags & 1:
        text += f" {entry.datamatch:#x}"
    if entry.shadow is not None:
        text += f", shadow at {entry.shadow.offset:#x} of fd {entry.shadow.fd_index}"
    return text


# DEVICE_FEATURE.


def device_feature(payload: bytes) -> Described:
    """A request. That of GET holds the feature's data only where the question itself needs it."""
    return _feature(payload, with_data=FeatureFlags.SET)


def device_feature_reply(payload: bytes) -> Described:
    """A reply."""
    return _feature(payload, with_data=FeatureFlags.SET | FeatureFlags.GET)


def _feature(payload: bytes, *, with_data: FeatureFlags) -> Described:
    argsz, flags = _HEAD.unpack_from(payload)
    number = flags & FeatureFlags.FEATURE_MASK.value
    feature = _FEATURES.get(number)
    name = feature.name if feature is not None else f"feature {number}"
    action = "|".join(word for bit, word in _ACTIONS if flags & bit) or "nothing"
    fields = [("argsz", str(argsz)), ("feature", name), ("action", action)]
    summary = f"{action} {name}"
    data = payload[DeviceFeature.SIZE :]
    if not data:
        return summary, fields
    expected = flags & with_data and not flags & FeatureFlags.PROBE
    if feature is Feature.DMA_LOGGING_REPORT and flags & FeatureFlags.GET:
        more, described = _dirty_report(data, with_bitmap=bool(with_data & FeatureFlags.GET))
    elif expected and feature is not None:
        more, described = _feature_data(feature, data)
    else:
        more, described = "", [("data", show_data(data))]
    return f"{summary} {more}".rstrip(), fields + described


def _feature_data(feature: Feature, data: bytes) -> Described:
    if feature is Feature.MIGRATION:
        flags = flag_names(MigrationSupport.decode(data).flags)
        return flags, [("flags", flags)]
    if feature is Feature.MIG_DEVICE_STATE:
        state = MigrationStateData.decode(data).state.name
        return state, [("state", state)]
    if feature is Feature.DMA_LOGGING_START:
        start = DmaLoggingStart.decode(data)
        ranges = [span(iova, size) for iova, size in start.ranges]
        what = f"of {ranges[0]}" if len(ranges) == 1 else f"of {len(ranges)} ranges" if ranges else "of everything"
        fields = [("page_size", str(start.page_size)), *(("range", text) for text in ranges[:_SHOWN])]
        if len(ranges) > _SHOWN:
            fields.append(("...", f"{len(ranges) - _SHOWN} ranges more"))
        return f"{what} by {start.page_size} bytes", fields
    return "", [("data", show_data(data))]


def _dirty_report(data: bytes, *, with_bitmap: bool) -> Described:
    report = DirtyReport.decode(data)
    place = span(report.iova, report.length)
    fields = [("iova", place), ("page_size", str(report.page_size))]
    bitmap = data[DirtyReport.SIZE :]
    if not (with_bitmap and bitmap):
        return place, fields
    dirty, more = bitmap_fields(bitmap, report.page_size)
    return f"{place} {dirty}", [*fields, *more[1:]]


# MIG_DATA_READ and MIG_DATA_WRITE.


def mig_data_read(payload: bytes) -> Described:
    """The next of the device's state?"""
    size = MigDataRead.decode(payload).size
    return f"up to {size} bytes", [("size", str(size))]


def mig_data_read_reply(payload: bytes) -> Described:
    """This."""
    return _state(MigDataReadReply.decode(payload).data)


def mig_data_write(payload: bytes) -> Described:
    """The next of the state the device is to have."""
    return _state(MigDataWrite.decode(payload).data)


def _state(data: bytes) -> Described:
    fields = [("size", str(len(data)))]
    if data:
        fields.append(("data", show_data(data)))
    return f"{len(data)} byte{'s' if len(data) != 1 else ''}", fields


# DIRTY_PAGES.


def dirty_pages(payload: bytes) -> Described:
    """A request, or the reply, which repeats it and adds the bitmap; that to START and STOP is empty."""
    if not payload:
        return "", []
    message = DirtyPages.decode(payload)
    operation = message.operation.name or "?"
    fields = [("argsz", str(message.argsz)), ("operation", operation)]
    wanted = message.wanted
    if message.operation != DirtyPagesFlags.GET_BITMAP or wanted is None:
        return operation, fields
    place = span(wanted.iova, wanted.length)
    fields.append(("iova", place))
    bitmap = payload[_DIRTY_PAGES_SIZE:]
    if not bitmap:
        fields += [("page_size", str(wanted.page_size)), ("bitmap_size", str(wanted.bitmap_size))]
        return f"{operation} {place} by {wanted.page_size} bytes", fields
    dirty, more = bitmap_fields(bitmap, wanted.page_size)
    return f"{operation} {place} {dirty}", [*fields, *more]


def unmap_bitmap(payload: bytes) -> Described:
    """What follows a DMA_UNMAP that asks for the dirty pages: which bitmap, and in the reply the bitmap."""
    header = BitmapHeader.decode(payload)
    bitmap = payload[_HEAD.size * 2 :]
    if not bitmap:
        return f"by {header.page_size} bytes", [("page_size", str(header.page_size)), ("bitmap_size", str(header.size))]
    return bitmap_fields(bitmap, header.page_size)

"""What each command's payload, and its reply's, says: a phrase, and its fields.

One function for each form; the tables at the end say which commands have it.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable

from vfio_user.protocol.constants import Command, DmaUnmapFlags, IrqSetFlags
from vfio_user.protocol.device import DeviceInfo, DeviceInfoRequest
from vfio_user.protocol.dma import DmaMap, DmaUnmap, DmaWriteReply
from vfio_user.protocol.irq import IrqInfo, IrqInfoRequest, SetIrqs
from vfio_user.protocol.region import (
    ACCESS,
    RegionAccess,
    RegionInfo,
    RegionInfoRequest,
    RegionWriteMulti,
    WriteMultiReply,
)
from vfio_user.protocol.version import VersionMessage
from vfio_user.trace.names import RegionNames, irq_name, region_name
from vfio_user.trace.rare_payloads import (
    device_feature,
    device_feature_reply,
    dirty_pages,
    mig_data_read,
    mig_data_read_reply,
    mig_data_write,
    region_io_fds,
    region_io_fds_request,
    unmap_bitmap,
)
from vfio_user.trace.text import Described, Fields, elide, escape, flag_names, show_data, span

__all__ = ["Described", "Fields", "describe_payload"]

#: Characters of a peer's JSON one line shows.
_SHOWN_JSON = 48

#: Bytes of an access whose registers are named; clients read the whole configuration space at once.
_NAMED_BYTES = 8

#: Writes of a REGION_WRITE_MULTI, and mappable areas, that are listed.
_SHOWN_ITEMS = 32

#: The fields of a register in the text that tells its value.
_FIELD_LIST = re.compile(r" \(([^()]*)\)")

_DMA_ACCESS = struct.Struct("<QQ")


def describe_payload(command: int, payload: bytes, names: RegionNames, *, is_reply: bool) -> Described:
    """Reads a payload.

    Raises:
        ProtocolError, struct.error: it cannot be read.
    """
    named = (_NAMED_REPLIES if is_reply else _NAMED_COMMANDS).get(command)
    if named is not None:
        return named(payload, names)
    return (_REPLIES if is_reply else _COMMANDS).get(command, _unknown)(payload)


def _unknown(payload: bytes) -> Described:
    return f"{len(payload)} bytes" if payload else "", [("payload", show_data(payload))] if payload else []


def _version(payload: bytes) -> Described:
    message = VersionMessage.decode(payload)
    number = f"{message.major}.{message.minor}"
    if message.capabilities is None:
        return f"{number} without capabilities", [("version", number)]
    shown = [(escape(key), escape(_json(value))) for key, value in message.capabilities.items()]
    brief = ", ".join(f"{key} {value}" for key, value in shown)
    return f"{number} {elide(brief, _SHOWN_JSON)}".rstrip(), [("version", number), *shown]


def _json(value: object) -> str:
    try:
        return json.dumps(value)
    except (ValueError, RecursionError):
        return "(too deep to show)"


def _dma_map(payload: bytes) -> Described:
    request = DmaMap.decode(payload)
    place = span(request.iova, request.size)
    flags = flag_names(request.flags)
    return f"IOVA {place} {flags} at fd offset {request.fd_offset:#x}", [
        ("iova", place),
        ("size", f"{request.size:#x}"),
        ("flags", flags),
        ("fd_offset", f"{request.fd_offset:#x}"),
    ]


def _dma_unmap(payload: bytes) -> Described:
    request = DmaUnmap.decode(payload)
    place = span(request.iova, request.size)
    flags = flag_names(request.flags)
    summary = "everything" if not request.size and flags == "ALL" else f"IOVA {place}"
    if flags not in ("0", "ALL"):
        summary += f" {flags}"
    fields = [("argsz", str(request.argsz)), ("iova", place), ("flags", flags)]
    if request.flags & DmaUnmapFlags.GET_DIRTY_BITMAP and len(payload) > DmaUnmap.SIZE:
        bitmap, more = unmap_bitmap(payload[DmaUnmap.SIZE :])
        return f"{summary} {bitmap}", fields + more
    return summary, fields


def _device_info_request(payload: bytes) -> Described:
    return "", [("argsz", str(DeviceInfoRequest.decode(payload).argsz))]


def _device_info(payload: bytes) -> Described:
    info = DeviceInfo.decode(payload)
    flags = flag_names(info.flags)
    return f"{flags}, {info.num_regions} regions, {info.num_irqs} kinds of interrupt", [
        ("flags", flags),
        ("num_regions", str(info.num_regions)),
        ("num_irqs", str(info.num_irqs)),
    ]


def _region_info_request(payload: bytes) -> Described:
    request = RegionInfoRequest.decode(payload)
    return region_name(request.index), [("index", region_name(request.index)), ("argsz", str(request.argsz))]


def _region_info(payload: bytes) -> Described:
    info = RegionInfo.decode(payload)
    name, flags = region_name(info.index), flag_names(info.flags)
    fields = [("index", name), ("flags", flags), ("size", f"{info.size:#x}"), ("fd_offset", f"{info.fd_offset:#x}")]
    fields += [("mappable", span(area.offset, area.size)) for area in info.areas[:_SHOWN_ITEMS]]
    if len(info.areas) > _SHOWN_ITEMS:
        fields.append(("...", f"{len(info.areas) - _SHOWN_ITEMS} areas more"))
    if info.region_type is not None:
        fields.append(("type", f"{info.region_type[0]:#x}, subtype {info.region_type[1]:#x}"))
    return f"{name} {'absent' if not info.size else f'size {info.size:#x} {flags}'}", fields


def _irq_info_request(payload: bytes) -> Described:
    name = irq_name(IrqInfoRequest.decode(payload).index)
    return name, [("index", name)]


def _irq_info(payload: bytes) -> Described:
    info = IrqInfo.decode(payload)
    name, flags = irq_name(info.index), flag_names(info.flags)
    what = f"{info.count} vector{'s' if info.count != 1 else ''} {flags}" if info.count else "absent"
    return f"{name} {what}", [("index", name), ("flags", flags), ("count", str(info.count))]


def _set_irqs(payload: bytes) -> Described:
    request = SetIrqs.decode(payload)
    name = irq_name(request.index)
    action = flag_names(IrqSetFlags(request.flags & IrqSetFlags.ACTION_TYPE_MASK)).removeprefix("ACTION_").lower()
    data = flag_names(IrqSetFlags(request.flags & IrqSetFlags.DATA_MASK)).removeprefix("DATA_").lower()
    vectors = f"[{request.start}, {request.start + request.count})"
    if data == "none" and action == "trigger" and not request.count:
        summary = f"{name} disable"
    else:
        summary = f"{name} {action} {data} vectors {vectors}"
    fields = [("index", name), ("action", action), ("data", data), ("vectors", vectors)]
    if request.bools:
        fields.append(("bools", show_data(request.bools) if len(request.bools) > 8 else request.bools.hex(" ")))
    return summary, fields


def _access_fields(access: RegionAccess) -> Fields:
    return [("region", region_name(access.region)), ("offset", f"{access.offset:#x}"), ("count", str(access.count))]


def _place(access: RegionAccess) -> str:
    return f"{region_name(access.region)}+{access.offset:#x}"


def _count(number: int) -> str:
    return f"{number} byte{'s' if number != 1 else ''}"


def _access_only(payload: bytes, names: RegionNames, *, writing: bool) -> Described:
    """A read's request, and a write's reply: which bytes, without data."""
    access = RegionAccess.decode(payload)
    fields = _access_fields(access)
    registers = ""
    if 0 < access.count <= _NAMED_BYTES:
        registers = names.registers(access.region, access.offset, access.count, writing=writing)
    if registers:
        fields.append(("registers", registers))
        return f"{_place(access)} {registers}, {_count(access.count)}", fields
    return f"{_place(access)}, {_count(access.count)}", fields


def _access_with_data(payload: bytes, names: RegionNames, *, writing: bool) -> Described:
    """A write's request, and a read's reply."""
    access = RegionAccess.decode(payload)
    return _described(access, payload[ACCESS.size :], names, writing=writing)


def _described(access: RegionAccess, data: bytes, names: RegionNames, *, writing: bool) -> Described:
    shown = show_data(data)
    fields = [*_access_fields(access), ("data", shown)]
    if len(data) != access.count:
        return f"{_place(access)}, {_count(access.count)} announced, {len(data)} here: {shown}", fields
    values = ""
    if len(data) in (1, 2, 4, 8):
        value = int.from_bytes(data, "little")
        values = names.values(access.region, access.offset, access.count, value, writing=writing)
    if values:
        fields.append(("registers", values))
        return f"{_place(access)} {_FIELD_LIST.sub(_without_zeros, values)}", fields
    return f"{_place(access)} = {shown}", fields


def _without_zeros(fields: re.Match[str]) -> str:
    """The fields of a register that hold something: a line has no room for the others."""
    held = [word for word in fields[1].split() if not word.endswith(("=0", "=0x0"))]
    return f" ({' '.join(held)})" if held else ""


def _read_request(payload: bytes, names: RegionNames) -> Described:
    return _access_only(payload, names, writing=False)


def _read_reply(payload: bytes, names: RegionNames) -> Described:
    return _access_with_data(payload, names, writing=False)


def _write_request(payload: bytes, names: RegionNames) -> Described:
    return _access_with_data(payload, names, writing=True)


def _write_reply(payload: bytes, names: RegionNames) -> Described:
    return _access_only(payload, names, writing=True)


def _write_multi(payload: bytes, names: RegionNames) -> Described:
    writes = RegionWriteMulti.decode(payload).writes
    lines = []
    for write in writes[:_SHOWN_ITEMS]:
        access = RegionAccess(write.offset, write.region, write.count)
        lines.append(_described(access, write.field[: write.count], names, writing=True)[0])
    fields = [(f"write {number}", line) for number, line in enumerate(lines)]
    if len(writes) > _SHOWN_ITEMS:
        fields.append(("...", f"{len(writes) - _SHOWN_ITEMS} writes more"))
    first = f": {lines[0]}{', ...' if len(lines) > 1 else ''}" if lines else ""
    return f"{len(writes)} write{'s' if len(writes) != 1 else ''}{first}", fields


def _write_multi_reply(payload: bytes) -> Described:
    done = WriteMultiReply.decode(payload).done
    return f"{done} done", [("done", str(done))]


def _dma_access(payload: bytes) -> Described:
    address, count = _DMA_ACCESS.unpack_from(payload)
    data = payload[_DMA_ACCESS.size :]
    fields = [("iova", f"{address:#x}"), ("count", str(count))]
    if data:
        fields.append(("data", show_data(data)))
    return f"IOVA {span(address, count)}", fields


def _dma_write_reply(payload: bytes) -> Described:
    reply = DmaWriteReply.decode(payload)
    if reply.iova is None or reply.count is None:
        return "", []
    return f"IOVA {span(reply.iova, reply.count)}", [("iova", f"{reply.iova:#x}"), ("count", str(reply.count))]


_COMMANDS: dict[int, Callable[[bytes], Described]] = {
    Command.VERSION: _version,
    Command.DMA_MAP: _dma_map,
    Command.DMA_UNMAP: _dma_unmap,
    Command.DEVICE_GET_INFO: _device_info_request,
    Command.DEVICE_GET_REGION_INFO: _region_info_request,
    Command.DEVICE_GET_IRQ_INFO: _irq_info_request,
    Command.DEVICE_SET_IRQS: _set_irqs,
    Command.DMA_READ: _dma_access,
    Command.DMA_WRITE: _dma_access,
    Command.DEVICE_GET_REGION_IO_FDS: region_io_fds_request,
    Command.DIRTY_PAGES: dirty_pages,
    Command.DEVICE_FEATURE: device_feature,
    Command.MIG_DATA_READ: mig_data_read,
    Command.MIG_DATA_WRITE: mig_data_write,
}

_REPLIES: dict[int, Callable[[bytes], Described]] = {
    Command.VERSION: _version,
    Command.DMA_UNMAP: _dma_unmap,
    Command.DEVICE_GET_INFO: _device_info,
    Command.DEVICE_GET_REGION_INFO: _region_info,
    Command.DEVICE_GET_IRQ_INFO: _irq_info,
    Command.DMA_READ: _dma_access,
    Command.DMA_WRITE: _dma_write_reply,
    Command.REGION_WRITE_MULTI: _write_multi_reply,
    Command.DEVICE_GET_REGION_IO_FDS: region_io_fds,
    Command.DIRTY_PAGES: dirty_pages,
    Command.DEVICE_FEATURE: device_feature_reply,
    Command.MIG_DATA_READ: mig_data_read_reply,
}

#: What is about registers, and says their names where they are known.
_NAMED_COMMANDS: dict[int, Callable[[bytes, RegionNames], Described]] = {
    Command.REGION_READ: _read_request,
    Command.REGION_WRITE: _write_request,
    Command.REGION_WRITE_MULTI: _write_multi,
}

_NAMED_REPLIES: dict[int, Callable[[bytes, RegionNames], Described]] = {
    Command.REGION_READ: _read_reply,
    Command.REGION_WRITE: _write_reply,
}

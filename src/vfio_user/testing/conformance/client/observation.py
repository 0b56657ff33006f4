"""Watches what a client sends, and notes which rules it had occasion to keep, and which it broke first how.

It sees both directions: what a server answered decides what a client may do next. Nothing is refused here; the server
behind does what it does.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import Command, DeviceFlags, DmaMapFlags, DmaUnmapFlags, HeaderFlags, IrqSetFlags
from vfio_user.protocol.device import DeviceInfoRequest
from vfio_user.protocol.dirty_pages import DirtyPages
from vfio_user.protocol.dma import DmaMap, DmaRead, DmaReadReply, DmaUnmap, DmaWrite, DmaWriteReply
from vfio_user.protocol.feature import DeviceFeature
from vfio_user.protocol.header import Header, command_name
from vfio_user.protocol.irq import IrqInfoRequest, SetIrqs
from vfio_user.protocol.migration import MigDataRead, MigDataWrite
from vfio_user.protocol.region import MAX_MULTI_WRITE_SIZE, RegionAccess, RegionInfoRequest, RegionWriteMulti
from vfio_user.protocol.region_io_fds import RegionIoFdsRequest
from vfio_user.protocol.version import Capabilities, VersionMessage
from vfio_user.server.device import Device
from vfio_user.testing.conformance.check import Check, Outcome, Result
from vfio_user.testing.conformance.client.rules import RULES

__all__ = ["Observation"]

_FLAGS = int(HeaderFlags.TYPE_MASK | HeaderFlags.NO_REPLY | HeaderFlags.ERROR)
_MODES = int(DmaMapFlags.ACCESS_MMAP | DmaMapFlags.ACCESS_FILE_IO)
_WITH_FDS = (Command.DMA_MAP, Command.DEVICE_SET_IRQS)
_CLIENTS_OWN = frozenset(Command) - {Command.DMA_READ, Command.DMA_WRITE}
_PAGE = 4096

#: Replies of these say no more than that it worked: those who do not want to know may leave the reply out.
_SAYS_LITTLE = frozenset(
    {
        *(Command.REGION_WRITE, Command.REGION_WRITE_MULTI, Command.DMA_MAP, Command.DMA_UNMAP),
        *(Command.DEVICE_SET_IRQS, Command.DEVICE_RESET, Command.MIG_DATA_WRITE),
    }
)


class Observation:
    """See the module.

    Args:
        device: what the client drives.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kept: dict[str, int] = {}
        self._broken: dict[str, str] = {}
        self.begin()
        self._handlers: dict[int, Callable[[Header, bytes, int], None]] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._info,
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_REGION_IO_FDS: self._io_fds,
            Command.DEVICE_GET_IRQ_INFO: self._irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.DEVICE_RESET: self._reset,
            Command.DIRTY_PAGES: self._dirty_pages,
            Command.REGION_WRITE_MULTI: self._write_multi,
            Command.DEVICE_FEATURE: self._feature,
            Command.MIG_DATA_READ: self._mig_data_read,
            Command.MIG_DATA_WRITE: self._mig_data_write,
        }

    def begin(self) -> None:
        """The next client connects."""
        self._offer = Capabilities()
        self._first = True
        self._is_agreed = False
        self._waiting: set[int] = set()
        self._room: dict[int, int] = {}
        self._mapped: dict[int, tuple[int, int, int]] = {}
        #: By the id of a command that changes mappings: what puts them back if it is refused.
        self._undo: dict[int, Callable[[], object]] = {}
        self._asked: dict[int, tuple[int, bytes]] = {}

    def results(self, rules: Iterable[Check] = RULES) -> list[Result]:
        """What became of each rule: broken, kept as often as there was occasion, or never met."""
        found = []
        for rule in rules:
            if rule.name in self._broken:
                outcome = Outcome.DIFFERS if rule.advised else Outcome.FAILED
                found.append(Result(rule, outcome, self._broken[rule.name]))
            elif count := self._kept.get(rule.name):
                found.append(Result(rule, Outcome.PASSED, f"kept {count} times" if count > 1 else "kept once"))
            else:
                found.append(Result(rule, Outcome.DOES_NOT_APPLY, "the client did nothing it is about"))
        return found

    def see(self, rule: str, is_kept: bool, seen: str) -> bool:
        """Notes that a rule was kept or broken; the first breach is what is told."""
        if is_kept:
            self._kept[rule] = self._kept.get(rule, 0) + 1
        else:
            self._broken.setdefault(rule, seen)
        return is_kept

    def _decodes(self, rule: str, decode: Callable[[], object]) -> bool:
        try:
            decode()
        except RemoteProtocolError as exc:
            return self.see(rule, False, str(exc))
        return self.see(rule, True, "")

    # What the server says.

    def answered(self, header: Header, payload: bytes) -> None:
        """The server answered one of the client's commands."""
        self._waiting.discard(header.message_id)
        is_error = header.is_error
        if header.command == Command.VERSION and not is_error:
            self._is_agreed = True
            # What the script made of it may make no sense; then the client has nothing to keep to.
            with contextlib.suppress(RemoteProtocolError):
                self._offer = Capabilities.parse(VersionMessage.decode(payload).capabilities)
        elif header.command in (Command.DMA_MAP, Command.DMA_UNMAP):
            undo = self._undo.pop(header.message_id, None)
            if undo is not None and is_error:
                undo()
        elif header.command == Command.DEVICE_GET_REGION_INFO and not is_error and len(payload) >= 12:
            self._room[int.from_bytes(payload[8:12], "little")] = int.from_bytes(payload[:4], "little")

    def asked(self, header: Header, payload: bytes) -> None:
        """The server asks the client for something."""
        if not header.no_reply:
            self._asked[header.message_id] = (header.command, payload)

    # What the client says.

    def cut_header(self, count: int) -> None:
        """So many bytes came of a header, and the rest later."""
        self.see("header.whole-header", False, f"{count} of 16 bytes came first")

    def bad_size(self, size: int) -> None:
        """A header with an impossible size came; nothing can be read behind it."""
        self.see("header.size", False, f"{size} bytes")

    def ended(self, left: int) -> None:
        """The client hung up, with so many bytes of a message sent."""
        self.see("header.ends-whole", not left, f"it ended {left} bytes into a message")

    def message(self, header: Header, payload: bytes, fds: int) -> None:
        """The client sent a whole message, with that many descriptors."""
        self.see("header.size", True, "")
        kind = header.flags & HeaderFlags.TYPE_MASK
        if not self.see("header.type", kind <= 1, f"type {kind}"):
            return
        self.see("header.reserved-flags", not header.flags & ~_FLAGS, f"flags {header.flags:#x}")
        self.see("header.whole-header", True, "")
        if header.is_reply:
            self._reply(header, payload)
        else:
            self._command(header, payload, fds)

    def _command(self, header: Header, payload: bytes, fds: int) -> None:
        name = command_name(header.command)
        is_version = header.command == Command.VERSION
        if self._first:
            self._first = False
            self.see("version.first", is_version, f"{name} came first")
        else:
            if is_version:
                self.see("version.once", False, "it came again")
            else:
                self.see("version.once", True, "")
            self.see("version.waits", self._is_agreed, f"{name} came before the reply to VERSION")
        self.see("header.error-flag", not header.is_error, f"{name} has it")
        self.see("header.error-field", not header.error, f"{name} has {header.error}")
        if not self.see("header.command", header.command in _CLIENTS_OWN, name):
            return
        if header.no_reply:
            self.see("header.no-reply", header.command in _SAYS_LITTLE, f"{name} has it")
        else:
            is_free = header.message_id not in self._waiting
            self.see("header.id-in-use", is_free, f"{name} has id {header.message_id}, which another waits with")
            self._waiting.add(header.message_id)
        if fds and not is_version:
            self.see("fds.where", header.command in _WITH_FDS, f"{fds} came with {name}")
            limit = self._offer.max_msg_fds
            self.see("fds.how-many", fds <= limit, f"{fds} came with {name}; {limit} may")
        self._handlers[header.command](header, payload, fds)

    def _version(self, _header: Header, payload: bytes, fds: int) -> None:
        self.see("version.no-fds", not fds, f"{fds} came")
        if self._decodes("version.form", lambda: VersionMessage.decode(payload)):
            message = VersionMessage.decode(payload)
            self.see("version.major", message.major == 0, f"{message.major}.{message.minor}")
            self._decodes("version.capabilities", lambda: Capabilities.parse(message.capabilities))

    def _info(self, _header: Header, payload: bytes, _fds: int) -> None:
        self._decodes("info.form", lambda: DeviceInfoRequest.decode(payload))

    def _is_region(self, rule: str, index: int) -> bool:
        return self.see(rule, index < self._device.num_regions, f"region {index} of {self._device.num_regions}")

    def _region_info(self, _header: Header, payload: bytes, _fds: int) -> None:
        if self._decodes("region_info.form", lambda: RegionInfoRequest.decode(payload)):
            request = RegionInfoRequest.decode(payload)
            self._is_region("region_info.index", request.index)
            if request.index in self._room:
                needed = self._room[request.index]
                self.see(
                    "region_info.room", request.argsz >= needed or request.argsz == 32, f"{request.argsz} of {needed}"
                )

    def _io_fds(self, _header: Header, payload: bytes, _fds: int) -> None:
        if self._decodes("io_fds.form", lambda: RegionIoFdsRequest.decode(payload)):
            self._is_region("io_fds.index", RegionIoFdsRequest.decode(payload).index)

    def _irq_info(self, _header: Header, payload: bytes, _fds: int) -> None:
        if self._decodes("irq_info.form", lambda: IrqInfoRequest.decode(payload)):
            index = IrqInfoRequest.decode(payload).index
            self.see("irq_info.index", index < self._device.num_irqs, f"index {index} of {self._device.num_irqs}")

    def _set_irqs(self, _header: Header, payload: bytes, fds: int) -> None:
        if not self._decodes("set_irqs.form", lambda: SetIrqs.decode(payload)):
            return
        request = SetIrqs.decode(payload)
        index, start, count = request.index, request.start, request.count
        if not self.see("set_irqs.index", index < self._device.num_irqs, f"index {index} of {self._device.num_irqs}"):
            return
        is_off = request.flags == IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER and start == 0
        if count == 0:
            self.see("set_irqs.none", is_off, f"flags {int(request.flags):#x}, start {start}")
        else:
            vectors = self._device.interrupts.info(index)[1]
            self.see("set_irqs.range", start + count <= vectors, f"[{start}, {start + count}) of {vectors}")
        is_eventfd = bool(request.flags & IrqSetFlags.DATA_EVENTFD)
        if is_eventfd or fds:
            self.see(
                "set_irqs.fds", is_eventfd and fds in (0, count), f"{fds} for {count}, flags {int(request.flags):#x}"
            )

    def _dma_map(self, header: Header, payload: bytes, fds: int) -> None:
        if not self._decodes("dma_map.form", lambda: DmaMap.decode(payload)):
            return
        request = DmaMap.decode(payload)
        flags, end = int(request.flags), request.iova + request.size
        where = f"[{request.iova:#x}, {end:#x})"
        self.see("dma_map.flags", not flags & ~0xF, f"flags {flags:#x}")
        mode = flags & _MODES
        self.see("dma_map.mode", not mode or (mode != _MODES and fds > 0), f"flags {flags:#x}, {fds} descriptors")
        self.see("dma_map.one-fd", fds <= 1, f"{fds} came")
        if not self.see("dma_map.range", request.size > 0 and end <= 1 << 64, where):
            return
        is_aligned = not (request.iova | request.size | request.fd_offset) % _PAGE
        self.see("dma_map.pages", is_aligned, f"{where}, offset {request.fd_offset:#x}")
        same = self._mapped.get(request.iova) == (request.size, request.fd_offset, flags)
        clash = any(iova < end and request.iova < iova + size for iova, (size, _, _) in self._mapped.items())
        self.see("dma_map.apart", same or not clash, where)
        number, limit = len(self._mapped) + (not same), self._offer.max_dma_maps
        self.see("dma_map.how-many", number <= limit, f"{number}; {limit} may be")
        if not clash:
            # A client need not wait for the reply: commands are carried out in their order.
            self._mapped[request.iova] = (request.size, request.fd_offset, flags)
            self._undo[header.message_id] = lambda: self._mapped.pop(request.iova, None)

    def _dma_unmap(self, header: Header, payload: bytes, _fds: int) -> None:
        if not self._decodes("dma_unmap.form", lambda: DmaUnmap.decode(payload)):
            return
        request = DmaUnmap.decode(payload)
        before = self._mapped
        is_mapped = request.iova in before and before[request.iova][0] == request.size
        is_all = request.flags == DmaUnmapFlags.ALL
        where = f"[{request.iova:#x}, {request.iova + request.size:#x})"
        self.see("dma_unmap.exact", is_all or is_mapped, where)
        if is_all or is_mapped:
            self._mapped = {} if is_all else {iova: rest for iova, rest in before.items() if iova != request.iova}
            self._undo[header.message_id] = lambda: self._mapped.update(before)

    def _access(self, rule: str, access: RegionAccess, *, writes: bool) -> None:
        count = self._device.num_regions
        size = self._device.region(access.region).size if access.region < count else 0
        end = access.offset + access.count
        where = f"[{access.offset:#x}, {end:#x}) of region {access.region}, which has {size:#x} bytes"
        is_inside = access.region < count and end <= size
        self.see(f"{rule}.inside", is_inside, where)
        limit = self._offer.max_data_xfer_size
        self.see(f"{rule}.limit", access.count <= limit, f"{access.count} bytes; {limit} may be")
        if is_inside and access.count:
            region = self._device.region(access.region)
            self.see(f"{rule}.flags", region.writable if writes else region.readable, f"region {access.region}")

    def _region_read(self, _header: Header, payload: bytes, _fds: int) -> None:
        if self._decodes("region_read.form", lambda: RegionAccess.decode(payload)):
            self._access("region_read", RegionAccess.decode(payload), writes=False)

    def _region_write(self, _header: Header, payload: bytes, _fds: int) -> None:
        if not self._decodes("region_write.form", lambda: RegionAccess.decode(payload)):
            return
        access = RegionAccess.decode(payload)
        brought = len(payload) - 16
        self.see("region_write.form", brought == access.count, f"{brought} bytes for a count of {access.count}")
        self._access("region_write", access, writes=True)

    def _write_multi(self, _header: Header, payload: bytes, _fds: int) -> None:
        self.see("write_multi.agreed", self._offer.write_multiple, "the server did not")
        if not self._decodes("write_multi.form", lambda: RegionWriteMulti.decode(payload)):
            return
        for write in RegionWriteMulti.decode(payload).writes:
            is_small = write.count <= MAX_MULTI_WRITE_SIZE
            self.see("write_multi.form", is_small, f"a write of {write.count} bytes")
            size = self._device.region(write.region).size if write.region < self._device.num_regions else 0
            end = write.offset + write.count
            self.see("write_multi.inside", end <= size, f"[{write.offset:#x}, {end:#x}) of region {write.region}")

    def _reset(self, _header: Header, payload: bytes, _fds: int) -> None:
        self.see("reset.form", not payload, f"{len(payload)} bytes")
        self.see("reset.offered", bool(self._device.flags & DeviceFlags.RESET), "the device has not")

    def _feature(self, _header: Header, payload: bytes, _fds: int) -> None:
        if self._decodes("feature.form", lambda: DeviceFeature.decode(payload)):
            argsz = DeviceFeature.decode(payload).argsz
            self.see("feature.form", argsz >= len(payload) or argsz >= 16, f"argsz {argsz}, {len(payload)} bytes")

    def _mig_data_read(self, _header: Header, payload: bytes, _fds: int) -> None:
        self._decodes("mig_data.form", lambda: MigDataRead.decode(payload))

    def _mig_data_write(self, _header: Header, payload: bytes, _fds: int) -> None:
        self._decodes("mig_data.form", lambda: MigDataWrite.decode(payload))

    def _dirty_pages(self, _header: Header, payload: bytes, _fds: int) -> None:
        self._decodes("dirty_pages.form", lambda: DirtyPages.decode(payload))

    # What it answers.

    def _reply(self, header: Header, payload: bytes) -> None:
        asked = self._asked.pop(header.message_id, None)
        if not self.see("reply.asked-for", asked is not None, f"a reply with id {header.message_id}"):
            return
        assert asked is not None
        command, request = asked
        self.see(
            "reply.command", header.command == command, f"{command_name(header.command)} to {command_name(command)}"
        )
        if header.is_error:
            is_right = not payload and header.error != 0
            self.see("reply.error-form", is_right, f"errno {header.error}, {len(payload)} bytes")
        if command == Command.DMA_READ and not header.is_error:
            wanted = DmaRead.decode(request)
            if self._decodes("dma_read.reply", lambda: DmaReadReply.decode(payload)):
                got = DmaReadReply.decode(payload)
                is_right = got.iova == wanted.iova and len(got.data) <= wanted.count
                self.see("dma_read.reply", is_right, f"{len(got.data)} bytes at {got.iova:#x} for {wanted}")
        elif command == Command.DMA_WRITE and not header.is_error:
            sent = DmaWrite.decode(request)
            if self._decodes("dma_write.reply", lambda: DmaWriteReply.decode(payload)):
                done = DmaWriteReply.decode(payload)
                is_right = done.iova in (None, sent.iova) and (done.count is None or done.count <= len(sent.data))
                self.see("dma_write.reply", is_right, f"{done.count} bytes for {len(sent.data)}")
        elif command not in (Command.DMA_READ, Command.DMA_WRITE):
            seen = errno.errorcode.get(header.error, "errno 0") if header.is_error else "a success"
            self.see("reply.unknown-command", header.is_error and header.error != 0, seen)

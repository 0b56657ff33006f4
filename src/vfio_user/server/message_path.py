"""The message path: register accesses, from the receive buffer to the region and back, at the speed of the socket.

Nearly every message of a running driver is a REGION_READ or REGION_WRITE of 1, 2, 4 or 8 bytes, and a client waits for
each read. ``message_path`` makes a function that takes those out of the receive buffer itself: one ``unpack_from`` for
header and payload, one list look-up, the region's method, one ``pack``, one ``send``, and no object made on the way.
Posted writes come in runs, which are cut up by one ``iter_unpack``. It is a closure, as everything it needs is fixed
for the length of a session, and looking it up on ``self`` for every message would cost as much as the rest.

The one other message of the kind, for a device with INTx, is that which unmasks it.

Whatever is not of that plain form - another command, an odd size, a bad index - is left to ``Session.consume_one``,
where every refusal gets its errno. The plain form is checked as strictly; it just never has to say what is wrong.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vfio_user.errors import ConnectionClosedError
from vfio_user.protocol.constants import HEADER_SIZE, Command, HeaderFlags, IrqIndex, IrqSetFlags
from vfio_user.protocol.framing import FrameBuffer
from vfio_user.protocol.header import HEADER, Header
from vfio_user.protocol.region import ACCESS_MESSAGE, INTEGER_ACCESS_MESSAGE
from vfio_user.regions import Region
from vfio_user.transport.channel import SEND_FLAGS, Channel

if TYPE_CHECKING:
    from vfio_user.server.session import Session

__all__ = ["message_path"]

_READ = int(Command.REGION_READ)
_WRITE = int(Command.REGION_WRITE)
_SET_IRQS = int(Command.DEVICE_SET_IRQS)
_NO_REPLY = HeaderFlags.NO_REPLY.value
_REPLY = HeaderFlags.REPLY.value

#: Bytes of a read, of a write's reply, and of a write up to its data.
_ACCESS_SIZE = ACCESS_MESSAGE.size
_WRITE4_SIZE = INTEGER_ACCESS_MESSAGE[4].size

#: "Unmask INTx": ``argsz`` and flags of DEVICE_SET_IRQS, where accesses have their offset.
_UNMASK_FLAGS = int(IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_UNMASK)
_UNMASK = 20 | _UNMASK_FLAGS << 32
_INTX = IrqIndex.INTX
_ONE_VECTOR = range(1)


def _by_size(method: str) -> list[Callable[..., Any] | None]:
    """A method of the integer forms, by the bytes accessed; None where an access is no single integer."""
    return [getattr(INTEGER_ACCESS_MESSAGE[n], method) if n in INTEGER_ACCESS_MESSAGE else None for n in range(9)]


def message_path(
    session: Session, frames: FrameBuffer, channel: Channel, regions: list[Region]
) -> Callable[[int], bool]:
    """Makes the function that carries out what was received.

    Args:
        session: does what is not of the plain form, and keeps what a slow client has no room for.
        frames: the receive buffer.
        channel: where replies go.
        regions: by index; they do not change any more.

    Returns:
        ``consume(count)``: ``count`` more bytes are in the buffer. True when all were carried out and nothing waits
        to be sent; False when part of a message is left, or the client must read first.
    """
    buffer = frames.buffer
    whole = memoryview(buffer)
    # (size, method) by index. A region that refuses a direction has size 0 for it here, so that such an access goes
    # the ordinary way, to its errno.
    readers = [(region.size if region.readable else 0, region.read) for region in regions]
    writers = [(region.size if region.writable else 0, region.write) for region in regions]
    number_of_regions = len(regions)
    send = channel.send
    send_flags = SEND_FLAGS
    unpack = ACCESS_MESSAGE.unpack_from
    pack = ACCESS_MESSAGE.pack
    unpack_write4 = INTEGER_ACCESS_MESSAGE[4].unpack_from
    iter_unpack_write4 = INTEGER_ACCESS_MESSAGE[4].iter_unpack
    pack_by_size = _by_size("pack")
    unpack_by_size = _by_size("unpack_from")
    pack_header = HEADER.pack
    device = session.device
    memory = session.client_memory
    failure = session.failure
    consume_one = session.consume_one

    #: Where the posted write that is being carried out ends, if it is none of a run; -1 when there is none.
    posted_at = -1
    #: What is left of the run of posted writes that is being carried out, and where it ends.
    posted_run: Iterator[Any] | None = None
    posted_run_end = 0

    def is_posted() -> bool:
        return posted_at >= 0 or posted_run is not None

    def take_posted() -> int:
        nonlocal posted_at, posted_run
        run = posted_run
        if run is None:
            at, posted_at = posted_at, -1
        else:
            at, posted_run = posted_run_end - operator.length_hint(run) * _WRITE4_SIZE, None
            deque(run, maxlen=0)  # nothing is left for who goes through it, when the device returns
        return at

    memory.is_posted, memory.take_posted = is_posted, take_posted

    def consume(count: int) -> bool:
        nonlocal posted_at
        at, end = frames.start, frames.end + count
        frames.end = end
        if end != count and frames.has_fds:
            return session.consume_ordinarily(0)
        while True:
            while True:
                left = end - at
                # One look at a message is enough when its data, if it has four bytes of it, are looked at as well.
                if left >= _WRITE4_SIZE:
                    message_id, command, size, flags, _, offset, index, count, value = unpack_write4(buffer, at)
                elif left >= _ACCESS_SIZE:
                    message_id, command, size, flags, _, offset, index, count = unpack(buffer, at)
                    value = 0
                else:
                    break
                if index >= number_of_regions or count > 8 or size > left:
                    break
                if command == _READ:
                    limit, read = readers[index]
                    pack_reply = pack_by_size[count]
                    if pack_reply is None or offset + count > limit or size != _ACCESS_SIZE or flags:
                        break
                    at += _ACCESS_SIZE
                    try:
                        reply = pack_reply(
                            message_id,
                            _READ,
                            _ACCESS_SIZE + count,
                            _REPLY,
                            0,
                            offset,
                            index,
                            count,
                            read(offset, count),
                        )
                    except Exception as exc:
                        reply = failed(exc, at, message_id, command, size, flags)
                elif command == _WRITE:
                    limit, write = writers[index]
                    if size != _ACCESS_SIZE + count or offset + count > limit or flags & ~_NO_REPLY:
                        break
                    if count != 4:
                        unpack_write = unpack_by_size[count]
                        if unpack_write is None:
                            break
                        value = unpack_write(buffer, at)[8]
                    at += size
                    if flags:
                        # The device may wait for DMA in there; then what comes after this message is taken from here.
                        posted_at = at
                        try:
                            write(offset, count, value)
                        except Exception as exc:
                            failure(Header(message_id, command, size, flags, 0), exc, b"")
                        if posted_at == at:
                            posted_at = -1
                            if at == end:
                                frames.start = frames.end = 0
                                return True
                            if end - at <= 2 * _WRITE4_SIZE:
                                continue
                            at = consume_posted_run(at, end)
                            if at >= 0:
                                continue
                        memory.client_waits = True
                        if not memory.carry_out_held() or session.is_held_back:
                            return False
                        at, end = frames.start, frames.end
                        if not end:
                            return True
                        continue
                    try:
                        write(offset, count, value)
                        reply = pack(message_id, _WRITE, _ACCESS_SIZE, _REPLY, 0, offset, index, count)
                    except Exception as exc:
                        reply = failed(exc, at, message_id, command, size, flags)
                elif command == _SET_IRQS:
                    # The words of an access are those of another command here. Of all it can say, this is what every
                    # interrupt of a guest without MSI ends with.
                    if offset != _UNMASK or index or count or value != 1 or size != _WRITE4_SIZE or flags:
                        break
                    at += size
                    try:
                        if device.migration is not None:
                            device.migration.check_command(_SET_IRQS, b"")
                        device.interrupts.set_irqs(_INTX, _UNMASK_FLAGS, 0, 1)
                        device.on_irq_mask(_INTX, _ONE_VECTOR, False)
                        reply = pack_header(message_id, _SET_IRQS, HEADER_SIZE, _REPLY, 0)
                    except Exception as exc:
                        reply = failed(exc, at, message_id, command, size, flags)
                else:
                    break
                try:
                    sent = send(reply, send_flags)
                except BlockingIOError:
                    sent = 0
                except OSError as exc:
                    raise ConnectionClosedError(f"the client is gone: {exc.strerror}") from exc
                if sent != len(reply):
                    frames.start = at
                    session.keep(reply, sent)
                    return False
                if at == end:
                    frames.start = frames.end = 0
                    return True
            # Part of a message, or a message that is not of the plain form.
            frames.start = at
            if not consume_one():
                frames.compact()
                return not frames.end and not session.is_held_back
            if session.is_held_back or memory.held:
                return False
            if session.is_restricted:
                return session.consume_ordinarily(0)
            at, end = frames.start, frames.end

    def failed(exc: Exception, end: int, message_id: int, command: int, size: int, flags: int) -> bytes | None:
        return failure(Header(message_id, command, size, flags, 0), exc, bytes(whole[end - size + HEADER_SIZE : end]))

    def consume_posted_run(at: int, end: int) -> int:
        """Carries out the posted 4-byte writes that begin at ``at``.

        Returns:
            Where the first other message begins; -1 when the device waited for DMA, and ``frames`` has what is left.
        """
        nonlocal posted_run, posted_run_end
        number = (end - at) // _WRITE4_SIZE
        run_end = at + number * _WRITE4_SIZE
        run = iter_unpack_write4(whole[at:run_end])
        message_id = 0
        posted_run, posted_run_end = run, run_end
        try:
            for message_id, command, size, flags, _, offset, index, count, value in run:  # noqa: B007  # for failure()
                if command != _WRITE or size != _WRITE4_SIZE or flags != _NO_REPLY or count != 4:
                    break
                if index >= number_of_regions:
                    break
                limit, write = writers[index]
                if offset + 4 > limit:
                    break
                write(offset, 4, value)
            else:
                return run_end if posted_run is run else -1
        except Exception as exc:
            failure(Header(message_id, _WRITE, _WRITE4_SIZE, _NO_REPLY, 0), exc, b"")
            return run_end - operator.length_hint(run) * _WRITE4_SIZE if posted_run is run else -1
        finally:
            posted_run = None
        return run_end - (operator.length_hint(run) + 1) * _WRITE4_SIZE

    return consume

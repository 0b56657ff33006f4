"""Cutting a stream into messages: a model of the kernel with any chunking, and real sockets."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.fds import close_all, identity, memory_file, no_leaks
from vfio_user.errors import FramingError
from vfio_user.protocol.framing import MAX_PENDING_FDS, FrameBuffer, close_fds
from vfio_user.protocol.header import HEADER, Header
from vfio_user.testing.leaks import open_files
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, ancillary_fds

MAX_SIZE = 512


@dataclass(frozen=True)
class Message:
    """What is sent: ``size`` bytes, and as many descriptors."""

    message_id: int
    size: int
    fds: int

    @property
    def data(self) -> bytes:
        payload = bytes((self.message_id + n) & 0xFF for n in range(self.size - 16))
        return HEADER.pack(self.message_id, 8, self.size, 0, 0) + payload


def feed(frames: FrameBuffer, data: bytes, fds: Sequence[int] = ()) -> None:
    """A reception, as a shell does it."""
    memoryview(frames.buffer)[frames.end : frames.end + len(data)] = data
    frames.received(len(data), fds)


def walk(frames: FrameBuffer) -> Iterator[tuple[Header, bytes, list[int]]]:
    """The messages that are whole, with their bytes; their descriptors are the caller's."""
    while (header := frames.next_message()) is not None:
        yield header, bytes(frames.buffer[frames.start : frames.start + header.message_size]), frames.take_fds()
        frames.consume(header.message_size)
    frames.compact()


@contextlib.contextmanager
def frame_buffer(max_message_size: int = MAX_SIZE) -> Iterator[FrameBuffer]:
    frames = FrameBuffer(max_message_size)
    try:
        yield frames
    finally:
        frames.close()


def receptions(segments: list[tuple[bytes, list[int]]], sizes: Iterator[int]) -> Iterator[tuple[bytes, list[int]]]:
    """What ``recvmsg`` returns of the segments, receiving so many bytes at a time: Linux's rule.

    A reception glues segments, but ends with the first that carried descriptors, however little of it was wanted.
    """
    waiting = list(segments)
    while waiting:
        room = next(sizes)
        data = b""
        fds: list[int] = []
        while waiting and room > len(data) and not fds:
            segment, fds = waiting.pop(0)
            taken = segment[: room - len(data)]
            data += taken
            if len(taken) < len(segment):
                waiting.insert(0, (segment[len(taken) :], []))
        yield data, fds


messages_strategy = st.lists(
    st.builds(
        Message,
        st.integers(0, 0xFFFF),
        st.integers(16, 80) | st.integers(MAX_SIZE - 2, MAX_SIZE),
        st.sampled_from([0, 0, 0, 1, 3]),
    ),
    max_size=12,
)
sizes_strategy = st.lists(st.integers(1, 40) | st.integers(40, 2000), min_size=1, max_size=20)


@given(messages_strategy, sizes_strategy)
@example([Message(1, 36, 0), Message(2, 36, 1), Message(3, 36, 1)], [1])
@example([Message(1, 36, 0), Message(2, 36, 1), Message(3, 36, 1)], [2000])
@example([Message(1, MAX_SIZE, 3)] * 3, [MAX_SIZE - 1])
def test_any_chunking_gives_the_same_messages(messages: list[Message], sizes: list[int]) -> None:
    with no_leaks(), frame_buffer() as frames:
        segments = [(message.data, [memory_file() for _ in range(message.fds)]) for message in messages]
        sent = [(data, [identity(fd) for fd in fds]) for data, fds in segments]
        found = []
        for data, fds in receptions(segments, (size for _ in iter(int, 1) for size in sizes)):
            feed(frames, data, fds)
            for header, whole, taken in walk(frames):
                found.append((whole, [identity(fd) for fd in taken]))
                assert header.message_size == len(whole)
                close_all(taken)
        assert found == sent
        assert (frames.start, frames.end, frames.has_fds) == (0, 0, False)


@given(messages_strategy, sizes_strategy, st.integers(0, 2000))
def test_descriptors_nobody_takes_are_closed(messages: list[Message], sizes: list[int], cut: int) -> None:
    with no_leaks(), frame_buffer() as frames:
        segments = [(message.data, [memory_file() for _ in range(message.fds)]) for message in messages]
        left = cut
        for data, fds in receptions(segments, (size for _ in iter(int, 1) for size in sizes)):
            if left <= 0:
                # The connection ends here; what was not received is not ours.
                close_all(fds)
                continue
            left -= len(data)
            feed(frames, data, fds)
            while (header := frames.next_message()) is not None:
                frames.consume(header.message_size)
            frames.compact()


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=60), st.integers(0, 2)), max_size=12))
def test_any_bytes_and_descriptors(chunks: list[tuple[bytes, int]]) -> None:
    with no_leaks(), frame_buffer(64) as frames:
        for data, fds in chunks:
            try:
                feed(frames, data, [memory_file() for _ in range(fds)])
                for header, whole, taken in walk(frames):
                    close_all(taken)
                    assert 16 <= header.message_size == len(whole) <= 64
            except FramingError:
                break


# The rules one by one.


def test_an_incomplete_message_is_none() -> None:
    with frame_buffer() as frames:
        message = Message(7, 40, 0)
        for count in range(40):
            assert frames.next_message() is None, count
            assert (frames.peek_header() is not None) == (count >= 16)
            feed(frames, message.data[count : count + 1])
        assert frames.next_message() == frames.peek_header() == Header(7, 8, 40, 0, 0)


@pytest.mark.parametrize("size", [0, 1, 15, MAX_SIZE + 1, 0xFFFFFFFF])
def test_an_impossible_size(size: int) -> None:
    with frame_buffer() as frames:
        feed(frames, Message(1, 20, 0).data + HEADER.pack(2, 8, size, 0, 0))
        assert frames.next_message() is not None
        frames.consume(20)
        with pytest.raises(FramingError, match=rf"a message of {size} bytes; a message has 16 to {MAX_SIZE}"):
            frames.next_message()
        # The header is there to be answered.
        assert frames.peek_header() == Header(2, 8, size, 0, 0)


@pytest.mark.parametrize("size", [16, MAX_SIZE])
def test_the_extreme_sizes(size: int) -> None:
    with frame_buffer() as frames:
        feed(frames, Message(1, size, 0).data)
        assert [whole for _, whole, _ in walk(frames)] == [Message(1, size, 0).data]


@pytest.mark.parametrize("size", [0, 15, MAX_SIZE + 1])
def test_descriptors_that_come_with_an_impossible_size_are_closed(size: int) -> None:
    with no_leaks(), frame_buffer() as frames, pytest.raises(FramingError, match=f"a message of {size} bytes"):
        feed(frames, HEADER.pack(2, 8, size, 0, 0), [memory_file()])


def test_a_tails_descriptors_belong_to_the_message_it_continues() -> None:
    message = Message(1, 40, 0).data
    fds = [memory_file(), memory_file()]
    with frame_buffer() as frames:
        feed(frames, message[:20], fds[:1])
        waiting = frames.has_fds
        feed(frames, message[20:], fds[1:])
        assert waiting
        assert [taken for _, _, taken in walk(frames)] == [fds]
        assert not frames.has_fds
    close_all(fds)


def test_taken_descriptors_are_not_closed() -> None:
    fd = memory_file()
    with frame_buffer() as frames:
        feed(frames, Message(1, 16, 0).data, [fd])
        assert frames.take_fds() == [fd]
        assert frames.take_fds() == []
        frames.consume(16)
    os.close(fd)


def test_closing_closes_what_waits_once_and_forgets_the_bytes() -> None:
    with no_leaks():
        frames = FrameBuffer(MAX_SIZE)
        feed(frames, Message(1, 40, 0).data[:20], [memory_file()])
        frames.close()
        assert not frames.has_fds
        assert (frames.start, frames.end) == (0, 0)
        frames.close()


def test_half_a_header_behind_a_message_is_none() -> None:
    with frame_buffer() as frames:
        feed(frames, Message(1, 40, 0).data + Message(2, 40, 0).data[:15])
        frames.consume(40)
        assert frames.peek_header() is None
        assert frames.next_message() is None


def test_a_shell_may_advance_over_messages_itself() -> None:
    fd = memory_file()
    with frame_buffer() as frames:
        feed(frames, Message(1, 36, 0).data + Message(2, 36, 0).data[:10])
        frames.start = 36
        frames.compact()
        assert (frames.start, frames.end) == (0, 10)
        feed(frames, Message(2, 36, 0).data[10:] + Message(3, 20, 0).data[:4], [fd])
        assert [(header.message_id, taken) for header, _, taken in walk(frames)] == [(2, [])]
        # The descriptor came with the last message that began: it moved to the front with it.
        feed(frames, Message(3, 20, 0).data[4:])
        assert [(header.message_id, taken) for header, _, taken in walk(frames)] == [(3, [fd])]
    os.close(fd)


def test_the_buffer_stays_where_it_is() -> None:
    with frame_buffer() as frames:
        view = memoryview(frames.buffer)  # a shell keeps one; a resize would be a BufferError
        for _ in range(3):
            feed(frames, Message(1, 40, 0).data + Message(2, 40, 0).data[:30])
            assert [header.message_id for header, _, _ in walk(frames)] == [1]
            assert bytes(view[:30]) == Message(2, 40, 0).data[:30]
            feed(frames, Message(2, 40, 0).data[30:])
            assert [header.message_id for header, _, _ in walk(frames)] == [2]


def test_there_is_always_room_for_the_rest_of_a_message() -> None:
    with frame_buffer() as frames:
        feed(frames, bytes(0))
        assert len(frames.buffer) - frames.end >= MAX_SIZE
        feed(frames, Message(1, MAX_SIZE, 0).data[:-1])
        frames.compact()
        assert len(frames.buffer) - frames.end >= 1


def test_close_fds() -> None:
    with no_leaks():
        close_fds([memory_file(), memory_file()])
        close_fds(())


# Real sockets.


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


def receive(frames: FrameBuffer, channel: socket.socket, limit: int | None = None) -> int:
    """One reception; the number of bytes that came."""
    end = None if limit is None else frames.end + limit
    room = memoryview(frames.buffer)[frames.end : end]
    count, ancdata, flags, _ = channel.recvmsg_into([room], ANCILLARY_SIZE, RECEIVE_FLAGS | socket.MSG_DONTWAIT)
    frames.received(count, ancillary_fds(ancdata, flags))
    return count


def test_a_plain_message_glued_to_one_with_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    messages = [Message(1, 36, 0), Message(2, 48, 1), Message(3, 36, 0), Message(4, 36, 2), Message(5, 20, 1)]
    sent = []
    for message in messages:
        fds = [memory_file() for _ in range(message.fds)]
        assert socket.send_fds(theirs, [message.data], fds) == message.size
        sent.append((message.message_id, [identity(fd) for fd in fds]))
        close_all(fds)
    with frame_buffer() as frames:
        found, sizes = [], []
        for _ in range(3):
            sizes.append(receive(frames, ours))
            for header, _, taken in walk(frames):
                found.append((header.message_id, [identity(fd) for fd in taken]))
                close_all(taken)
        # The kernel glues, but never goes on behind descriptors.
        assert sizes == [36 + 48, 36 + 36, 20]
        assert found == sent


def test_byte_by_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    messages = [Message(1, 20, 0), Message(2, 24, 1), Message(3, 18, 2), Message(4, 17, 0)]
    sent = []
    for message in messages:
        fds = [memory_file() for _ in range(message.fds)]
        socket.send_fds(theirs, [message.data], fds)
        sent.append((message.data, [identity(fd) for fd in fds]))
        close_all(fds)
    with frame_buffer() as frames:
        found = []
        for _ in range(sum(message.size for message in messages)):
            assert receive(frames, ours, limit=1) == 1
            for _, whole, taken in walk(frames):
                found.append((whole, [identity(fd) for fd in taken]))
                close_all(taken)
        assert found == sent


def test_received_descriptors_do_not_leak_into_programs(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    fd = memory_file()
    os.set_inheritable(fd, True)
    socket.send_fds(theirs, [Message(1, 16, 0).data], [fd])
    os.close(fd)
    with frame_buffer() as frames:
        receive(frames, ours)
        (taken,) = frames.take_fds()
        assert not os.get_inheritable(taken)
        os.close(taken)


@pytest.mark.parametrize("size", [0, 15, MAX_SIZE + 1, 0xFFFFFFFF])
def test_an_impossible_size_that_came_with_descriptors(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    ours, theirs = pair
    with no_leaks(), frame_buffer() as frames:
        fd = memory_file()
        socket.send_fds(theirs, [Message(1, 36, 0).data], [])
        socket.send_fds(theirs, [HEADER.pack(2, 8, size, 0, 0)], [fd])
        os.close(fd)
        # Descriptors have the sizes looked at on reception already, to find the message they belong to.
        with pytest.raises(FramingError, match=f"a message of {size} bytes"):
            receive(frames, ours)
        assert ours.fileno() in open_files()


def test_a_flood_of_descriptors_is_bounded(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with no_leaks(), frame_buffer() as frames:
        fd = memory_file()
        flood = array.array("i", [fd] * 100)
        data = Message(1, 40, 0).data
        for at in range(2):
            theirs.sendmsg([data[at : at + 1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, flood)])
            receive(frames, ours)
        theirs.sendmsg([data[2:3]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, flood)])
        before = len(open_files())
        with pytest.raises(FramingError, match=rf"300 file descriptors wait .*; the limit is {MAX_PENDING_FDS}"):
            receive(frames, ours)
        assert len(open_files()) == before
        os.close(fd)


def test_as_many_descriptors_as_one_message_can_carry(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with no_leaks(), frame_buffer() as frames:
        fd = memory_file()
        socket.send_fds(theirs, [Message(1, 16, 0).data], [fd] * MAX_PENDING_FDS)
        receive(frames, ours)
        ((_, _, taken),) = walk(frames)
        assert {identity(one) for one in taken} == {identity(fd)}
        assert len(taken) == MAX_PENDING_FDS
        close_all([*taken, fd])

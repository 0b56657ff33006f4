"""The connection without a kernel behaves like one with."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fds import close_all, identity, memory_file, no_leaks
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, Channel, ancillary_fds, send_some
from vfio_user.transport.memory import MemoryChannel, memory_pair


@pytest.fixture
def pair() -> Iterator[tuple[MemoryChannel, MemoryChannel]]:
    ours, theirs = memory_pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def receive(channel: Channel, size: int = 1024) -> tuple[bytes, list[int]]:
    buffer = bytearray(size)
    count, ancdata, flags, _ = channel.recvmsg_into([buffer], ANCILLARY_SIZE, RECEIVE_FLAGS | socket.MSG_DONTWAIT)
    return bytes(buffer[:count]), ancillary_fds(ancdata, flags)


def test_both_directions(pair: tuple[MemoryChannel, MemoryChannel]) -> None:
    ours, theirs = pair
    assert ours.send(b"to them") == 7
    assert theirs.sendmsg([b"to ", memoryview(b"us")]) == 5
    assert receive(theirs) == (b"to them", [])
    assert receive(ours) == (b"to us", [])


def test_nothing_to_receive(pair: tuple[MemoryChannel, MemoryChannel]) -> None:
    with pytest.raises(BlockingIOError):
        receive(pair[0])


def test_messages_are_glued(pair: tuple[MemoryChannel, MemoryChannel]) -> None:
    ours, theirs = pair
    ours.send(b"one")
    ours.send(b"two")
    assert receive(theirs) == (b"onetwo", [])


def test_a_small_buffer_and_a_chunk_cut(pair: tuple[MemoryChannel, MemoryChannel]) -> None:
    ours, theirs = pair
    ours.send(b"abcdefghij")
    assert receive(theirs, 3) == (b"abc", [])
    theirs.chunk = 2
    assert receive(theirs) == (b"de", [])
    assert receive(theirs, 1) == (b"f", [])
    theirs.chunk = None
    assert receive(theirs) == (b"ghij", [])


def test_an_empty_send_is_no_end(pair: tuple[MemoryChannel, MemoryChannel]) -> None:
    ours, theirs = pair
    fd = memory_file()
    assert ours.send(b"") == 0
    assert send_some(ours, [], [fd]) == 0
    with pytest.raises(BlockingIOError):
        receive(theirs)
    os.close(fd)


def test_descriptors_are_duplicated(pair: tuple[MemoryChannel, MemoryChannel]) -> None:
    ours, theirs = pair
    fds = [memory_file(), memory_file()]
    assert send_some(ours, [b"message"], fds) == 7
    data, received = receive(theirs)
    assert data == b"message"
    assert [identity(fd) for fd in received] == [identity(fd) for fd in fds]
    assert not set(received) & set(fds)
    close_all(fds + received)


def test_control_data_as_bytes(pair: tuple[MemoryChannel, MemoryChannel]) -> None:
    ours, theirs = pair
    fd = memory_file()
    ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes())])
    (received,) = receive(theirs)[1]
    assert identity(received) == identity(fd)
    close_all([fd, received])


def test_the_end(pair: tuple[MemoryChannel, MemoryChannel]) -> None:
    ours, theirs = pair
    ours.send(b"last words")
    ours.close()
    ours.close()
    assert receive(theirs) == (b"last words", [])
    assert receive(theirs) == (b"", [])
    with pytest.raises(BrokenPipeError, match="the other end is closed"):
        theirs.send(b"hello?")


def test_a_closed_end_does_nothing(pair: tuple[MemoryChannel, MemoryChannel]) -> None:
    ours, _ = pair
    ours.close()
    for attempt in (lambda: ours.send(b"x"), lambda: receive(ours)):
        with pytest.raises(OSError, match="this end is closed"):
            attempt()


def test_an_end_without_another() -> None:
    alone = MemoryChannel()
    assert receive(alone) == (b"", [])
    with pytest.raises(BrokenPipeError):
        alone.send(b"x")
    assert alone.fileno() == -1


def test_descriptors_never_received_are_closed() -> None:
    with no_leaks():
        ours, theirs = memory_pair()
        fd = memory_file()
        send_some(ours, [b"x"], [fd, fd])
        os.close(fd)
        ours.close()
        theirs.close()


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=50), st.sampled_from([0, 0, 1, 2])), max_size=8),
    st.lists(st.integers(1, 120), min_size=1, max_size=8),
)
def test_receives_exactly_what_the_kernel_would(sends: list[tuple[bytes, int]], sizes: list[int]) -> None:
    real = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    imitated = memory_pair()
    with no_leaks():
        for data, count in sends:
            fds = [memory_file() for _ in range(count)]
            send_some(real[0], [data], fds)
            send_some(imitated[0], [data], fds)
            close_all(fds)
        for channel in (real[0], imitated[0]):
            channel.close()
        turn = 0
        while True:
            size = sizes[turn % len(sizes)]
            turn += 1
            expected, found = receive(real[1], size), receive(imitated[1], size)
            assert found[0] == expected[0]
            assert [identity(fd) for fd in found[1]] == [identity(fd) for fd in expected[1]]
            close_all(expected[1] + found[1])
            if not expected[0]:
                break
        real[1].close()
        imitated[1].close()

"""Sending without waiting, and the descriptors of a reception: on real sockets."""

from __future__ import annotations

import array
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from tests.support.fds import close_all, identity, memory_file, no_leaks
from vfio_user.errors import ConnectionClosedError, FramingError, LocalProtocolError
from vfio_user.testing.leaks import open_files
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, ancillary_fds, carries_fds, send_some
from vfio_user.transport.memory import memory_pair


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


def receive(channel: socket.socket, size: int = 1 << 20, ancillary: int = ANCILLARY_SIZE) -> tuple[bytes, list[int]]:
    """What one reception brings, through the code under test."""
    buffer = bytearray(size)
    count, ancdata, flags, _ = channel.recvmsg_into([buffer], ancillary, RECEIVE_FLAGS | socket.MSG_DONTWAIT)
    return bytes(buffer[:count]), ancillary_fds(ancdata, flags)


def fill(channel: socket.socket) -> int:
    """Sends until nothing more fits, and says how much did."""
    sent = 0
    while count := send_some(channel, [bytes(4096)]):
        sent += count
    return sent


def test_sends_parts_as_one_message(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    assert send_some(ours, [b"head", memoryview(b"payload")[3:]]) == 8
    assert receive(theirs) == (b"headload", [])


def test_descriptors_go_along_and_stay_the_callers(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    fds = [memory_file(), memory_file()]
    assert send_some(ours, [b"message"], fds) == 7
    data, received = receive(theirs)
    assert data == b"message"
    assert [identity(fd) for fd in received] == [identity(fd) for fd in fds]
    assert not set(received) & set(fds)
    assert not any(os.get_inheritable(fd) for fd in received)
    close_all(fds + received)


def test_a_full_socket_takes_nothing_and_no_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    left = fill(ours)
    fd = memory_file()
    assert send_some(ours, [b"more"], [fd]) == 0
    while left:
        data, fds = receive(theirs)
        assert fds == []
        left -= len(data)
    assert send_some(ours, [b"more"], [fd]) == 4
    data, fds = receive(theirs)
    assert (data, len(fds)) == (b"more", 1)
    close_all([fd, *fds])


def test_a_message_larger_than_the_room_goes_in_part_with_its_descriptors(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    fd = memory_file()
    message = bytes(4 << 20)
    sent = send_some(ours, [message], [fd])
    assert 0 < sent < len(message)
    _, fds = receive(theirs)
    assert len(fds) == 1
    close_all([fd, *fds])


def test_a_peer_that_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.close()
    # Without MSG_NOSIGNAL, this would be the end of the process.
    with pytest.raises(ConnectionClosedError, match=r"^the peer is gone: Broken pipe") as caught:
        send_some(ours, [b"hello"])
    assert isinstance(caught.value.__cause__, BrokenPipeError)


def test_a_peer_that_is_gone_without_a_socket() -> None:
    ours, theirs = memory_pair()
    theirs.close()
    with pytest.raises(ConnectionClosedError, match=r"^the peer is gone: the other end is closed"):
        send_some(ours, [b"hello"])
    ours.close()
    with pytest.raises(ConnectionClosedError, match=r"^the peer is gone: this end is closed"):
        send_some(ours, [b"hello"])


def test_a_truncated_reception_closes_what_came(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with no_leaks():
        fd = memory_file()
        send_some(ours, [b"message"], [fd] * 5)
        os.close(fd)
        before = len(open_files())
        # Room for one or two: the kernel installs those, and throws the others away.
        buffer = bytearray(16)
        count, ancdata, flags, _ = theirs.recvmsg_into([buffer], socket.CMSG_SPACE(4), RECEIVE_FLAGS)
        assert count == 7
        assert flags & socket.MSG_CTRUNC
        assert len(open_files()) > before
        with pytest.raises(FramingError, match=r"descriptors were lost on reception \(MSG_CTRUNC\): too many came"):
            ancillary_fds(ancdata, flags)
        assert len(open_files()) == before


def test_descriptors_lost_because_this_process_has_too_many(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    fd = memory_file()
    send_some(ours, [b"message"], [fd])
    os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        count, ancdata, flags, _ = theirs.recvmsg_into([bytearray(16)], ANCILLARY_SIZE, RECEIVE_FLAGS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    # No control data at all: only the flag tells.
    assert (count, ancdata) == (7, [])
    with pytest.raises(FramingError, match="this process has too many open"):
        ancillary_fds(ancdata, flags)


def test_room_for_all_descriptors_one_message_can_carry(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    fd = memory_file()
    send_some(ours, [b"x"], [fd] * 253)
    _, fds = receive(theirs)
    assert len(fds) == 253
    close_all([fd, *fds])
    with pytest.raises(ConnectionClosedError):  # the kernel's limit, and no accident of ours
        send_some(ours, [b"x"], [0] * 254)


def test_other_control_data_and_odd_bytes_are_no_descriptors() -> None:
    numbers = array.array("i", [7, 8]).tobytes()
    assert ancillary_fds(
        [
            (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, bytes(12)),
            (socket.SOL_TCP, socket.SCM_RIGHTS, numbers),
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers + b"\1\0"),
        ],
        0,
    ) == [7, 8]
    assert ancillary_fds([], 0) == []


# Where no descriptors can pass.


def test_only_unix_sockets_and_memory_carry_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    assert carries_fds(pair[0])
    one, other = memory_pair()
    assert carries_fds(one)
    one.carries_fds = False
    assert not carries_fds(one)
    assert carries_fds(other)
    one.close()
    other.close()
    with socket.socket(socket.AF_INET) as v4, socket.socket(socket.AF_INET6) as v6:
        assert not carries_fds(v4)
        assert not carries_fds(v6)


@pytest.mark.parametrize("kind", ["tcp", "memory"])
def test_descriptors_are_refused_before_anything_is_sent(kind: str) -> None:
    fds = [memory_file(), memory_file()]
    why = r"2 file descriptors cannot be sent over this connection: only UNIX sockets carry them. Connect by unix:PATH"
    if kind == "memory":
        ours, theirs = memory_pair()
        ours.carries_fds = False
        with no_leaks(), pytest.raises(LocalProtocolError, match=why):
            send_some(ours, [b"refused"], fds)
        assert send_some(ours, [b"sent"]) == 4
        assert theirs.recvmsg_into([bytearray(20)])[:2] == (4, [])
        ours.close()
        theirs.close()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
            client.connect(listening.getsockname())
            server, _ = listening.accept()
            with server:
                with no_leaks(), pytest.raises(LocalProtocolError, match=why):
                    send_some(client, [b"refused"], fds)
                assert send_some(client, [b"sent"]) == 4
                assert server.recv(20) == b"sent"
    close_all(fds)

"""Socket files and inherited descriptors."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import logging
import os
import resource
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fds import close_all, memory_file, no_leaks
from tests.support.network import needs_ipv6
from vfio_user.errors import ConnectError
from vfio_user.transport import listener as listener_module
from vfio_user.transport.address import Address, FdAddress, SystemdAddress, TcpAddress, UnixAddress, parse_address
from vfio_user.transport.listener import FdListener, UnixListener, listen
from vfio_user.transport.port_listener import PortListener


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that is short enough wherever the tests run."""
    monkeypatch.chdir(tmp_path)
    return Path("edu.sock")


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


def leave_stale(path: Path) -> None:
    """What a server that was killed leaves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))


# A socket file.


def test_accepts_and_never_waits(path: Path) -> None:
    listener = UnixListener(UnixAddress(path))
    assert listener.fileno() >= 0
    assert listener.accept() is None
    with connect(path) as client:
        channel = listener.accept()
        assert isinstance(channel, socket.socket)
        assert channel.getblocking()
        assert not channel.get_inheritable()
        client.sendall(b"hello")
        assert channel.recv(10) == b"hello"
        assert listener.accept() is None
        channel.close()
    listener.close()


def test_closing_removes_the_file_and_ends_it(path: Path) -> None:
    listener = UnixListener(UnixAddress(path))
    assert stat.S_ISSOCK(path.lstat().st_mode)
    before = listener.exhausted
    listener.close()
    assert not path.exists()
    assert (before, listener.exhausted) == (False, True)
    assert listener.fileno() == -1
    assert listener.accept() is None
    listener.close()


def test_connections_outlive_the_listener(path: Path) -> None:
    listener = UnixListener(UnixAddress(path))
    with connect(path) as client:
        channel = listener.accept()
        assert channel is not None
        listener.close()
        channel.send(b"still here")
        assert client.recv(20) == b"still here"
        channel.close()


def test_closing_keeps_the_file_another_server_put_there(path: Path) -> None:
    one = UnixListener(UnixAddress(path))
    path.unlink()
    other = UnixListener(UnixAddress(path))
    one.close()
    connect(path).close()
    other.close()
    assert not path.exists()


def test_closing_without_the_file(path: Path) -> None:
    listener = UnixListener(UnixAddress(path))
    path.unlink()
    listener.close()


def test_a_stale_file_is_replaced(path: Path) -> None:
    leave_stale(path)
    listener = UnixListener(UnixAddress(path))
    connect(path).close()
    listener.close()


def test_a_file_that_goes_away_while_it_is_looked_at(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_stale(path)
    real = Path.lstat

    def lstat_and_remove(self: Path) -> os.stat_result:
        monkeypatch.undo()
        found = real(self)
        self.unlink()
        return found

    monkeypatch.chdir(Path.cwd())
    directory = Path.cwd()
    monkeypatch.setattr(Path, "lstat", lstat_and_remove)
    listener = UnixListener(UnixAddress(directory / path))
    listener.close()


@pytest.mark.parametrize("waiting", [0, 1, 2])
def test_a_live_server_is_left_alone(path: Path, waiting: int) -> None:
    one = UnixListener(UnixAddress(path))
    # With two clients waiting its queue is full, and to connect would block: alive all the same.
    clients = [connect(path) for _ in range(waiting)]
    with (
        no_leaks(),
        pytest.raises(ConnectError, match=r"edu.sock is in use: a server listens on it. Stop that one, or"),
    ):
        UnixListener(UnixAddress(path))
    for client in clients:
        client.close()
    while channel := one.accept():
        channel.close()
    connect(path).close()
    one.close()


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_socket_stays(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    before = path.lstat()
    with no_leaks(), pytest.raises(ConnectError, match=r"edu.sock exists and is no socket; it stays. Choose another"):
        UnixListener(UnixAddress(path))
    assert path.lstat().st_ino == before.st_ino


def test_a_directory_that_is_not_there() -> None:
    with (
        no_leaks(),
        pytest.raises(ConnectError, match=r"cannot listen on /nowhere/edu.sock: No such file or directory"),
    ):
        UnixListener(UnixAddress(Path("/nowhere/edu.sock")))


def test_mode(path: Path) -> None:
    listener = UnixListener(UnixAddress(path), mode=0o640)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o640
    listener.close()


def test_without_a_mode_the_umask_decides(path: Path) -> None:
    before = os.umask(0o077)
    try:
        listener = UnixListener(UnixAddress(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o700
    listener.close()


@pytest.mark.parametrize("by_name", [False, True])
def test_group(path: Path, by_name: bool) -> None:
    # Root may give the file to any group; others only to one of their own.
    number = 1 if os.getuid() == 0 else os.getgid()
    listener = UnixListener(UnixAddress(path), group=grp.getgrgid(number).gr_name if by_name else number)
    assert path.lstat().st_gid == number
    assert path.lstat().st_uid == os.getuid()
    listener.close()


def test_a_group_that_is_not_there(path: Path) -> None:
    with no_leaks(), pytest.raises(ConnectError, match="there is no group 'no such group' on this machine"):
        UnixListener(UnixAddress(path), group="no such group")
    assert not path.exists()


def test_a_mode_that_cannot_be_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chmod(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", chmod)
    with no_leaks(), pytest.raises(ConnectError, match=r"cannot listen on edu.sock: Operation not permitted"):
        UnixListener(UnixAddress(path), mode=0o600)
    assert not path.exists()


def test_nobody_can_connect_before_mode_and_group_are_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def try_to_connect(*_: Any, **__: Any) -> None:
        with pytest.raises(ConnectionRefusedError):
            connect(path)
        attempts.append(path.exists())

    monkeypatch.setattr(os, "chown", try_to_connect)
    monkeypatch.setattr(Path, "chmod", try_to_connect)
    listener = UnixListener(UnixAddress(path), mode=0o600, group=os.getgid())
    assert attempts == [True, True]
    listener.close()


def test_two_servers_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_stale(path)
    refused: list[ConnectError] = []

    def start_another() -> None:
        try:
            UnixListener(UnixAddress(path)).close()
        except ConnectError as exc:
            refused.append(exc)

    other = threading.Thread(target=start_another)

    def chown(*_: Any) -> None:
        # The first has bound, but does not listen yet: to the second, its file must not look stale. Without the lock
        # the second is done well within this time; with it, it cannot be.
        other.start()
        other.join(0.05)

    monkeypatch.setattr(os, "chown", chown)
    first = UnixListener(UnixAddress(path), group=os.getgid())
    other.join()
    assert [str(exc) for exc in refused] == [
        "edu.sock is in use: a server listens on it. Stop that one, or choose another path"
    ]
    while channel := first.accept():  # the second's look
        channel.close()
    connect(path).close()
    first.close()


def test_somebody_elses_lock_on_the_directory_does_not_stop_us(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "_LOCK_PATIENCE", 0.0)
    directory = os.open(".", os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)  # as "flock . vfio-user serve ..." does
    UnixListener(UnixAddress(path)).close()
    os.close(directory)


def test_a_file_system_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    UnixListener(UnixAddress(path)).close()


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """None can be opened in here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_out_of_descriptors_to_listen_with(path: Path) -> None:
    why = r"cannot make a socket to listen on edu.sock: Too many open files"
    with pytest.raises(ConnectError, match=why), no_more_descriptors():
        UnixListener(UnixAddress(path))


@pytest.mark.parametrize("inherited", [False, True])
def test_out_of_descriptors_to_accept_with(path: Path, inherited: bool) -> None:
    unix = UnixListener(UnixAddress(path))
    listener = FdListener(os.dup(unix.fileno())) if inherited else unix
    with connect(path):
        with no_more_descriptors():
            assert listener.accept() is None
        # The client has waited.
        channel = listener.accept()
        assert channel is not None
        channel.close()
    listener.close()
    unix.close()


@pytest.mark.parametrize("inherited", [False, True])
def test_a_listener_that_is_no_more(path: Path, inherited: bool) -> None:
    unix = UnixListener(UnixAddress(path))
    listener = FdListener(os.dup(unix.fileno())) if inherited else unix
    # Not an accident of one client, so not to be waited out.
    fd = memory_file()
    os.dup2(fd, listener.fileno(), inheritable=False)
    os.close(fd)
    with pytest.raises(OSError, match="Socket operation on non-socket"):
        listener.accept()
    listener.close()
    unix.close()


# An inherited descriptor.


def test_a_listening_descriptor(path: Path) -> None:
    given = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    given.set_inheritable(True)
    given.bind(str(path))
    given.listen(1)
    fd = given.detach()
    listener = FdListener(fd)
    assert listener.fileno() == fd
    assert not os.get_inheritable(fd)
    for _ in range(2):
        assert listener.accept() is None
        assert not listener.exhausted
        with connect(path) as client:
            channel = listener.accept()
            assert isinstance(channel, socket.socket)
            assert channel.getblocking()
            client.sendall(b"hello")
            assert channel.recv(10) == b"hello"
            channel.close()
    listener.close()
    assert listener.exhausted
    assert listener.fileno() == -1
    assert listener.accept() is None
    # Whoever made the file removes it.
    assert path.exists()


def test_a_connected_descriptor_gives_one_connection() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    fd = theirs.detach()
    listener = FdListener(fd)
    before = listener.exhausted
    assert listener.fileno() == -1  # nothing to wait for
    channel = listener.accept()
    assert isinstance(channel, socket.socket)
    assert channel.fileno() == fd
    assert channel.getblocking()
    assert (before, listener.exhausted) == (False, True)
    assert listener.accept() is None
    listener.close()
    ours.sendall(b"hello")
    assert channel.recv(10) == b"hello"
    channel.close()
    ours.close()


def test_a_connection_nobody_took_is_closed() -> None:
    ours, theirs = socket.socketpair()
    listener = FdListener(theirs.detach())
    listener.close()
    assert ours.recv(1) == b""
    listener.close()
    ours.close()


def test_a_descriptor_that_is_not_open() -> None:
    fd = memory_file()
    os.close(fd)
    with pytest.raises(ConnectError, match=rf"descriptor {fd} is no socket this process was started with: Bad file"):
        FdListener(fd)


def test_a_descriptor_that_is_no_socket_stays_the_callers() -> None:
    fd = memory_file()
    with pytest.raises(ConnectError, match=rf"descriptor {fd} is no socket .*: Socket operation on non-socket"):
        FdListener(fd)
    os.close(fd)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_that_is_no_stream_stays_the_callers(kind: socket.SocketKind) -> None:
    pair = socket.socketpair(socket.AF_UNIX, kind)
    with pytest.raises(ConnectError, match=rf"descriptor {pair[0].fileno()} is a socket, but not a stream one"):
        FdListener(pair[0].fileno())
    close_all([end.detach() for end in pair])


# Either, by address.


def test_listens_at_an_address(path: Path) -> None:
    unix = listen(UnixAddress(path), mode=0o600, group=os.getgid())
    assert isinstance(unix, UnixListener)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    inherited = listen(FdAddress(os.dup(unix.fileno())))
    assert isinstance(inherited, FdListener)
    inherited.close()
    unix.close()


def test_where_clients_connect_is_said_as_far_as_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "s"
    unix = listen(UnixAddress(path))
    assert unix.address == UnixAddress(path)
    inherited = FdListener(os.dup(unix.fileno()))
    assert inherited.address == UnixAddress(path)
    inherited.close()
    unix.close()
    port = listen(TcpAddress("127.0.0.1", 0))
    assert isinstance(port, PortListener)
    assert isinstance(port.address, TcpAddress)
    assert port.address.port > 0
    inherited = FdListener(os.dup(port.fileno()))
    assert inherited.address == port.address
    inherited.close()
    port.close()
    ours, theirs = socket.socketpair()
    connected = FdListener(theirs.detach())
    assert connected.address == FdAddress(connected._socket.fileno() if connected._socket else -1)
    connected.close()
    ours.close()


def test_a_socket_systemd_passed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unix = UnixListener(UnixAddress(path))
    monkeypatch.setattr(listener_module, "activated_fd", {SystemdAddress("edu"): os.dup(unix.fileno())}.__getitem__)
    listener = listen(SystemdAddress("edu"))
    with connect(path):
        channel = listener.accept()
        assert channel is not None
        channel.close()
    listener.close()
    unix.close()


@pytest.mark.parametrize("text", ["fd:3", "systemd:", "tcp:0", "vsock:0"])
@pytest.mark.parametrize("option", [{"mode": 0o600}, {"group": 0}])
def test_what_has_no_permissions_to_set(text: str, option: dict[str, Any]) -> None:
    why = "has neither mode nor group: only a socket file this process makes has them"
    with no_leaks(), pytest.raises(ConnectError, match=why):
        listen(parse_address(text), **option)


@pytest.mark.parametrize(
    ("asked", "inherited", "warned"),
    [
        (TcpAddress("127.0.0.1", 0), False, False),
        (TcpAddress("localhost", 0), False, False),
        (TcpAddress("0.0.0.0", 0), False, True),
        (TcpAddress("0.0.0.0", 0), True, True),
        pytest.param(TcpAddress("::", 0), False, True, marks=needs_ipv6),
    ],
)
def test_who_listens_to_everybody_is_told(
    asked: TcpAddress, inherited: bool, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    listener = PortListener(asked)
    address: Address = listener.address
    if inherited:
        asked_again: Address = FdAddress(os.dup(listener.fileno()))
    else:
        asked_again = asked
    with caplog.at_level(logging.WARNING, "vfio_user.transport"):
        other = listen(asked_again)
    assert [record.getMessage() for record in caplog.records] == (
        [f"vfio-user has no authentication: whoever can reach {other.address} can drive the device"] if warned else []
    )
    assert (other.address == address) == inherited
    other.close()
    listener.close()

"""The text of addresses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vfio_user.errors import AddressError
from vfio_user.transport.address import (
    Address,
    FdAddress,
    SystemdAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    exposure,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "address", "canonical"),
    [
        ("unix:/run/edu.sock", UnixAddress(Path("/run/edu.sock")), "unix:/run/edu.sock"),
        ("unix:edu.sock", UnixAddress(Path("edu.sock")), "unix:edu.sock"),
        ("unix:with:colon", UnixAddress(Path("with:colon")), "unix:with:colon"),
        ("/run/edu.sock", UnixAddress(Path("/run/edu.sock")), "unix:/run/edu.sock"),
        ("/run/with:colon", UnixAddress(Path("/run/with:colon")), "unix:/run/with:colon"),
        ("./fd:3", UnixAddress(Path("fd:3")), "unix:fd:3"),
        ("edu.sock", UnixAddress(Path("edu.sock")), "unix:edu.sock"),
        ("unix", UnixAddress(Path("unix")), "unix:unix"),
        ("fd:3", FdAddress(3), "fd:3"),
        ("fd:0", FdAddress(0), "fd:0"),
        ("fd:2147483647", FdAddress(2147483647), "fd:2147483647"),
        ("systemd:", SystemdAddress(), "systemd:"),
        ("fd:systemd", SystemdAddress(), "systemd:"),
        ("systemd:edu", SystemdAddress("edu"), "systemd:edu"),
        ("systemd:edu.socket (1)", SystemdAddress("edu.socket (1)"), "systemd:edu.socket (1)"),
        ("systemd", UnixAddress(Path("systemd")), "unix:systemd"),
        ("tcp:1234", TcpAddress("127.0.0.1", 1234), "tcp:127.0.0.1:1234"),
        ("tcp:0", TcpAddress("127.0.0.1", 0), "tcp:127.0.0.1:0"),
        ("tcp:localhost:65535", TcpAddress("localhost", 65535), "tcp:localhost:65535"),
        ("tcp:0.0.0.0:1234", TcpAddress("0.0.0.0", 1234), "tcp:0.0.0.0:1234"),
        ("tcp:lab-7.example.org:01234", TcpAddress("lab-7.example.org", 1234), "tcp:lab-7.example.org:1234"),
        ("tcp:[::1]:1234", TcpAddress("::1", 1234), "tcp:[::1]:1234"),
        ("tcp:[fe80::1%eth0]:1", TcpAddress("fe80::1%eth0", 1), "tcp:[fe80::1%eth0]:1"),
        ("tcp:[fe80::1%br-6@x]:1", TcpAddress("fe80::1%br-6@x", 1), "tcp:[fe80::1%br-6@x]:1"),
        ("./tcp:1234", UnixAddress(Path("tcp:1234")), "unix:tcp:1234"),
        ("vsock:5000", VsockAddress(None, 5000), "vsock:5000"),
        ("vsock:0", VsockAddress(None, 0), "vsock:0"),
        ("vsock:2:5000", VsockAddress(2, 5000), "vsock:2:5000"),
        ("vsock:4294967294:4294967294", VsockAddress(4294967294, 4294967294), "vsock:4294967294:4294967294"),
    ],
)
def test_table(text: str, address: Address, canonical: str) -> None:
    assert parse_address(text) == address
    assert str(address) == canonical
    assert parse_address(canonical) == address


def test_what_is_an_address_already() -> None:
    for address in (
        UnixAddress(Path("/run/edu.sock")),
        FdAddress(3),
        SystemdAddress("edu"),
        TcpAddress("::1", 1),
        VsockAddress(None, 1),
    ):
        assert parse_address(address) is address
    assert parse_address(Path("a:b")) == UnixAddress(Path("a:b"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"the address '' is empty; write unix:PATH, fd:N, systemd:, tcp:HOST:PORT or vsock:CID:PORT"),
        ("unix:", r"the address 'unix:' is empty"),
        ("fd:", r"the address 'fd:' is empty"),
        (".", r"the socket path is empty"),
        ("fd:x", r"'fd:x' names no descriptor; write fd:N with a number, as in fd:3"),
        ("fd:-1", r"'fd:-1' names no descriptor"),
        ("fd: 3", r"'fd: 3' names no descriptor"),
        ("fd:³", r"'fd:³' names no descriptor"),
        ("fd:٣", r"'fd:٣' names no descriptor"),
        ("fd:99999999999", r"'fd:99999999999' names no descriptor"),
        ("fd:" + "9" * 5000, r"names no descriptor"),
        ("fd:2147483648", r"descriptor 2147483648 cannot be: .* from 0 to 2147483647"),
        ("tcp:x", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:localhost:", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:localhost:http", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:localhost:-1", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp: 1234", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:1 ", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:localhost:²", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:localhost:99999999999", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:[::1]", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:[::1]:", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:[::1]1234", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:[::1", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:[::1]:x", r"names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:\[IPV6\]:PORT"),
        ("tcp:", r"the address 'tcp:' is empty"),
        ("tcp::1234", r"'tcp::1234' names no host; write tcp:PORT for this machine alone"),
        ("tcp:::1:1234", r"'tcp:::1:1234' has too many colons; an IPv6 address goes in brackets: tcp:\[::1\]:PORT"),
        ("tcp:1:2:3", r"'tcp:1:2:3' has too many colons"),
        ("tcp:[localhost]:1234", r"has brackets around 'localhost', which is no IPv6 address"),
        ("tcp:[]:1234", r"has brackets around ''"),
        ("tcp:[::1%]:1234", r"has brackets around '::1%'"),
        ("tcp:[::1%a b]:1234", r"has brackets around '::1%a b'"),
        ("tcp:[::\0]:1234", r"has brackets around"),
        ("tcp:*:1234", r"the host '\*' is neither a name nor an IP address"),
        ("tcp:a b:1234", r"the host 'a b' is neither a name nor an IP address"),
        ("tcp:-a:1234", r"the host '-a' is neither"),
        ("tcp:" + "a" * 254 + ":1", r"is neither a name nor an IP address"),
        ("tcp:localhost:65536", r"TCP port 65536 cannot be: a port has a number from 0 to 65535"),
        ("vsock:", r"the address 'vsock:' is empty"),
        (
            "vsock:x",
            r"'vsock:x' names no VM socket; write vsock:CID:PORT or vsock:PORT with numbers, as in vsock:2:5000",
        ),
        (
            "vsock:any:1",
            r"'vsock:any:1' names no VM socket; write vsock:CID:PORT or vsock:PORT with numbers, as in vsock:2:5000",
        ),
        (
            "vsock:2:",
            r"'vsock:2:' names no VM socket; write vsock:CID:PORT or vsock:PORT with numbers, as in vsock:2:5000",
        ),
        (
            "vsock::1",
            r"'vsock::1' names no VM socket; write vsock:CID:PORT or vsock:PORT with numbers, as in vsock:2:5000",
        ),
        (
            "vsock:-1:1",
            r"'vsock:-1:1' names no VM socket; write vsock:CID:PORT or vsock:PORT with numbers, as in vsock:2:5000",
        ),
        (
            "vsock:1:2:3",
            r"'vsock:1:2:3' names no VM socket; write vsock:CID:PORT or vsock:PORT with numbers, as in vsock:2:5000",
        ),
        (
            "vsock:³:1",
            r"'vsock:³:1' names no VM socket; write vsock:CID:PORT or vsock:PORT with numbers, as in vsock:2:5000",
        ),
        ("vsock:4294967295:1", r"CID 4294967295 cannot be: it is a number from 0 to 4294967294; write vsock:PORT for"),
        ("vsock:4294967295", r"vsock port 4294967295 cannot be: a port has a number from 0 to 4294967294"),
        ("systemd:a:b", r"no socket of the name 'a:b': a name has 1 to 255 printable ASCII characters and no colon"),
        ("systemd:é", r"no socket of the name 'é'"),
        ("systemd:a\n", r"no socket of the name"),
        ("systemd:" + "a" * 256, r"no socket of the name"),
        (
            "udp:1234",
            r"'udp:1234' has the unknown scheme 'udp'; write unix:PATH, fd:N, systemd:, tcp:HOST:PORT or vsock:C",
        ),
        ("UNIX:/run/edu.sock", r"unknown scheme 'UNIX'"),
        (":3", r"unknown scheme ''"),
        ("unix:a\0b", r"the socket path 'a\\x00b' holds a NUL byte"),
    ],
)
def test_refused(text: str, why: str) -> None:
    with pytest.raises(AddressError, match=why):
        parse_address(text)


@pytest.mark.parametrize("path", ["x" * 107, "é" * 53 + "x"])
def test_the_longest_path(path: str) -> None:
    assert UnixAddress(Path(path)).path == Path(path)
    with pytest.raises(AddressError, match=r"has 108 bytes; a UNIX socket address holds 107. Choose a shorter one"):
        UnixAddress(Path(path + "x"))


def test_a_path_that_is_no_text() -> None:
    path = Path(b"/run/\xff.sock".decode("utf-8", "surrogateescape"))
    assert UnixAddress(path).path == path


def test_an_empty_path_and_an_impossible_descriptor() -> None:
    with pytest.raises(AddressError, match="the socket path is empty"):
        UnixAddress(Path())
    with pytest.raises(AddressError, match="descriptor -1 cannot be"):
        FdAddress(-1)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: TcpAddress("", 1), "the host '' is neither a name nor"),
        (lambda: TcpAddress("a\n", 1), "is neither a name nor"),
        (lambda: TcpAddress("a:b", 1), r"'a:b' is no IPv6 address; write one as in tcp:\[::1\]:PORT"),
        (lambda: TcpAddress("[::1]", 1), "is no IPv6 address"),
        (lambda: TcpAddress("::1", -1), "TCP port -1 cannot be"),
        (lambda: VsockAddress(-1, 1), "CID -1 cannot be"),
        (lambda: VsockAddress(None, -1), "vsock port -1 cannot be"),
        (lambda: SystemdAddress(""), "no socket of the name ''"),
    ],
)
def test_impossible_parts(make: Callable[[], Address], why: str) -> None:
    with pytest.raises(AddressError, match=why):
        make()


@pytest.mark.parametrize("text", ["x.sock", "fd:3", "systemd:", "vsock:1", "vsock:2:1", "tcp:1", "tcp:localhost:1"])
def test_what_only_this_machine_and_its_guests_reach(text: str) -> None:
    assert exposure(parse_address(text)) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "::ffff:127.0.0.1"])
def test_loopback(host: str) -> None:
    assert TcpAddress(host, 1).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "12.7.0.1", "localhost.example.org", "fe80::1"])
def test_what_others_reach_is_said(host: str) -> None:
    address = TcpAddress(host, 1)
    assert not address.is_loopback
    assert exposure(address) == (f"vfio-user has no authentication: whoever can reach {address} can drive the device")


schemes = st.sampled_from(["", "unix:", "fd:", "tcp:", "tcp:[", "vsock:", "systemd:"])
parts = st.lists(st.text() | st.integers().map(str) | st.sampled_from(["[", "]", "::1", "%"]), max_size=4)


@given(st.builds(lambda scheme, words: scheme + ":".join(words), schemes, parts))
@example("fd:" + "0" * 20)
def test_any_text(text: str) -> None:
    with contextlib.suppress(AddressError):
        address = parse_address(text)
        assert parse_address(str(address)) == address

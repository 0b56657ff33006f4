"""The text of addresses."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vfio_user.errors import AddressError
from vfio_user.transport.address import Address, FdAddress, UnixAddress, parse_address


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
    ],
)
def test_table(text: str, address: Address, canonical: str) -> None:
    assert parse_address(text) == address
    assert str(address) == canonical
    assert parse_address(canonical) == address


def test_what_is_an_address_already() -> None:
    for address in (UnixAddress(Path("/run/edu.sock")), FdAddress(3)):
        assert parse_address(address) is address
    assert parse_address(Path("a:b")) == UnixAddress(Path("a:b"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"the address '' is empty; write unix:PATH or fd:N"),
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
        ("tcp:localhost:1234", r"'tcp:localhost:1234' has the unknown scheme 'tcp'; write unix:PATH or fd:N"),
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


@given(st.text() | st.text().map("fd:{}".format) | st.text().map("unix:{}".format))
@example("fd:" + "0" * 20)
def test_any_text(text: str) -> None:
    with contextlib.suppress(AddressError):
        address = parse_address(text)
        assert parse_address(str(address)) == address

"""The 16 bytes, and the replies that are nothing else."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.numbers import u16, u32
from vfio_user.errors import LocalProtocolError
from vfio_user.protocol.header import HEADER, Header, command_header, command_name, error_reply, reply_header

headers = st.builds(Header, u16, u16, u32, u32, u32)

TABLE = [
    # QEMU 11.1.3: its VERSION and its DMA_MAP.
    (Header(0, 1, 214, 0, 0), "0000 0100 d6000000 00000000 00000000"),
    (Header(1, 2, 48, 0, 0), "0100 0200 30000000 00000000 00000000"),
    # An error reply: EINVAL to id 9, command 14.
    (Header(9, 14, 16, 0x21, errno.EINVAL), "0900 0e00 10000000 21000000 16000000"),
    # A posted write, and every bit set.
    (Header(0x1234, 10, 36, 0x10, 0), "3412 0a00 24000000 10000000 00000000"),
    (Header(0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), "ff" * 16),
]


@pytest.mark.parametrize(("header", "data"), TABLE)
def test_table(header: Header, data: str) -> None:
    assert header.encode() == bytes.fromhex(data)
    assert Header.decode(bytes.fromhex(data)) == header


def test_decodes_in_the_middle_of_a_buffer() -> None:
    header, data = TABLE[2]
    assert Header.decode(memoryview(b"\xff" * 5 + bytes.fromhex(data) + b"\xff"), 5) == header


@pytest.mark.parametrize("length", range(16))
def test_fewer_than_16_bytes_are_no_header(length: int) -> None:
    with pytest.raises(struct.error):
        Header.decode(bytes(length))


@given(headers)
def test_round_trip(header: Header) -> None:
    assert Header.decode(header.encode()) == header
    assert len(header.encode()) == HEADER.size == 16


@pytest.mark.parametrize(
    ("flags", "is_command", "is_reply", "no_reply", "is_error"),
    [
        (0x00, True, False, False, False),
        (0x01, False, True, False, False),
        (0x10, True, False, True, False),
        (0x21, False, True, False, True),
        (0x20, True, False, False, True),
        # Types 2 to 15 are neither, whatever else is set.
        *((type_ | 0x30, False, False, True, True) for type_ in range(2, 16)),
        # Reserved bits change nothing.
        (0xFFFFFFC0, True, False, False, False),
        (0xFFFFFFC1, False, True, False, False),
    ],
)
def test_flags(flags: int, is_command: bool, is_reply: bool, no_reply: bool, is_error: bool) -> None:
    header = Header(0, 0, 16, flags, 0)
    assert (header.is_command, header.is_reply, header.no_reply, header.is_error) == (
        is_command,
        is_reply,
        no_reply,
        is_error,
    )


def test_header_of_a_command() -> None:
    assert Header.decode(command_header(7, 9, 16)) == Header(7, 9, 32, 0, 0)
    assert Header.decode(command_header(7, 10, 20, no_reply=True)) == Header(7, 10, 36, 0x10, 0)


def test_header_of_a_reply() -> None:
    assert Header.decode(reply_header(7, 9, 20)) == Header(7, 9, 36, 0x01, 0)


@pytest.mark.parametrize("error", [1, errno.EINVAL, 4095])
def test_error_reply_is_a_header_and_nothing_else(error: int) -> None:
    assert error_reply(9, 14, error) == Header(9, 14, 16, 0x21, error).encode()


@pytest.mark.parametrize("error", [0, -1, 4096])
def test_an_error_reply_always_says_an_error(error: int) -> None:
    with pytest.raises(LocalProtocolError, match=rf"cannot carry errno {error}: it must be 1 to 4095"):
        error_reply(9, 14, error)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (Header(3, 9, 32, 0, 0), "REGION_READ command id=3 size=32"),
        (Header(3, 10, 36, 0x10, 0), "REGION_WRITE command id=3 size=36 no_reply"),
        (Header(3, 9, 36, 1, 0), "REGION_READ reply id=3 size=36"),
        (
            Header(3, 9, 16, 0x21, errno.EINVAL),
            f"REGION_READ reply id=3 size=16 error=22 ({os.strerror(errno.EINVAL)})",
        ),
        (Header(3, 99, 16, 5, 0), "command 99 type 5 id=3 size=16"),
    ],
)
def test_text(header: Header, text: str) -> None:
    assert str(header) == text


@given(headers)
@example(Header(0, 0, 0, 0x20, 0xFFFFFFFF))  # an errno no C int holds
def test_text_survives_any_content(header: Header) -> None:
    assert "\n" not in str(header)


def test_command_names() -> None:
    assert command_name(16) == "DEVICE_FEATURE"
    assert [command_name(number) for number in (0, 19, 0xFFFF)] == ["command 0", "command 19", "command 65535"]

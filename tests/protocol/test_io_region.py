from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.io_region import IoRegionCommand, decode_io_region_reply, encode_io_region_reply

U64 = st.integers(0, (1 << 64) - 1)


def test_the_bytes() -> None:
    write = IoRegionCommand(True, 4, 0x10, 0x1234_5678, wants_reply=False, user_data=7)
    assert write.encode().hex(" ", 8) == ("0102000000000000 0700000000000000 1000000000000000 7856341200000000")
    assert IoRegionCommand(False, 8, 0).encode()[:2] == b"\x00\x13"
    assert encode_io_region_reply(0x55) == b"\x55" + bytes(31)


@given(st.booleans(), st.sampled_from([1, 2, 4, 8]), U64, U64, st.booleans(), U64)
def test_there_and_back(is_write: bool, size: int, offset: int, data: int, reply: bool, user_data: int) -> None:
    command = IoRegionCommand(is_write, size, offset, data % 256**size, reply, user_data)
    assert IoRegionCommand.decode(command.encode()) == command
    assert decode_io_region_reply(encode_io_region_reply(data)) == data


def test_only_the_bytes_of_the_access_count() -> None:
    assert IoRegionCommand.decode(b"\x01\x00" + bytes(22) + b"\xff" * 8).data == 0xFF


@pytest.mark.parametrize("bad", [b"\x02\x00" + bytes(30), b"\x00\x04" + bytes(30), bytes(31), b""])
def test_what_is_none(bad: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        IoRegionCommand.decode(bad)


def test_a_short_reply() -> None:
    with pytest.raises(RemoteProtocolError):
        decode_io_region_reply(bytes(31))

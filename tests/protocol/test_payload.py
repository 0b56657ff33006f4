"""Length checks and the argsz rule."""

from __future__ import annotations

import struct

import pytest

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.payload import check_argsz, unpack_head

FORM = struct.Struct("<IHH")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("extra", [b"", b"rest"])
def test_unpacks_the_head_and_leaves_the_rest(kind: type[bytes], extra: bytes) -> None:
    assert unpack_head(FORM, kind(FORM.pack(1, 2, 3) + extra), "THING") == (1, 2, 3)


@pytest.mark.parametrize("length", range(8))
def test_a_short_payload_says_what_and_how_short(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"^THING: a payload of {length} bytes is shorter than the 8 it"):
        unpack_head(FORM, bytes(length), "THING")


def test_argsz_covers_the_fixed_part() -> None:
    check_argsz(32, 32, "THING")
    check_argsz(0xFFFFFFFF, 32, "THING")
    with pytest.raises(RemoteProtocolError, match=r"^THING: argsz 31 is smaller than the fixed part of 32 bytes"):
        check_argsz(31, 32, "THING")

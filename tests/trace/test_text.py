from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.protocol.constants import DmaUnmapFlags, IrqInfoFlags, RegionFlags
from vfio_user.trace.text import elide, escape, flag_names, hex_lines, show_data, span


def test_text_of_a_peer_cannot_steer_the_terminal() -> None:
    assert escape("plain ünï") == "plain ünï"
    assert escape("a\x1b[2Jb\n\x7f\u202e\ud800") == r"a\x1b[2Jb\n\x7f\u202e\ud800"


@given(st.text(st.characters(exclude_categories=())))
def test_escaped_text_always_prints(text: str) -> None:
    assert escape(text).isprintable()


def test_long_text_is_elided() -> None:
    assert elide("abcdefgh", 8) == "abcdefgh"
    assert elide("abcdefghi", 8) == "abcde..."


def test_flags() -> None:
    assert flag_names(RegionFlags.READ | RegionFlags.WRITE) == "READ|WRITE"
    assert flag_names(RegionFlags(0)) == "0"
    assert flag_names(DmaUnmapFlags(0x12)) == "ALL|0x10"
    assert flag_names(IrqInfoFlags(0x100)) == "0x100"


def test_ranges_are_half_open() -> None:
    assert span(0x1000, 0x1000) == "[0x1000, 0x2000)"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", "nothing"),
        (b"\x81", "0x81"),
        (b"\x34\x12", "0x1234"),
        (b"\1\2\3", "01 02 03"),
        (bytes(8), "0x0"),
        (bytes(17), "00 " * 15 + "00 ... (17 bytes)"),
    ],
)
def test_data(data: bytes, shown: str) -> None:
    assert show_data(data) == shown


def test_hex_dump() -> None:
    assert hex_lines(b"ABC\0" + bytes(13) + b"z") == [
        "0000  41 42 43 00 00 00 00 00  00 00 00 00 00 00 00 00  ABC.............",
        "0010  00 7a                                             .z",
    ]
    assert hex_lines(bytes(40), limit=16)[-1] == "...   24 bytes more"
    assert hex_lines(b"") == []

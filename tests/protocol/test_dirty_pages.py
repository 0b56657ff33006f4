"""DIRTY_PAGES, and DMA_UNMAP with a dirty bitmap."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.codecs import Case, CodecTests
from tests.support.numbers import u32, u64
from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import DmaUnmapFlags
from vfio_user.protocol.dirty_pages import BitmapHeader, BitmapRange, DirtyPages, DirtyPagesFlags
from vfio_user.protocol.dma import DmaUnmap

START, STOP, GET_BITMAP = DirtyPagesFlags.START, DirtyPagesFlags.STOP, DirtyPagesFlags.GET_BITMAP

TABLE = [
    Case("start", DirtyPages(START), "08000000 01000000"),
    Case("stop", DirtyPages(STOP), "08000000 02000000"),
    Case(
        "the bitmap of 2 MiB at 4 GiB, as the 2021 client asks for it",
        DirtyPages(GET_BITMAP, BitmapRange(1 << 32, 2 << 20, 4096, 64), 40),
        "28000000 04000000 0000000001000000 0000200000000000 0010000000000000 4000000000000000",
    ),
    Case("the bitmap of an unmap", BitmapHeader(4096, 8), "0010000000000000 0800000000000000"),
]


@pytest.mark.parametrize("case", TABLE, ids=str)
class TestTable(CodecTests):
    pass


@pytest.mark.parametrize("argsz", [0, 7])
def test_argsz(argsz: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"DIRTY_PAGES: argsz {argsz} is smaller"):
        DirtyPages.decode(DirtyPages(START, argsz=argsz).encode())


def test_argsz_of_a_bitmap_has_a_limit() -> None:
    wanted = BitmapRange(0, 4096, 4096, 8)
    assert DirtyPages.decode(DirtyPages(GET_BITMAP, wanted, 1 << 20).encode()).argsz == 1 << 20
    with pytest.raises(RemoteProtocolError, match="over the limit"):
        DirtyPages.decode(DirtyPages(GET_BITMAP, wanted, (1 << 20) + 1).encode())


@given(u32.filter(lambda flags: flags not in (1, 2, 4)))
def test_exactly_one_flag(flags: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"flags {flags:#x} is none of"):
        DirtyPages.decode(b"\x08\0\0\0" + flags.to_bytes(4, "little") + bytes(32))


@pytest.mark.parametrize(("argsz", "enough"), [(24, False), (40, False), (47, False), (48, True), (4096, True)])
def test_room_for_the_bitmap_of_an_unmap(argsz: int, enough: bool) -> None:
    request = DmaUnmap(DmaUnmapFlags.GET_DIRTY_BITMAP, 0, 4096, argsz)
    if enough:
        BitmapHeader(4096, 8).check_room(request)
    else:
        with pytest.raises(RemoteProtocolError, match=rf"argsz {argsz} is smaller .* 48 bytes"):
            BitmapHeader(4096, 8).check_room(request)


@given(
    st.builds(DirtyPages, st.sampled_from([START, STOP]), st.none(), st.integers(8, 0xFFFF_FFFF))
    | st.builds(DirtyPages, st.just(GET_BITMAP), st.builds(BitmapRange, u64, u64, u64, u64), st.integers(8, 1 << 20))
    | st.builds(BitmapHeader, u64, u64)
)
def test_round_trip(message: Any) -> None:
    assert type(message).decode(message.encode()) == message


@pytest.mark.parametrize("kind", [DirtyPages, BitmapHeader])
@given(data=st.binary(max_size=48))
def test_any_bytes(kind: Any, data: bytes) -> None:
    try:
        message = kind.decode(data)
    except RemoteProtocolError:
        return
    assert type(message) is kind

"""Guest memory: sealed files, allocation, address spaces, buffers."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.client.guest_memory import DmaBuffer, GuestAddressSpace, GuestMapping, GuestMemory
from vfio_user.errors import DeviceError, StateError
from vfio_user.memory.shared_file import is_sealed


def test_a_memory_is_a_file_that_cannot_shrink() -> None:
    with GuestMemory(5000) as memory:
        assert memory.size == os.fstat(memory.fd).st_size == 8192
        assert is_sealed(memory.fd)
        for size in (4096, 16384):
            with pytest.raises(PermissionError):
                os.ftruncate(memory.fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(memory.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        memory.view[10:12] = b"xy"
        assert os.pread(memory.fd, 2, 10) == b"xy"


def test_a_memory_has_bytes() -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        GuestMemory(0)


def test_a_view_outlives_its_memory() -> None:
    memory = GuestMemory(4096)
    view = memory.view[0:4]
    memory.close()
    memory.close()
    view[:] = b"abcd"
    assert bytes(view) == b"abcd"


def test_allocation() -> None:
    with GuestMemory(0x4000) as memory:
        assert memory.allocate(1) == 0
        assert memory.allocate(10, align=8) == 8
        assert memory.allocate(0x1000) == 0x1000
        assert memory.allocate(1, align=1) == 1
        with pytest.raises(MemoryError, match="no 8193 bytes in a row are free in a guest memory of 16384"):
            memory.allocate(0x2001)
        memory.free(0x1000, 0x1000)
        assert memory.allocate(0x3000) == 0x1000
        for align in (0, 3, -4):
            with pytest.raises(ValueError, match="power of two"):
                memory.allocate(1, align=align)


@given(st.lists(st.tuples(st.integers(0, 3000), st.sampled_from([1, 8, 64, 4096]), st.booleans()), max_size=20))
def test_allocations_never_overlap(steps: list[tuple[int, int, bool]]) -> None:
    with GuestMemory(0x8000) as memory:
        held: list[tuple[int, int]] = []
        for size, align, free in steps:
            if free and held:
                memory.free(*held.pop(0))
                continue
            try:
                offset = memory.allocate(size, align=align)
            except MemoryError:
                continue
            assert offset % align == 0
            assert offset + size <= memory.size
            assert all(offset + max(size, 1) <= start or start + max(length, 1) <= offset for start, length in held)
            held.append((offset, size))
        for one in held:
            memory.free(*one)
        assert memory.allocate(0x8000) == 0


def mapping(memory: GuestMemory, iova: int, size: int, offset: int = 0, access: str = "rw") -> GuestMapping:
    return GuestMapping(iova, size, memory, offset, "r" in access, "w" in access, True)


def test_an_address_space() -> None:
    space = GuestAddressSpace()
    with GuestMemory(0x3000) as memory:
        first, second = mapping(memory, 0x10000, 0x1000, 0x2000), mapping(memory, 0x11000, 0x1000, 0)
        read_only = mapping(memory, 0x13000, 0x1000, 0x1000, "r")
        write_only = mapping(memory, 0x20000, 0x1000, 0x1000, "w")
        for part in (first, second, read_only, write_only):
            space.add(part)
        space.write(0x10FFE, b"abcd")
        assert (bytes(memory.view[0x2FFE:0x3000]), bytes(memory.view[0:2])) == (b"ab", b"cd")
        assert space.read(0x10FFE, 4) == b"abcd"
        assert space.read(0x10FFE, 0) == b""
        assert space.find(0x11FFF) is second
        for refused in (
            lambda: space.read(0x11FFF, 2),
            lambda: space.read(0xFFFF, 1),
            lambda: space.read(0x20000, 1),
            lambda: space.write(0x13000, b"x"),
            lambda: space.write(0x11FFF, b"xy"),
        ):
            with pytest.raises(DeviceError, match="no DMA of") as caught:
                refused()
            assert caught.value.reply_errno == errno.ENODEV
        assert memory.view[0xFFF] == 0, "half a write was done"
        with pytest.raises(StateError, match=r"\[0x10800, 0x10801\) overlaps \[0x10000, 0x11000\)"):
            space.add(mapping(memory, 0x10800, 1))
        space.remove(first)
        assert (len(space), space.find(0x10000)) == (3, None)
        space.clear()
        assert len(space) == 0


def test_a_buffer() -> None:
    with GuestMemory(0x2000) as memory, DmaBuffer(memory, 0x100, 0x8100, 0x20) as buffer:
        assert (len(buffer), buffer.iova, repr(buffer)) == (0x20, 0x8100, "DmaBuffer([0x8100, 0x8120))")
        buffer[0:4] = b"\1\2\3\4"
        assert (buffer[0:4], bytes(memory.view[0x100:0x104])) == (b"\1\2\3\4", b"\1\2\3\4")
        assert (buffer.read8(1), buffer.read16(0), buffer.read16(1)) == (2, 0x0201, 0x0302)
        assert (buffer.read32(0), buffer.read64(0), buffer.read32(1)) == (0x0403_0201, 0x0403_0201, 0x04_0302)
        buffer.write8(8, 0x11)
        buffer.write16(0xA, 0x2233)
        buffer.write32(0xC, 0x4455_6677)
        buffer.write64(0x10, 0x8899_AABB_CCDD_EEFF)
        buffer.write32(0x19, 0x0102_0304)
        assert buffer[8:0x20].hex() == "1100332277665544ffeeddccbbaa9988" + "0004030201" + "000000"
        for outside in (-1, 0x1D, 0x20):
            with pytest.raises(IndexError, match="4 bytes at"):
                buffer.read32(outside)
            with pytest.raises(IndexError):
                buffer.write32(outside, 0)


def test_a_buffer_goes_back_to_its_memory_once() -> None:
    with GuestMemory(0x1000) as memory:
        offset = memory.allocate(0x1000)
        buffer = DmaBuffer(memory, offset, 0, 0x1000)
        buffer.free()
        buffer.free()
        assert memory.allocate(0x800) == 0
        assert memory.allocate(0x800, align=1) == 0x800

"""fallocate(2): holes and zeroes in files, which Python's ``os`` does not offer.

Works on files and, since Linux 4.9, on block devices.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable

__all__ = ["allocate", "punch_hole", "zero_range"]

# linux/falloc.h
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

#: What a file system, a kernel or a device says that cannot do it, rather than has failed at it. EINVAL: a block device
#: whose blocks are larger than the range's grain.
_CANNOT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL}


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Gives the blocks of a range back; it reads as zeroes afterwards.

    Returns:
        Whether that file can do it; if not, nothing has changed.

    Raises:
        OSError: it can, and failed.
    """
    return _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> bool:
    """Makes a range read as zeroes and keeps, or gets, its blocks; returns and raises as ``punch_hole``."""
    return _fallocate(fd, _ZERO_RANGE | _KEEP_SIZE, offset, length)


def allocate(fd: int, offset: int, length: int) -> bool:
    """Gets blocks for a range of a file, whose bytes stay as they are; returns and raises as ``punch_hole``."""
    return _fallocate(fd, 0, offset, length)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    number = _function()(fd, mode, offset, length)
    if number in _CANNOT:
        return False
    if number:
        raise OSError(number, f"fallocate of [{offset:#x}, {offset + length:#x}) failed: {os.strerror(number)}")
    return True


@functools.cache
def _function() -> Callable[[int, int, int, int], int]:
    """The function of the C library; its errno as the result, 0 for success."""
    import ctypes  # 10 ms, and only disks that discard need it

    library = ctypes.CDLL(None, use_errno=True)
    # The name for 64-bit offsets on every machine, where the library has it (musl has only such offsets).
    call = library.fallocate64 if hasattr(library, "fallocate64") else library.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    call.restype = ctypes.c_int

    def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
        while True:
            if call(fd, mode, offset, length) == 0:
                return 0
            number = ctypes.get_errno()
            if number != errno.EINTR:
                return number

    return fallocate

"""Storage behind a device: what holds the bytes of a disk.

``open_backend("disk.img")`` opens what a user names; ``Backend`` is what all of them can do. See ``docs/storage.md``.
"""

from typing import TYPE_CHECKING

from vfio_user._lazy import lazy_names
from vfio_user.backends.base import Backend, ReadableBuffer
from vfio_user.backends.open import open_backend, parse_size

if TYPE_CHECKING:
    from vfio_user.backends.file import FileBackend
    from vfio_user.backends.mapped_file import MappedFileBackend
    from vfio_user.backends.memory import MemoryBackend, NullBackend
    from vfio_user.backends.nbd import NbdBackend
    from vfio_user.backends.overlay import OverlayBackend
    from vfio_user.backends.workers import Workers

__all__ = [
    "Backend",
    "FileBackend",
    "MappedFileBackend",
    "MemoryBackend",
    "NbdBackend",
    "NullBackend",
    "OverlayBackend",
    "ReadableBuffer",
    "Workers",
    "open_backend",
    "parse_size",
]

__getattr__ = lazy_names(
    __name__,
    {
        "file": ["FileBackend"],
        "mapped_file": ["MappedFileBackend"],
        "memory": ["MemoryBackend", "NullBackend"],
        "nbd": ["NbdBackend"],
        "overlay": ["OverlayBackend"],
        "workers": ["Workers"],
    },
)

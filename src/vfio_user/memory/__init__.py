"""Guest memory: what the client mapped, and how a device reads and writes it.

``Dma`` is the one class to know. The layers under it, from the bottom:

==================  ====================================================================================
``shared_file``     what a descriptor is; a file that is mapped, a file that is read and written
``file_cache``      one mmap a file, however many slices of it a client sends
``iova_map``        an ordered map of address ranges, good to a million of them
``mapping``         one DMA mapping and the way to its bytes: mmap, file I/O or messages
``dirty_log``       which pages were written, for migration
``dma_table``       DMA_MAP and DMA_UNMAP: every rule, every errno
``dma``             read, write, view, scatter/gather lists: what a device uses
==================  ====================================================================================

Nothing here knows of sockets or messages.
"""

from __future__ import annotations

from vfio_user.memory.dirty_log import DirtyLog
from vfio_user.memory.dma import Dma, Segment
from vfio_user.memory.dma_table import MAX_MAPPING_SIZE, DmaStatistics
from vfio_user.memory.mapping import AccessMode, DmaMapping, MessageDma

__all__ = [
    "MAX_MAPPING_SIZE",
    "AccessMode",
    "DirtyLog",
    "Dma",
    "DmaMapping",
    "DmaStatistics",
    "MessageDma",
    "Segment",
]

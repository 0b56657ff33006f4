"""Queues of fixed-size entries in guest memory, shared by a driver and a device.

NVMe's queues are such rings, and those of many cards: a driver writes entries into a *submission ring* and rings a
doorbell with the new tail; the device takes them out in batches and writes what became of them into a *completion
ring*, whose entries carry a phase tag that says which lap of the ring they belong to. See ``docs/storage.md``.
"""

from vfio_user.rings.completion import CompletionRing, PhaseTag
from vfio_user.rings.order import full_barrier, load_barrier, store_barrier
from vfio_user.rings.submission import SubmissionRing

__all__ = ["CompletionRing", "PhaseTag", "SubmissionRing", "full_barrier", "load_barrier", "store_barrier"]

"""Namespaces: what holds the blocks, in which format; and the subsystem that has them.

A namespace exists (is allocated) or not, and is attached to the controller (active) or not. One that exists keeps its
identifiers. Space for namespaces the host creates comes from the subsystem's unallocated capacity, a backend of which
they are slices.

Spec: 3.2.1 (identifiers), 8.12 (management).
"""

from __future__ import annotations

import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from vfio_user.backends.base import Backend, ReadableBuffer
from vfio_user.devices.nvme.command import CommandFailed
from vfio_user.devices.nvme.gate import Gate
from vfio_user.errors import InvalidAccess
from vfio_user.hardware.nvme.identify import BROADCAST_NSID
from vfio_user.hardware.nvme.status import Status

__all__ = ["LBA_SHIFTS", "MAX_NAMESPACES", "BlockRanges", "Namespace", "Namespaces", "Slice"]

#: The LBA formats all namespaces have, by index: log2 of the bytes of a block. None has metadata.
LBA_SHIFTS = (9, 12)
#: The largest namespace identifier.
MAX_NAMESPACES = 256
#: Namespaces the host creates begin at multiples of this many bytes of the unallocated capacity.
GRANULARITY = 1 << 20

_UUIDS = uuid.UUID("6a1e9c1f-7d0b-4f5e-9a67-2f0d1c3b5a70")


class BlockRanges:
    """A set of blocks, as ranges apart from each other."""

    def __init__(self, ranges: Sequence[Sequence[int]] = ()) -> None:
        self._starts = [start for start, _ in ranges]
        self._ends = [end for _, end in ranges]

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def first(self, start: int, end: int) -> int | None:
        """The first block of ``[start, end)`` that is in the set."""
        at = bisect_right(self._ends, start)
        if at < len(self._starts) and self._starts[at] < end:
            return max(start, self._starts[at])
        return None

    def add(self, start: int, end: int) -> None:
        """Adds ``[start, end)``."""
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def remove(self, start: int, end: int) -> None:
        """Removes ``[start, end)``."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if first >= last or start >= end:
            return
        kept = [(self._starts[first], start)] if self._starts[first] < start else []
        if self._ends[last - 1] > end:
            kept.append((end, self._ends[last - 1]))
        self._starts[first:last], self._ends[first:last] = [s for s, _ in kept], [e for _, e in kept]


class Slice(Backend):
    """A part of another backend, which it does not own."""

    def __init__(self, base: Backend, offset: int, size: int) -> None:
        super().__init__(size, block_size=base.block_size, read_only=base.read_only)
        self.base = base
        self.offset = offset
        self.blocking = base.blocking

    @property
    def flush_blocks(self) -> bool:
        """See ``Backend``."""
        return self.base.flush_blocks

    @property
    def contents(self) -> memoryview | None:
        """See ``Backend``."""
        contents = self.base.contents
        return None if contents is None else contents[self.offset : self.offset + self.size]

    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        self.base.read(self.offset + offset, views)

    def _read_at_once(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
        return self.base.read_at_once(self.offset + offset, views)

    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        self.base.write(self.offset + offset, views)

    def _zero(self, offset: int, length: int, *, may_deallocate: bool) -> None:
        self.base.zero(self.offset + offset, length, may_deallocate=may_deallocate)

    def _discard(self, offset: int, length: int) -> None:
        self.base.discard(self.offset + offset, length)

    def _flush(self) -> None:
        self.base.flush()


class Namespace:
    """A namespace.

    Args:
        nsid: its identifier.
        backend: its blocks.
        lba_format: index into ``LBA_SHIFTS``.
        nguid: 16 bytes that name it in the whole world.

    Attributes:
        attached: the controller has it.
        shift: log2 of the bytes of a block.
        blocks: its size.
        formatting: a Format NVM command works on it, and no other command may.
        is_new: it is being made: the host does not know of it yet.
        is_leaving: it is being detached, and not attached any more; the command has not ended.
        uncorrectable: blocks that Write Uncorrectable has made unreadable.
        gate: lets commands begin that go to the backend.
    """

    def __init__(self, nsid: int, backend: Backend, lba_format: int, nguid: bytes) -> None:
        self.nsid = nsid
        self.backend = backend
        self.nguid = nguid
        self.attached = True
        self.formatting = False
        self.is_new = self.is_leaving = False
        self.uncorrectable = BlockRanges()
        self.gate = Gate()
        self.set_format(lba_format)

    def set_format(self, lba_format: int) -> None:
        """Gives it blocks of another size."""
        self.lba_format = lba_format
        self.shift = LBA_SHIFTS[lba_format]
        self.blocks = self.backend.size >> self.shift

    @property
    def write_protected(self) -> bool:
        """It cannot be written."""
        return self.backend.read_only

    @property
    def uuid(self) -> bytes:
        """Its UUID."""
        return uuid.uuid5(_UUIDS, self.nguid.hex()).bytes


class Namespaces:
    """The namespaces of a subsystem, by identifier, and the capacity that is nobody's.

    Args:
        serial: the subsystem's serial number; identifiers of namespaces come from it.
        pool: the unallocated capacity; None for none.

    Ownership: ``close`` closes the backends of all.
    """

    def __init__(self, serial: str, pool: Backend | None) -> None:
        self._serial = serial
        self._pool = pool
        self._by_nsid: dict[int, Namespace] = {}
        #: Identifiers of namespaces that have gone: what comes there next is another, and has another name.
        self._gone: set[int] = set()

    def __iter__(self) -> Iterator[Namespace]:
        return iter(sorted(self._by_nsid.values(), key=lambda namespace: namespace.nsid))

    def get(self, nsid: int) -> Namespace | None:
        """The namespace that exists under an identifier."""
        return self._by_nsid.get(nsid)

    def active(self, nsid: int) -> Namespace:
        """The namespace a command is about.

        Raises:
            CommandFailed: there is none, or it is not attached.
        """
        namespace = self._by_nsid.get(nsid)
        if namespace is not None and namespace.attached:
            return namespace
        if nsid == 0 or nsid > MAX_NAMESPACES:
            raise CommandFailed(Status.INVALID_NAMESPACE_OR_FORMAT, location=4)
        raise CommandFailed(Status.INVALID_FIELD, location=4)

    def existing(self, nsid: int) -> Namespace:
        """The namespace, attached or not, a management command is about.

        Raises:
            CommandFailed: there is none.
        """
        namespace = self._by_nsid.get(nsid)
        if namespace is None:
            valid = 0 < nsid <= MAX_NAMESPACES
            raise CommandFailed(Status.INVALID_FIELD if valid else Status.INVALID_NAMESPACE_OR_FORMAT, location=4)
        return namespace

    def add(self, backend: Backend, lba_format: int, nsid: int | None = None, nguid: bytes | None = None) -> Namespace:
        """Adds a namespace, attached.

        Args:
            backend: its blocks; closed with it.
            lba_format: index into ``LBA_SHIFTS``.
            nsid: its identifier; None for the first that is free.
            nguid: its name; None for one made of the serial number, if no other has had that.

        Raises:
            ValueError: the identifier is in use or out of range, or the backend has not one block.
        """
        if nsid is None:
            nsid = self.free_nsid()
        if nsid is None or not 1 <= nsid <= MAX_NAMESPACES or nsid in self._by_nsid:
            raise ValueError(f"namespace identifier {nsid}: it is 1 to {MAX_NAMESPACES}, and none that is in use")
        if not backend.size >> LBA_SHIFTS[lba_format]:
            raise ValueError(f"a namespace of {backend.size} bytes: it has at least one block")
        if nguid is None:
            nguid = (uuid.uuid4() if nsid in self._gone else uuid.uuid5(_UUIDS, f"{self._serial}/{nsid}")).bytes
        namespace = self._by_nsid[nsid] = Namespace(nsid, backend, lba_format, nguid)
        return namespace

    def free_nsid(self) -> int | None:
        """The least identifier that is not in use."""
        return next((nsid for nsid in range(1, MAX_NAMESPACES + 1) if nsid not in self._by_nsid), None)

    def remove(self, nsid: int) -> Namespace:
        """Takes a namespace out; its backend stays open.

        Raises:
            KeyError: there is none.
        """
        namespace = self._by_nsid.pop(nsid)
        self._gone.add(nsid)
        return namespace

    # Capacity.

    @property
    def total_capacity(self) -> int:
        """Bytes of all there is."""
        pool = 0 if self._pool is None else self._pool.size
        return pool + sum(ns.backend.size for ns in self if not isinstance(ns.backend, Slice))

    @property
    def unallocated_capacity(self) -> int:
        """Bytes no namespace has."""
        return sum(end - start for start, end in self._gaps())

    def allocate(self, size: int) -> Slice | None:
        """Takes that much of the unallocated capacity; None where there is not so much in one piece."""
        room = -(-size // GRANULARITY) * GRANULARITY
        for start, end in self._gaps():
            if room <= end - start:
                assert self._pool is not None
                return Slice(self._pool, start, size)
        return None

    def _gaps(self) -> Iterator[tuple[int, int]]:
        at = 0
        size = 0 if self._pool is None else self._pool.size // GRANULARITY * GRANULARITY
        slices = [ns.backend for ns in self._by_nsid.values() if isinstance(ns.backend, Slice)]
        for used in sorted(slices, key=lambda part: part.offset):
            if used.offset > at:
                yield at, used.offset
            at = -(-(used.offset + used.size) // GRANULARITY) * GRANULARITY
        if size > at:
            yield at, size

    # State.

    def save(self) -> list[dict[str, Any]]:
        """What the host has made of them; their contents are the backends'.

        Commands that have not ended are carried out again where this is loaded: what they have begun is not in it.
        """
        return [
            {
                "nsid": ns.nsid,
                "lba_format": ns.lba_format,
                "attached": ns.attached or ns.is_leaving,
                "nguid": ns.nguid,
                "size": ns.backend.size,
                "slice": ns.backend.offset if isinstance(ns.backend, Slice) else None,
                "uncorrectable": [list(blocks) for blocks in ns.uncorrectable],
            }
            for ns in self
            if not ns.is_new
        ]

    def check(self, saved: list[dict[str, Any]]) -> dict[int, Namespace]:
        """What ``load`` would put back. Backends are those this subsystem has; those the host made are cut anew.

        Raises:
            InvalidAccess: a namespace has no backend here, or one of another size.
        """
        restored: dict[int, Namespace] = {}
        for state in saved:
            old = self._by_nsid.get(state["nsid"])
            backend: Backend | None
            if state["slice"] is not None:
                backend = self._cut(state["slice"], state["size"])
            else:
                backend = None if old is None or isinstance(old.backend, Slice) else old.backend
            if backend is None or backend.size != state["size"]:
                here = "without it" if backend is None else f"with {backend.size} bytes"
                raise InvalidAccess(
                    f"namespace {state['nsid']} of {state['size']} bytes: this device was made {here}; "
                    "start both with the same images"
                )
            namespace = Namespace(state["nsid"], backend, state["lba_format"], state["nguid"])
            namespace.attached = state["attached"]
            namespace.uncorrectable = BlockRanges(state["uncorrectable"])
            restored[namespace.nsid] = namespace
        return restored

    def restore(self, kept: list[dict[str, Any]]) -> None:
        """Makes again what a process before this one has made of the unallocated capacity and of the images.

        An image may have grown or shrunk since. One that is not there any more is forgotten.

        Raises:
            ValueError: it cannot be made so here.
        """
        for row in kept:
            nsid, lba_format, nguid = row["nsid"], row["lba_format"], row["nguid"]
            if lba_format not in range(len(LBA_SHIFTS)) or len(nguid) != 16:
                raise ValueError(f"namespace {nsid!r} has format {lba_format!r} and name {nguid.hex()}")
            namespace = self._by_nsid.get(nsid)
            if row["slice"] is not None:
                part = self._cut(row["slice"], row["size"])
                if part is None or not any(
                    start <= part.offset and part.offset + part.size <= end for start, end in self._gaps()
                ):
                    raise ValueError(
                        f"namespace {nsid!r} has {row['size']} bytes from {row['slice']} on of the unallocated "
                        f"capacity, which has {0 if self._pool is None else self._pool.size}, or they are another's"
                    )
                namespace = self.add(part, lba_format, nsid, nguid)
            elif namespace is None or not namespace.backend.size >> LBA_SHIFTS[lba_format]:
                continue
            namespace.nguid = nguid
            namespace.attached = bool(row["attached"])
            namespace.set_format(lba_format)

    def _cut(self, offset: int, size: int) -> Slice | None:
        """A part of the unallocated capacity; None where that does not reach so far."""
        if self._pool is None or offset < 0 or size <= 0 or offset + size > self._pool.size:
            return None
        return Slice(self._pool, offset, size)

    def load(self, saved: list[dict[str, Any]]) -> None:
        """Puts ``save`` back.

        Raises:
            InvalidAccess: see ``check``.
        """
        self._by_nsid = self.check(saved)

    def selected(self, nsid: int) -> list[Namespace]:
        """The attached namespaces a command with this identifier is about, ``BROADCAST_NSID`` allowed.

        Raises:
            CommandFailed: see ``active``.
        """
        if nsid == BROADCAST_NSID:
            return [namespace for namespace in self if namespace.attached]
        return [self.active(nsid)]

    def close(self) -> None:
        """Closes all backends."""
        for namespace in self:
            namespace.backend.close()
        if self._pool is not None:
            self._pool.close()

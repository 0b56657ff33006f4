"""Accesses to offsets no register claims: remembered, so that the missing registers can be written down.

Bringing up a driver on a model that is still growing means working off this list: what it touched that does not exist
yet, in the order it did, with a declaration to paste for each.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from vfio_user.errors import InvalidAccess

__all__ = ["IGNORE", "LOG_ALL", "LOG_ONCE", "RAISE", "Unmodelled", "UnmodelledAccess", "UnmodelledAccesses"]

_log = logging.getLogger(__name__)

#: Distinct (offset, size, direction) triples that are remembered. A driver's first day fits many times over; a client
#: that sweeps a 1 GiB BAR must not fill our memory.
CAPACITY = 4096


class Unmodelled(enum.Enum):
    """What becomes of an access to an offset no register claims. All kinds count it."""

    #: Reads give 0, writes do nothing.
    IGNORE = "ignore"
    #: As IGNORE; the first access of each offset, size and direction is logged.
    LOG_ONCE = "log once"
    #: As IGNORE; each access is logged.
    LOG_ALL = "log all"
    #: Refused with EINVAL.
    RAISE = "raise"


IGNORE = Unmodelled.IGNORE
LOG_ONCE = Unmodelled.LOG_ONCE
LOG_ALL = Unmodelled.LOG_ALL
RAISE = Unmodelled.RAISE


@dataclass(slots=True)
class UnmodelledAccess:
    """All accesses of one kind to one unmodelled place.

    Attributes:
        offset: bytes from the start of the block.
        size: bytes.
        is_write: direction.
        first_value: what the first write wrote; 0 for reads.
        count: how many there were.
    """

    offset: int
    size: int
    is_write: bool
    first_value: int
    count: int = 0


class UnmodelledAccesses:
    """The list of a block's unmodelled accesses, in the order of the first of each.

    Args:
        name: the block's, for the log.
        policy: what to do with them.

    Attributes:
        policy: may be changed at any time.
        dropped: accesses that were not remembered because CAPACITY other ones are.

    Threading: session thread.
    """

    def __init__(self, name: str, policy: Unmodelled = IGNORE) -> None:
        self.name = name
        self.policy = policy
        self.dropped = 0
        self._accesses: dict[tuple[int, int, bool], UnmodelledAccess] = {}

    def __iter__(self) -> Iterator[UnmodelledAccess]:
        return iter(self._accesses.values())

    def __len__(self) -> int:
        return len(self._accesses)

    def clear(self) -> None:
        """Forgets them all."""
        self._accesses.clear()
        self.dropped = 0

    def read(self, offset: int, size: int) -> int:
        """Remembers a read, and answers it.

        Raises:
            InvalidAccess: the policy is RAISE.
        """
        self._remember(offset, size, False, 0)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Remembers a write.

        Raises:
            InvalidAccess: the policy is RAISE.
        """
        self._remember(offset, size, True, value)

    def _remember(self, offset: int, size: int, is_write: bool, value: int) -> None:
        key = offset, size, is_write
        access = self._accesses.get(key)
        if access is None:
            access = UnmodelledAccess(offset, size, is_write, value)
            if len(self._accesses) < CAPACITY:
                self._accesses[key] = access
            else:
                self.dropped += 1
        access.count += 1
        if self.policy is IGNORE:
            return
        what = f"write of {size} bytes, {value:#x}," if is_write else f"read of {size} bytes"
        if self.policy is RAISE:
            raise InvalidAccess(f"{self.name}: {what} at {offset:#x}, where there is no register")
        if self.policy is LOG_ALL or access.count == 1:
            _log.warning("%s: %s at %#x, where there is no register", self.name, what, offset)

    def report(self) -> str:
        """The burndown list: one line an access, oldest first, then the declarations to paste."""
        if not self._accesses:
            return f"{self.name}: every access met a register"
        lines = [f"{self.name}: {len(self._accesses)} kinds of access met no register, oldest first"]
        for access in self:
            what = "write" if access.is_write else "read "
            first = f", first value {access.first_value:#x}" if access.is_write else ""
            lines.append(f"  {access.offset:#06x} {what} {access.size} bytes, {access.count} times{first}")
        if self.dropped:
            lines.append(f"  and {self.dropped} more accesses, which were too many to remember")
        lines += ["to paste:", *(f"    {declaration}" for declaration in self.declarations())]
        return "\n".join(lines)

    def declarations(self) -> Iterator[str]:
        """A register declaration for each place, oldest first, as wide as the widest access."""
        places: dict[int, list[UnmodelledAccess]] = {}
        for access in self:
            places.setdefault(access.offset, []).append(access)
        for offset, accesses in places.items():
            size = max(access.size for access in accesses)
            if any(start < offset < start + max(a.size for a in others) for start, others in places.items()):
                continue  # the second half of a wider access
            size = next(width for width in (1, 2, 4, 8) if width >= size)
            reads = sum(access.count for access in accesses if not access.is_write)
            writes = sum(access.count for access in accesses if access.is_write)
            width = "" if size == 4 else f", width={8 * size}"
            access_ = "" if writes else ", access=RO"
            yield f"unknown_{offset:x} = Register({offset:#x}{width}{access_})  # {reads} reads, {writes} writes"

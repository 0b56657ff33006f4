"""Access policies: what a client's access does to the bits of a field, as pure functions.

A policy is two choices, the ones data sheets, SystemRDL (``onwrite``, ``onread``) and CMSIS-SVD also make: what a write
does to the stored bits, and what a read gives and leaves behind. The named policies below are the usual pairs; make
another with ``Access("W1T", WriteEffect.ONE_TOGGLES)``.

``Access.written``, ``Access.returned`` and ``Access.after_read`` are the definition of each policy. A register does not
call them per field: ``Combined`` folds the policies of all its fields into masks, once, and a property test holds the
two together.

Spec: IEEE 1685 (IP-XACT) ``modifiedWriteValue`` and ``readAction``; SystemRDL 2.0 table 8; PCI Express Base 7.4.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "CONST",
    "COUNTER",
    "COUNTER_RC",
    "COUNTER_WRAP",
    "RC",
    "RO",
    "RS",
    "RSVDP",
    "RSVDZ",
    "RW",
    "RW1C",
    "RW1S",
    "RW1T",
    "RWRC",
    "W0C",
    "W0S",
    "W1P",
    "WO",
    "Access",
    "Combined",
    "ReadEffect",
    "WriteEffect",
    "named_access",
]


class WriteEffect(enum.Enum):
    """What a client's write does to each stored bit; the value is the word used in descriptions."""

    IGNORED = "ignored"
    STORES = "stores"
    ONE_CLEARS = "1 clears"
    ONE_SETS = "1 sets"
    ONE_TOGGLES = "1 toggles"
    ZERO_CLEARS = "0 clears"
    ZERO_SETS = "0 sets"
    ZERO_TOGGLES = "0 toggles"
    CLEARS = "any write clears"
    SETS = "any write sets"
    PULSES = "1 acts and reads as 0"


class ReadEffect(enum.Enum):
    """What a client's read gives, and what it does to each stored bit."""

    NONE = "none"
    HIDDEN = "reads as 0"
    CLEARS = "clears"
    SETS = "sets"


@dataclass(frozen=True, slots=True)
class Access:
    """An access policy.

    Attributes:
        name: as data sheets print it.
        write: what a client's write does.
        read: what a client's read gives and does.
        overflow: what a device-side store of a value that does not fit does: None raises ValueError, ``saturate`` keeps
            the greatest value, ``wrap`` drops the upper bits. Counters have the last two, so that
            ``block.frames += 1`` is all a device writes.
        constant: not even the device may store.
    """

    name: str
    write: WriteEffect = WriteEffect.STORES
    read: ReadEffect = ReadEffect.NONE
    overflow: Literal["saturate", "wrap"] | None = None
    constant: bool = False

    @property
    def writable(self) -> bool:
        """A client's write can have an effect."""
        return self.write is not WriteEffect.IGNORED

    @property
    def readable(self) -> bool:
        """A client's read can give something other than 0."""
        return self.read is not ReadEffect.HIDDEN

    def written(self, stored: int, value: int, mask: int) -> int:
        """The bits of ``mask`` after a client wrote ``value`` over ``stored``.

        Bits that pulse are 1 in the result, for hooks to see; the register keeps none of them.
        """
        match self.write:
            case WriteEffect.IGNORED:
                new = stored
            case WriteEffect.STORES | WriteEffect.PULSES:
                new = value
            case WriteEffect.ONE_CLEARS:
                new = stored & ~value
            case WriteEffect.ONE_SETS:
                new = stored | value
            case WriteEffect.ONE_TOGGLES:
                new = stored ^ value
            case WriteEffect.ZERO_CLEARS:
                new = stored & value
            case WriteEffect.ZERO_SETS:
                new = stored | ~value
            case WriteEffect.ZERO_TOGGLES:
                new = stored ^ ~value
            case WriteEffect.CLEARS:
                new = 0
            case WriteEffect.SETS:
                new = mask
        return new & mask

    def returned(self, stored: int, mask: int) -> int:
        """The bits of ``mask`` a client reads."""
        return stored & mask if self.readable else 0

    def after_read(self, stored: int, mask: int) -> int:
        """The bits of ``mask`` that are stored once a client has read them."""
        if self.read is ReadEffect.CLEARS:
            return 0
        return mask if self.read is ReadEffect.SETS else stored & mask

    def __str__(self) -> str:
        return self.name


RW = Access("RW")
RO = Access("RO", WriteEffect.IGNORED)
#: Stored, and seen by the device; a client reads 0.
WO = Access("WO", WriteEffect.STORES, ReadEffect.HIDDEN)
RW1C = Access("RW1C", WriteEffect.ONE_CLEARS)
RW1S = Access("RW1S", WriteEffect.ONE_SETS)
RW1T = Access("RW1T", WriteEffect.ONE_TOGGLES)
W0C = Access("W0C", WriteEffect.ZERO_CLEARS)
W0S = Access("W0S", WriteEffect.ZERO_SETS)
#: Self-clearing: a 1 reaches the hooks and is never stored.
W1P = Access("W1P", WriteEffect.PULSES)
RC = Access("RC", WriteEffect.IGNORED, ReadEffect.CLEARS)
RS = Access("RS", WriteEffect.IGNORED, ReadEffect.SETS)
#: Writable, and cleared by a read.
RWRC = Access("RWRC", WriteEffect.STORES, ReadEffect.CLEARS)
#: Reserved and preserved: shows its reset value, ignores writes.
RSVDP = Access("RsvdP", WriteEffect.IGNORED)
#: Reserved, zero: reads as 0, ignores writes.
RSVDZ = Access("RsvdZ", WriteEffect.IGNORED, ReadEffect.HIDDEN)
#: Its reset value for ever: a store from the device side is an error too.
CONST = Access("CONST", WriteEffect.IGNORED, constant=True)
#: Counts up to its greatest value and stays there; any write clears it.
COUNTER = Access("COUNTER", WriteEffect.CLEARS, overflow="saturate")
#: Counts up to its greatest value and stays there; a read clears it.
COUNTER_RC = Access("COUNTER_RC", WriteEffect.IGNORED, ReadEffect.CLEARS, overflow="saturate")
#: Counts modulo its width; any write clears it.
COUNTER_WRAP = Access("COUNTER_WRAP", WriteEffect.CLEARS, overflow="wrap")


_NAMED = {
    (access.write, access.read, access.overflow): access
    for access in (RW, RO, WO, RW1C, RW1S, RW1T, W0C, W0S, W1P, RC, RS, RWRC, RSVDZ, COUNTER, COUNTER_RC, COUNTER_WRAP)
}


def named_access(
    write: WriteEffect, read: ReadEffect = ReadEffect.NONE, overflow: Literal["saturate", "wrap"] | None = None
) -> Access:
    """The policy of those effects: one of the named ones above, or a new one with a name that says them."""
    known = _NAMED.get((write, read, overflow))
    if known is not None:
        return known
    words = [f"write: {write.value}", f"read: {read.value}", *([f"counter: {overflow}s"] if overflow else [])]
    return Access(f"({', '.join(words)})", write, read, overflow)


class Combined:
    """The policies of all the bits of one register, folded into masks.

    Args:
        parts: (mask, policy) pairs; the masks do not overlap.

    Attributes:
        hidden: bits a client reads as 0.
        clears_on_read: bits a read clears.
        sets_on_read: bits a read sets.
        pulses: bits that are never stored.
        constant: bits the device may not change.
        is_plain: every bit is stored as written and read as stored.
    """

    __slots__ = ("_writes", "clears_on_read", "constant", "hidden", "is_plain", "pulses", "sets_on_read")

    def __init__(self, parts: Iterable[tuple[int, Access]]) -> None:
        writes: dict[WriteEffect, int] = {}
        reads: dict[ReadEffect, int] = {}
        self.constant = 0
        for mask, access in parts:
            writes[access.write] = writes.get(access.write, 0) | mask
            reads[access.read] = reads.get(access.read, 0) | mask
            if access.constant:
                self.constant |= mask
        self._writes = writes
        self.hidden = reads.get(ReadEffect.HIDDEN, 0)
        self.clears_on_read = reads.get(ReadEffect.CLEARS, 0)
        self.sets_on_read = reads.get(ReadEffect.SETS, 0)
        self.pulses = writes.get(WriteEffect.PULSES, 0)
        self.is_plain = writes.keys() <= {WriteEffect.STORES} and reads.keys() <= {ReadEffect.NONE}

    def writer(self, lanes: int) -> Callable[[int, int], int]:
        """Makes ``write(stored, value) -> new`` for a write that carries only the bits of ``lanes``.

        Pulsing bits are 1 in the result, as in ``Access.written``.
        """
        masks = {effect: mask & lanes for effect, mask in self._writes.items() if mask & lanes}
        masks.pop(WriteEffect.IGNORED, None)
        stores = masks.pop(WriteEffect.STORES, 0) | masks.pop(WriteEffect.PULSES, 0)
        if not masks:
            if not stores:
                return _ignore
            # A negative number keeps every bit above the register: stored values have none there.
            return lambda stored, value: stored & ~stores | value & stores
        get = masks.get
        clears, sets = get(WriteEffect.ONE_CLEARS, 0), get(WriteEffect.ONE_SETS, 0)
        toggles = get(WriteEffect.ONE_TOGGLES, 0)
        zero_clears, zero_sets = get(WriteEffect.ZERO_CLEARS, 0), get(WriteEffect.ZERO_SETS, 0)
        zero_toggles = get(WriteEffect.ZERO_TOGGLES, 0)
        all_clears, all_sets = get(WriteEffect.CLEARS, 0), get(WriteEffect.SETS, 0)

        def write(stored: int, value: int) -> int:
            new = stored & ~(stores | all_clears) | value & stores | all_sets
            new = new & ~(value & clears | ~value & zero_clears) | value & sets | ~value & zero_sets
            return new ^ (value & toggles | ~value & zero_toggles)

        return write


def _ignore(stored: int, _value: int) -> int:
    return stored

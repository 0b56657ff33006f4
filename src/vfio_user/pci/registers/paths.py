"""The hot path: for each place and size of access, a function that does exactly that access.

Everything that can be decided beforehand is: which registers, which bits, which policies and which hooks. What is left
for the most common register, plain and 32 bits wide, is one list access. A block keeps these functions by
``offset << 4 | size`` and drops them all when hooks, placements or instruments change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from vfio_user.errors import InvalidAccess
from vfio_user.pci.registers.fields import Field
from vfio_user.pci.registers.hooks import Hook, HookKind
from vfio_user.pci.registers.pieces import Gap, Piece, RegionPiece, cut, refusal, selected, selectors_of
from vfio_user.pci.registers.views import Alias
from vfio_user.regions import Region, aligned_accesses

if TYPE_CHECKING:
    from vfio_user.pci.registers.block import RegisterBlock

__all__ = ["BoundHook", "Reader", "Writer", "make_reader", "make_writer"]

Reader = Callable[[], int]
Writer = Callable[[int], None]
Action = Callable[[int, int], Any]


class BoundHook(NamedTuple):
    """A hook and the object its handler belongs to.

    Attributes:
        hook: as declared.
        field: the field it is about, None for the whole register.
        function: the bound method.
        arguments: how many it takes.
        indexes: those of the register files on the way to its register.
    """

    hook: Hook
    field: Field | None
    function: Callable[..., Any]
    arguments: int
    indexes: tuple[int, ...]


def make_reader(root: RegisterBlock, offset: int, size: int) -> Reader:
    """Makes the function that reads ``[offset, offset + size)`` of a block."""
    return _by_bank(root, offset, size, lambda: _make_static_reader(root, offset, size))


def make_writer(root: RegisterBlock, offset: int, size: int) -> Writer:
    """Makes the function that writes ``[offset, offset + size)`` of a block."""
    return _by_bank(root, offset, size, lambda: _make_static_writer(root, offset, size))


def _by_bank(root: RegisterBlock, offset: int, size: int, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """``make()`` once, or, where banks decide, once for each combination of them that is used."""
    selectors = selectors_of(root, offset, size)
    if not selectors:
        return make()
    known = [block.layout.banks(selector.name) for block, selector in selectors]
    made: dict[tuple[int | None, ...], Callable[..., Any]] = {}

    def access(*value: int) -> Any:
        banks = []
        for (block, selector), numbers in zip(selectors, known, strict=True):
            number = selected(block, selector)
            banks.append(number if number in numbers else None)  # all unknown banks are the same: nobody answers
        key = tuple(banks)
        function = made.get(key)
        if function is None:
            function = made[key] = make()
        return function(*value)

    return access


# -- an access of several pieces -----------------------------------------------------------------------------------


def _make_static_reader(root: RegisterBlock, offset: int, size: int) -> Reader:
    pieces = cut(root, offset, size, writing=False)
    error = refusal(pieces, offset, size, "read")
    if error is not None:
        return partial(_refuse, error)
    readers = [(_piece_reader(root, offset, piece), 8 * piece.at) for piece in pieces]
    if len(readers) == 1:
        return readers[0][0]

    def read() -> int:
        value = 0
        for reader, shift in readers:
            value |= reader() << shift
        return value

    return read


def _make_static_writer(root: RegisterBlock, offset: int, size: int) -> Writer:
    pieces = cut(root, offset, size, writing=True)
    error = refusal(pieces, offset, size, "write")
    if error is not None:
        return partial(_refuse, error)
    writers = [(_piece_writer(root, offset, piece), 8 * piece.at, (1 << 8 * piece.size) - 1) for piece in pieces]
    if len(writers) == 1:
        return writers[0][0]

    def write(value: int) -> None:
        for writer, shift, mask in writers:
            writer(value >> shift & mask)

    return write


def _refuse(text: str, *_value: int) -> Any:
    raise InvalidAccess(text)


def _piece_reader(root: RegisterBlock, offset: int, piece: Piece | RegionPiece | Gap) -> Reader:
    if isinstance(piece, Gap):
        return partial(root.unmodelled.read, offset + piece.at, piece.size)
    if isinstance(piece, RegionPiece):
        return _region_reader(piece.region, piece.offset, piece.size)
    reader = _register_reader(piece)
    if piece.block.byteorder == "big" and piece.size > 1:
        size, shift, mask = piece.size, piece.shift, piece.lanes >> piece.shift
        return lambda: _swapped(reader() >> shift & mask, size)
    if piece.is_whole:
        return reader
    shift, mask = piece.shift, piece.lanes >> piece.shift
    return lambda: reader() >> shift & mask


def _piece_writer(root: RegisterBlock, offset: int, piece: Piece | RegionPiece | Gap) -> Writer:
    if isinstance(piece, Gap):
        return partial(root.unmodelled.write, offset + piece.at, piece.size)
    if isinstance(piece, RegionPiece):
        return _region_writer(piece.region, piece.offset, piece.size)
    writer = _register_writer(piece)
    shift, size = piece.shift, piece.size
    if piece.block.byteorder == "big" and size > 1:
        return lambda value: writer(_swapped(value, size) << shift)
    return (lambda value: writer(value << shift)) if shift else writer


def _swapped(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(size, "big"), "little")


def _region_reader(region: Region, offset: int, size: int) -> Reader:
    accesses = [(0, size, offset)] if size in (1, 2, 4, 8) else _cut_up(offset, size)
    if len(accesses) == 1:
        return partial(region.read, offset, size)
    return lambda: sum(region.read(at, count) << shift for shift, count, at in accesses)


def _region_writer(region: Region, offset: int, size: int) -> Writer:
    if size in (1, 2, 4, 8):
        return partial(region.write, offset, size)

    def write(value: int) -> None:
        for shift, count, at in _cut_up(offset, size):
            region.write(at, count, value >> shift & (1 << 8 * count) - 1)

    return write


def _cut_up(offset: int, size: int) -> list[tuple[int, int, int]]:
    return [(8 * (at - offset), count, at) for at, count in aligned_accesses(offset, size)]


# -- an access to one register ---------------------------------------------------------------------------------------


def _register_reader(piece: Piece) -> Reader:
    """``read() -> value of the whole register``; only the effects on the piece's own bits happen."""
    values, slot, combined, lanes = piece.block._values, piece.slot, piece.register.combined, piece.lanes
    before = list(_actions(piece, HookKind.ON_READ))
    after = list(_actions(piece, HookKind.AFTER_READ))
    shown = ~combined.hidden
    clears, sets = combined.clears_on_read & lanes, combined.sets_on_read & lanes
    if not before and not after:
        if not clears and not sets:
            if shown == -1:
                return lambda: values[slot]
            return lambda: values[slot] & shown

        def read_with_effect() -> int:
            stored = values[slot]
            values[slot] = stored & ~clears | sets
            return stored & shown

        return read_with_effect

    def read() -> int:
        given = given_mask = 0
        for bound, action in before:
            mask, shift = _bits(piece, bound)
            answer = action((values[slot] & mask) >> shift, 0)
            if answer is not None:
                if not 0 <= answer <= mask >> shift:
                    raise ValueError(f"{_where(piece, bound)} gave {answer:#x}, which does not fit {mask >> shift:#x}")
                given = given & ~mask | int(answer) << shift
                given_mask |= mask
        stored = values[slot]  # again: a hook may have stored
        value = stored & shown & ~given_mask | given
        if clears or sets:
            values[slot] = stored & ~clears | sets
        for bound, action in after:
            mask, shift = _bits(piece, bound)
            action((value & mask) >> shift, 0)
        return value

    return read


def _register_writer(piece: Piece) -> Writer:
    """``write(value)``, the value in its place in the register; bits outside the piece are ignored."""
    values, slot, register, lanes = piece.block._values, piece.slot, piece.register, piece.lanes
    apply = register.combined.writer(lanes)
    kept = ~register.combined.pulses
    before = list(_actions(piece, HookKind.BEFORE_WRITE))
    after = list(_actions(piece, HookKind.ON_WRITE))
    changes = list(_actions(piece, HookKind.ON_CHANGE))
    plain = register.combined.is_plain and piece.is_whole
    if not before and not changes:
        if not after:
            return _store(values, slot) if plain else _store_by(apply, values, slot, kept)
        bound, action = after[0]
        if piece.is_whole and len(after) == 1 and bound.field is None:

            def store_and_tell(value: int) -> None:
                old = values[slot]
                values[slot] = value
                action(value, old)

            def write_and_tell(value: int) -> None:
                old = values[slot]
                new = apply(old, value)
                values[slot] = new & kept
                action(new, old)

            return store_and_tell if plain else write_and_tell

    def write(value: int) -> None:
        old = values[slot]
        value = old & ~lanes | value & lanes
        for bound, action in before:
            mask, shift = _bits(piece, bound)
            answer = action((value & mask) >> shift, (old & mask) >> shift)
            if answer is not None:
                if not 0 <= answer <= mask >> shift:
                    raise ValueError(f"{_where(piece, bound)} gave {answer:#x}, which does not fit {mask >> shift:#x}")
                value = value & ~mask | int(answer) << shift
        old = values[slot]  # again: a hook may have stored
        new = apply(old, value)
        values[slot] = new & kept
        for bound, action in after:
            mask, shift = _bits(piece, bound)
            action((new & mask) >> shift, (old & mask) >> shift)
        for bound, action in changes:
            mask, shift = _bits(piece, bound)
            if (new ^ old) & mask:
                action((new & mask) >> shift, (old & mask) >> shift)

    return write


def _store(values: list[int], slot: int) -> Writer:
    def write(value: int) -> None:
        values[slot] = value

    return write


def _store_by(apply: Callable[[int, int], int], values: list[int], slot: int, kept: int) -> Writer:
    def write(value: int) -> None:
        values[slot] = apply(values[slot], value) & kept

    return write


def _bits(piece: Piece, bound: BoundHook) -> tuple[int, int]:
    return (piece.register.mask, 0) if bound.field is None else (bound.field.mask, bound.field.lsb)


def _where(piece: Piece, bound: BoundHook) -> str:
    return f"{piece.name}: @{bound.hook.kind.value} handler {bound.hook.name} ({bound.hook.location})"


#: What a write through an alias, or a read, means to the register it shows. The other kinds see the raw access.
_SHARED = (HookKind.ON_WRITE, HookKind.ON_CHANGE, HookKind.AFTER_READ)


def _actions(piece: Piece, kind: HookKind) -> Iterator[tuple[BoundHook, Action]]:
    """The hooks of a kind on a register, each as ``action(new, old)``; of fields, those the piece touches."""
    register = piece.register
    names = [register.name]
    if isinstance(register, Alias) and kind in _SHARED:
        names.append(register.target.name)
    for name in names:
        for bound in piece.block.bound_hooks(name):
            if bound.hook.kind is kind and (bound.field is None or bound.field.mask & piece.lanes):
                yield bound, _action(bound, (piece.index,) if register.count is not None else ())


def _action(bound: BoundHook, index: tuple[int, ...]) -> Action:
    function = bound.function
    indexes = bound.indexes + index
    enumerated = bound.field is not None and bound.field.enumeration is not None
    if not bound.arguments:
        return lambda _new, _old: function()
    if indexes:
        function = partial(function, *indexes)
    wanted = bound.arguments - len(indexes)
    if enumerated and wanted:
        assert bound.field is not None
        function = partial(_with_members, function, bound.field)
    if wanted == 0:
        return lambda _new, _old: function()
    if wanted == 1:
        return lambda new, _old: function(new)
    return function


def _with_members(function: Callable[..., Any], field: Field, *numbers: int) -> Any:
    return function(*(field.extract(number << field.lsb) for number in numbers))

"""Register blocks: a class that describes registers, and whose instances are regions.

Read ``docs/registers.md`` for the language. Inside: the class is compiled into a ``Layout`` when it is made; an
instance has a flat list of values, and two tables of functions, made on demand, one for each place and size a client
reads or writes (``paths``). A block inside a block is an instance like any other, with its own values; the outer one's
functions go straight to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from vfio_user.errors import InvalidAccess, RegisterDefinitionError
from vfio_user.pci.registers._text import nearest
from vfio_user.pci.registers.declaration import MERGE, SPLIT, AccessRule, Declaration
from vfio_user.pci.registers.hooks import Hook, arguments_wanted, check_hooks, class_hooks, find_target
from vfio_user.pci.registers.layout import Layout
from vfio_user.pci.registers.paths import BoundHook, Reader, Writer, make_reader, make_writer
from vfio_user.pci.registers.pieces import Piece, cut
from vfio_user.pci.registers.register import Register
from vfio_user.pci.registers.reset import ResetKind
from vfio_user.pci.registers.state import load_block, save_block
from vfio_user.pci.registers.unmodelled import IGNORE, Unmodelled, UnmodelledAccesses
from vfio_user.pci.registers.values import BlockArray
from vfio_user.pci.registers.views import RegisterFile
from vfio_user.regions import Region

if TYPE_CHECKING:
    from vfio_user.pci.registers.description import RegisterDescription
    from vfio_user.pci.registers.watchdog import Spin, SpinWatch

__all__ = ["Placement", "RegisterBlock"]


#: Functions a block keeps of each direction, about 200 bytes apiece: which places are accessed is the client's choice,
#: and must not fill our memory. A driver of the largest register maps uses some thousands.
_TABLE_CAPACITY = 16384


class Placement(NamedTuple):
    """A region placed in a block at run time."""

    offset: int
    name: str
    region: Region
    block: RegisterBlock | None

    def __str__(self) -> str:
        return f"{self.name} [{self.offset:#x}, {self.offset + self.region.size:#x})"


class _Blocks(type):
    """Makes blocks, and tells them when their ``__init__`` is over."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        block = super().__call__(*args, **kwargs)
        block._complete = True
        return block


class RegisterBlock(Region, metaclass=_Blocks):
    """Subclass it and declare registers; see the module docstring and ``docs/registers.md``.

    Args:
        size: bytes of the region; the block's own size when not given. What lies beyond the registers is unmodelled.

    Attributes:
        layout: the compiled declarations.
        byteorder: of the registers' bytes. The values of fields and hooks are numbers, the same for both.
        access_sizes: bytes an access to a register may have; None allows 1, 2, 4 and 8.
        partial_access: an access to some bytes of a register: MERGE or REJECT.
        spanning_access: an access to several registers: SPLIT or REJECT.
        unaligned_access: an access that is not aligned to its own size: SPLIT or REJECT.
        unmodelled_access: what becomes of accesses that meet no register. Of nested blocks, the outermost decides.
        state_version: raise it when the meaning of saved values changes; see ``upgrade_state``.
        unmodelled: those accesses, remembered.
        path: the name of a block inside another, with a full stop at its end: ``channels[2].``.
        placements: the regions that were placed in this one.

    Raises:
        ValueError: ``size`` is less than the registers need.

    Threading: session thread.
    """

    layout: ClassVar[Layout]
    byteorder: ClassVar[Literal["little", "big"]] = "little"
    access_sizes: ClassVar[frozenset[int] | set[int] | tuple[int, ...] | None] = None
    partial_access: ClassVar[AccessRule] = MERGE
    spanning_access: ClassVar[AccessRule] = SPLIT
    unaligned_access: ClassVar[AccessRule] = SPLIT
    unmodelled_access: ClassVar[Unmodelled] = IGNORE
    state_version: ClassVar[int] = 1
    path: str = ""
    unmodelled: UnmodelledAccesses
    placements: list[Placement]
    _complete: bool = False
    _hooks_of_class: ClassVar[tuple[Hook, ...]] = ()
    _simple: ClassVar[dict[str, Register[Any]]] = {}
    _declared_size: ClassVar[int | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "size" in vars(cls):
            declared = vars(cls)["size"]
            if isinstance(declared, Declaration):
                raise declared.error(
                    "'size' is an attribute every RegisterBlock has: write size_ = ..., "
                    "the register is still called 'size'"
                )
            cls._declared_size = declared
        _check_rules(cls)
        cls.layout = Layout(cls, RegisterBlock, cls._declared_size)
        cls.size = cls.layout.size
        cls._simple = {register.attribute: register for register in cls.layout.registers.values() if register.is_simple}
        cls._hooks_of_class = class_hooks(cls)
        check_hooks(cls._hooks_of_class, cls, cls)

    def __init__(self, *, size: int | None = None) -> None:
        layout = type(self).layout
        if size is not None:
            if size < layout.size:
                raise ValueError(f"{type(self).__name__} needs {layout.size:#x} bytes, size={size:#x}")
            self.size = size
        self._watch: SpinWatch | None = None
        self.unmodelled = UnmodelledAccesses(type(self).__name__, self.unmodelled_access)
        self.placements = []
        self._values: list[int] = list(layout.reset_plan(ResetKind.POWER_ON)[1])
        self._readers: dict[int, Reader] = _Table(self, RegisterBlock._make_reader)
        self._writers: dict[int, Writer] = _Table(self, make_writer)
        self._hooks: dict[str, list[BoundHook]] = {}
        self._outer: RegisterBlock | None = None
        self._files: dict[str, RegisterBlock | BlockArray[RegisterBlock]] = {}
        for name, file in layout.files.items():
            blocks = [file.block() for _ in range(file.elements)]
            for index, block in enumerate(blocks):
                block._outer = self
                block._set_path(f"{name}." if file.count is None else f"{name}[{index}].")
            self._files[name] = blocks[0] if file.count is None else BlockArray(blocks)
        if self._hooks_of_class:
            self.bind(self._hooks_of_class, self)

    # -- the client's side ---------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Reads as a client does: policies, hooks and rules apply. See ``Region.read``."""
        return self._readers[offset << 4 | size]()

    def write(self, offset: int, size: int, value: int) -> None:
        """Writes as a client does: policies, hooks and rules apply. See ``Region.write``."""
        self._writers[offset << 4 | size](value)

    def _make_reader(self, offset: int, size: int) -> Reader:
        reader = make_reader(self, offset, size)
        return reader if self._watch is None else self._watch.wrap(offset, size, reader)

    @property
    def stored_values(self) -> list[int]:
        """What the registers hold, each at the ``slot`` of its entry in ``layout.registers``.

        For devices that go through their registers a million times a second, as a processor does. It is the device's
        side, and nothing checks what is stored: values have to fit. The list stays the same for the life of the block.
        """
        return self._values

    # -- hooks -----------------------------------------------------------------------------------------------------

    def bind(self, hooks: Iterable[Hook], owner: object) -> None:
        """Adds hooks, their handlers being methods of ``owner``; they run after those that are there.

        Raises:
            RegisterDefinitionError: an unknown name, or a handler with the wrong number of arguments.
        """
        for hook in hooks:
            target = find_target(type(self), hook)
            function = getattr(owner, hook.name)
            arguments = arguments_wanted(hook, function, target, bound=True)
            for block, indexes in self._blocks_at(target.files):
                bound = BoundHook(hook, target.field, function, arguments, indexes)
                block._hooks.setdefault(target.register.name, []).append(bound)
                block._forget()
        self._forget()

    def bound_hooks(self, name: str) -> list[BoundHook]:
        """The hooks of one register, in the order they run."""
        return self._hooks.get(name, [])

    def _blocks_at(self, files: tuple[RegisterFile[Any], ...]) -> list[tuple[RegisterBlock, tuple[int, ...]]]:
        found: list[tuple[RegisterBlock, tuple[int, ...]]] = [(self, ())]
        for file in files:
            found = [
                (block.element(file, index), indexes if file.count is None else (*indexes, index))
                for block, indexes in found
                for index in range(file.elements)
            ]
        return found

    def element(self, file: RegisterFile[Any], index: int) -> RegisterBlock:
        """One block of a register file."""
        inner = self._files[file.name]
        return inner if isinstance(inner, RegisterBlock) else inner[index]

    # -- composition -----------------------------------------------------------------------------------------------

    def place(self, offset: int, region: Region, name: str) -> None:
        """Puts a region, or another block, at an offset of this one.

        Raises:
            RegisterDefinitionError: the bytes are taken, lie outside this block, or the block stands elsewhere already.
        """
        new = Placement(offset, name, region, region if isinstance(region, RegisterBlock) else None)
        owner = f"{type(self).__name__}"
        if offset < 0 or offset + region.size > self.size:
            raise RegisterDefinitionError(f"{new} does not fit {owner} of {self.size:#x} bytes")
        for placement in self.placements:
            if offset < placement.offset + placement.region.size and placement.offset < offset + region.size:
                raise RegisterDefinitionError(f"{owner}: {new} overlaps {placement}")
        for item, _ in type(self).layout.find(offset, region.size):
            raise RegisterDefinitionError(f"{owner}: {new} overlaps {item}")
        if new.block is not None:
            if new.block._outer is not None:
                raise RegisterDefinitionError(f"{new} is part of another block already ({new.block.path.rstrip('.')})")
            new.block._outer = self
            new.block._set_path(f"{self.path}{name}.")
        self.placements.append(new)
        self._forget()

    def _set_path(self, path: str) -> None:
        self.path = path
        for name, inner in self._files.items():
            if isinstance(inner, RegisterBlock):
                inner._set_path(f"{path}{name}.")
            else:
                for index, block in enumerate(inner):
                    block._set_path(f"{path}{name}[{index}].")
        for placement in self.placements:
            if placement.block is not None:
                placement.block._set_path(f"{path}{placement.name}.")

    def _forget(self) -> None:
        """Drops the functions of the hot path, here and in the blocks around this one."""
        block: RegisterBlock | None = self
        while block is not None:
            block._readers.clear()
            block._writers.clear()
            block = block._outer

    # -- reset -----------------------------------------------------------------------------------------------------

    def reset(self, kind: ResetKind = ResetKind.DEVICE) -> None:
        """Gives every register its reset value for that kind of reset; sticky bits stay. No hook runs."""
        kept, values = type(self).layout.reset_plan(kind)
        if kept is None:
            self._values[:] = values
        else:
            self._values[:] = [
                stored & keep | value for stored, keep, value in zip(self._values, kept, values, strict=True)
            ]
        for block in self.inner_blocks():
            block.reset(kind)

    def inner_blocks(self) -> Iterable[RegisterBlock]:
        """The blocks directly inside this one: of register files, then placed ones."""
        for inner in self._files.values():
            yield from [inner] if isinstance(inner, RegisterBlock) else inner
        for placement in self.placements:
            if placement.block is not None:
                yield placement.block

    # -- watching and saving ---------------------------------------------------------------------------------------

    def watch_spins(
        self,
        *,
        reads: int = 1000,
        within: float = 1.0,
        report: Callable[[Spin], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> SpinWatch:
        """Watches for a client that polls a register in vain; see ``SpinWatch`` for the arguments.

        Returns:
            The watch; ``spins`` of it are the spins at any moment.
        """
        from vfio_user.pci.registers.watchdog import SpinWatch

        self._watch = SpinWatch(self._show, reads=reads, within=within, report=report, clock=clock)
        self._forget()
        return self._watch

    def stop_watching(self) -> None:
        """Ends ``watch_spins``."""
        self._watch = None
        self._forget()

    def _show(self, offset: int, size: int, value: int) -> tuple[str, str]:
        pieces = [piece for piece in cut(self, offset, size, writing=False) if isinstance(piece, Piece)]
        names = " and ".join(piece.name for piece in pieces) or "no register"
        whole = len(pieces) == 1 and pieces[0].is_whole and pieces[0].block.byteorder == "little"
        return names, pieces[0].register.format(value) if whole else f"{value:#x}"

    def save_state(self) -> dict[str, Any]:
        """What all registers hold, and those of the blocks inside: plain data, fit for JSON."""
        return save_block(self)

    def load_state(self, state: dict[str, Any]) -> None:
        """Puts a saved state back. No hook runs.

        Raises:
            InvalidAccess: it is not a state of this block: another class, an unknown or missing name, a value that does
                not fit, a version ``upgrade_state`` refuses. Nothing was changed.
        """
        load_block(self, state)

    def upgrade_state(self, version: int, registers: dict[str, Any]) -> dict[str, Any]:
        """Turns the registers of a state with another ``state_version`` into those of this one. Override it.

        Args:
            version: of the saved state.
            registers: its values by name; a copy.

        Raises:
            InvalidAccess: that version cannot be read; always, unless overridden.
        """
        del registers
        raise InvalidAccess(
            f"saved state of {type(self).__name__}: version {version}, this class reads {self.state_version}; "
            "override upgrade_state to read older ones"
        )

    @classmethod
    def describe(cls) -> list[RegisterDescription]:
        """Every register of this class and of the blocks in it, by offset, with what it is."""
        from vfio_user.pci.registers.description import walk

        return list(walk(cls))

    if not TYPE_CHECKING:  # a type checker that sees it takes any attribute for a good one

        def __setattr__(self, name: str, value: Any) -> None:
            register = self._simple.get(name)
            if register is not None and 0 <= value <= register.mask:
                # What the descriptor would do, at a third of the cost: this is the line devices write most.
                self._values[register.slot] = value if type(value) is int else int(value)
                return
            if self._complete and name not in self.__dict__ and not hasattr(type(self), name):
                # A misspelt register must not become a Python attribute that nobody reads.
                hint = nearest(name, type(self).layout.declarations, alike=0.8)
                if hint.startswith("did you mean"):
                    kind = type(self).__name__
                    raise AttributeError(
                        f"{kind} has no register {name!r}: {hint} (A new attribute starts in __init__.)"
                    )
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.size:#x} bytes, {len(type(self).layout.declarations)} declarations>"


class _Table(dict[int, Any]):
    """Functions by ``offset << 4 | size``, made when they are first wanted."""

    __slots__ = ("_block", "_make")

    def __init__(self, block: RegisterBlock, make: Any) -> None:
        self._block = block
        self._make = make

    def __missing__(self, key: int) -> Any:
        offset, size = key >> 4, key & 15
        if len(self) >= _TABLE_CAPACITY:
            self.clear()  # only a client that sweeps gets here, and it does not come back for what it swept
        function = self[key] = self._make(self._block, offset, size)
        return function


def _check_rules(cls: type[RegisterBlock]) -> None:
    for name, allowed in (
        ("partial_access", (MERGE, AccessRule.REJECT)),
        ("spanning_access", (SPLIT, AccessRule.REJECT)),
        ("unaligned_access", (SPLIT, AccessRule.REJECT)),
    ):
        rule = getattr(cls, name)
        if rule not in allowed:
            choices = " or ".join(choice.name for choice in allowed)
            raise RegisterDefinitionError(f"{cls.__name__}.{name} = {rule}: it can be {choices}")


RegisterBlock.layout = Layout(RegisterBlock, RegisterBlock, None)

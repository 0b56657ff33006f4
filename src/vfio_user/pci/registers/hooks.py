"""Hooks: code that runs when a client reads or writes a register or a field.

Two ways to declare them. In the body of a block::

    class Timer(RegisterBlock):
        control = Register(0x0, fields=[Field("enable", 0)])

        @on_change("control.enable")
        def start_or_stop(self, new: int) -> None: ...

or elsewhere, collected in a ``Hooks`` that is checked against the block class and bound to its owner later
(``RegisterBlock.bind``), which is what a BAR declaration of a device class does.

A hook names its method, not the function: an override in a subclass takes its place.

====================  ============================================  ====================================================
kind                  when                                          arguments; result
====================  ============================================  ====================================================
``before_write``      a client writes; nothing has happened yet     (written, old); another value to write, or None.
                                                                    Raise DeviceError to refuse the access
``on_write``          the value is stored, by its access policy     (new, old)
``on_change``         as ``on_write``, if that changed the value    (new, old)
``on_read``           a client reads; nothing has happened yet      (stored); the value to give the reader, or None
``after_read``        the value is on its way, read effects done    (value read)
====================  ============================================  ====================================================

A handler takes as many of the arguments as it likes, from the left; for arrays and register files their indexes come
first, outermost first. For a field, the values are the field's, not shifted; a write that does not carry any byte of
the field is no write to it.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from vfio_user.errors import RegisterDefinitionError
from vfio_user.pci.registers._text import Location, here, nearest, public_name
from vfio_user.pci.registers.fields import Field
from vfio_user.pci.registers.register import Register
from vfio_user.pci.registers.views import Alias, RegisterFile

if TYPE_CHECKING:
    from vfio_user.pci.registers.block import RegisterBlock

__all__ = [
    "Hook",
    "HookKind",
    "Hooks",
    "Target",
    "after_read",
    "arguments_wanted",
    "before_write",
    "class_hooks",
    "find_target",
    "on_change",
    "on_read",
    "on_write",
]

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "_register_hooks"


class HookKind(enum.Enum):
    """When a hook runs; the value is the decorator's name."""

    BEFORE_WRITE = "before_write"
    ON_WRITE = "on_write"
    ON_CHANGE = "on_change"
    ON_READ = "on_read"
    AFTER_READ = "after_read"

    @property
    def values(self) -> tuple[str, ...]:
        """The values a handler can take, after the indexes."""
        if self is HookKind.ON_READ:
            return ("stored",)
        return ("value",) if self is HookKind.AFTER_READ else ("new", "old")


@dataclass(frozen=True, slots=True)
class Hook:
    """One declared hook.

    Attributes:
        kind: when it runs.
        path: the register or field, as declared: ``status``, ``status.raise_irq``, ``channels.control.enable``.
        name: the method's name.
        function: the function the decorator was applied to.
        location: the decorator's line.
    """

    kind: HookKind
    path: str
    name: str
    function: Callable[..., Any]
    location: Location

    def error(self, what: str) -> RegisterDefinitionError:
        """An error about this hook, with the place it stands at."""
        return RegisterDefinitionError(f"@{self.kind.value}({self.path!r}) on {self.name} ({self.location}): {what}")


@dataclass(frozen=True, slots=True)
class Target:
    """What a hook's path leads to."""

    files: tuple[RegisterFile[Any], ...]
    register: Register[Any]
    field: Field | None

    @property
    def indexes(self) -> tuple[str, ...]:
        """The arrays on the way, whose indexes a handler takes first."""
        return tuple(part.name for part in (*self.files, self.register) if part.count is not None)


def find_target(block_class: type[RegisterBlock], hook: Hook) -> Target:
    """Follows a hook's path through a block class.

    Raises:
        RegisterDefinitionError: a part of it is unknown; the text offers the nearest name.
    """
    files: list[RegisterFile[Any]] = []
    parts = hook.path.split(".")
    for position, part in enumerate(parts):
        layout = block_class.layout
        found = layout.declarations.get(public_name(part))
        if found is None:
            raise hook.error(f"{block_class.__name__} has no register {part!r}: {nearest(part, layout.declarations)}")
        if isinstance(found, Register):
            rest = parts[position + 1 :]
            if not rest:
                return Target(tuple(files), found, None)
            field = found.fields_by_name.get(rest[0])
            if field is None or len(rest) > 1:
                raise hook.error(
                    f"register {found.name!r} ({found.location}) has no field {'.'.join(rest)!r}: "
                    f"{nearest(rest[0], found.fields_by_name)}"
                )
            return Target(tuple(files), found, field)
        assert isinstance(found, RegisterFile)
        files.append(found)
        block_class = found.block
    raise hook.error(
        f"{hook.path!r} is a register file: name a register in it, {nearest('', block_class.layout.declarations)}"
    )


class _Takes(NamedTuple):
    """The arguments a function takes.

    Attributes:
        least: positional ones it must have.
        most: positional ones it has names for.
        unlimited: it takes any number more.
        keyword: one it must have by name; empty for none.
    """

    least: int
    most: int
    unlimited: bool
    keyword: str


#: What functions take. Each device binds the same ones again, and looking at one takes longer than all else about it.
_known: WeakKeyDictionary[FunctionType, _Takes | None] = WeakKeyDictionary()


def _takes(function: Callable[..., Any]) -> _Takes | None:
    """The arguments a callable takes; None for a builtin that does not tell."""
    if isinstance(function, MethodType) and isinstance(function.__func__, FunctionType):
        found = _takes(function.__func__)
        return found and found._replace(least=max(found.least - 1, 0), most=max(found.most - 1, 0))
    if not isinstance(function, FunctionType):
        return _signature(function)
    if function not in _known:
        _known[function] = _signature(function)
    return _known[function]


def _signature(function: Callable[..., Any]) -> _Takes | None:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    least, most, unlimited, keyword = 0, 0, False, ""
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            least += int(parameter.default is parameter.empty)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            unlimited = True
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            keyword = keyword or parameter.name
    return _Takes(least, most, unlimited, keyword)


def arguments_wanted(hook: Hook, function: Callable[..., Any], target: Target, *, bound: bool) -> int:
    """How many arguments a handler takes.

    Args:
        hook: for its kind, and for the message.
        function: the handler as it is now; an override may take others than the decorated function.
        target: what the path leads to.
        bound: ``function`` has its ``self`` already.

    Raises:
        RegisterDefinitionError: it takes a number of arguments nobody gives it.
    """
    signature = _takes(function)
    if signature is None:
        return len(target.indexes) + 1
    least, most, unlimited, keyword = signature
    if keyword:
        raise hook.error(f"its handler needs the keyword argument {keyword!r}, which nobody gives it")
    if not bound:
        least, most = max(least - 1, 0), max(most - 1, 0)
    indexes, values = target.indexes, hook.kind.values
    offered = [0, *range(len(indexes), len(indexes) + len(values) + 1)]
    fitting: list[int] = [count for count in offered if least <= count and (unlimited or count <= most)]
    if not fitting:
        names = [f"{name} index" for name in indexes] + list(values)
        forms = " or ".join(f"({', '.join(names[:count])})" for count in dict.fromkeys(offered))
        takes = str(least) if least == most else f"{least} to {most}"
        raise hook.error(f"its handler takes {takes} arguments after self; write {forms}")
    return fitting[-1]


class Hooks:
    """Hooks declared away from their block: an ordered collection with a decorator per kind.

    Ownership: belongs to a class body; blocks bind to it, none changes it.
    """

    def __init__(self) -> None:
        self._hooks: list[Hook] = []

    def __iter__(self) -> Iterator[Hook]:
        return iter(self._hooks)

    def __len__(self) -> int:
        return len(self._hooks)

    def add(self, kind: HookKind, path: str, function: Callable[..., Any], location: Location) -> None:
        """Adds one hook; the decorators below are the usual way."""
        self._hooks.append(Hook(kind, path, getattr(function, "__name__", repr(function)), function, location))

    def _decorator(self, kind: HookKind, path: str) -> Callable[[F], F]:
        location = here(2)

        def decorate(function: F) -> F:
            self.add(kind, path, function, location)
            return function

        return decorate

    def before_write(self, path: str) -> Callable[[F], F]:
        """A client writes; nothing has happened yet."""
        return self._decorator(HookKind.BEFORE_WRITE, path)

    def on_write(self, path: str) -> Callable[[F], F]:
        """A client has written."""
        return self._decorator(HookKind.ON_WRITE, path)

    def on_change(self, path: str) -> Callable[[F], F]:
        """A client's write has changed the value."""
        return self._decorator(HookKind.ON_CHANGE, path)

    def on_read(self, path: str) -> Callable[[F], F]:
        """A client reads; nothing has happened yet."""
        return self._decorator(HookKind.ON_READ, path)

    def after_read(self, path: str) -> Callable[[F], F]:
        """A client has read."""
        return self._decorator(HookKind.AFTER_READ, path)

    def check(self, block_class: type[RegisterBlock], owner_class: type | None = None) -> None:
        """Checks every hook against the block it will be bound to.

        Args:
            block_class: the block.
            owner_class: the class whose instances will own the handlers; its overrides are checked in their place.

        Raises:
            RegisterDefinitionError: an unknown name, or a handler with the wrong number of arguments.
        """
        check_hooks(self, block_class, owner_class)


def check_hooks(hooks: Iterable[Hook], block_class: type[RegisterBlock], owner_class: type | None = None) -> None:
    """See ``Hooks.check``."""
    for hook in hooks:
        target = find_target(block_class, hook)
        if isinstance(target.register, Alias) and hook.kind in (HookKind.ON_CHANGE, HookKind.AFTER_READ):
            raise hook.error(
                f"{target.register.name!r} is an alias ({target.register.location}): hook the register it shows, "
                f"{target.register.target.name!r}"
            )
        function = inspect.getattr_static(owner_class, hook.name, hook.function) if owner_class else hook.function
        if isinstance(function, (staticmethod, classmethod)):
            raise hook.error("its handler is a static or class method: a hook is a method of an instance")
        if callable(function):
            arguments_wanted(hook, function, target, bound=False)


def _marker(kind: HookKind, path: str) -> Callable[[F], F]:
    location = here(2)

    def decorate(function: F) -> F:
        if not hasattr(function, _MARK):
            setattr(function, _MARK, [])
        # Decorators apply from the bottom up; hooks run in the order they are read.
        getattr(function, _MARK).insert(0, Hook(kind, path, function.__name__, function, location))
        return function

    return decorate


def before_write(path: str) -> Callable[[F], F]:
    """In a block's body: a client writes; nothing has happened yet."""
    return _marker(HookKind.BEFORE_WRITE, path)


def on_write(path: str) -> Callable[[F], F]:
    """In a block's body: a client has written."""
    return _marker(HookKind.ON_WRITE, path)


def on_change(path: str) -> Callable[[F], F]:
    """In a block's body: a client's write has changed the value."""
    return _marker(HookKind.ON_CHANGE, path)


def on_read(path: str) -> Callable[[F], F]:
    """In a block's body: a client reads; nothing has happened yet."""
    return _marker(HookKind.ON_READ, path)


def after_read(path: str) -> Callable[[F], F]:
    """In a block's body: a client has read."""
    return _marker(HookKind.AFTER_READ, path)


def class_hooks(block_class: type) -> tuple[Hook, ...]:
    """The hooks in a block class's body and in its bases', bases first."""
    found: dict[tuple[HookKind, str, str], Hook] = {}
    for base in reversed(block_class.__mro__):
        for member in vars(base).values():
            for hook in getattr(member, _MARK, ()) if callable(member) else ():
                found[hook.kind, hook.path, hook.name] = hook
    return tuple(found.values())

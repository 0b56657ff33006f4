"""A device's options: the parameters of its constructor, given as text and converted by their annotations.

``class Edu(PciDevice): def __init__(self, *, dma_mask: int = 0x0FFF_FFFF)`` has one option, ``dma_mask``, and
``make_device(Edu, {"dma_mask": "256M"})`` is ``Edu(dma_mask=0x1000_0000)``. Nothing but the constructor and its
docstring describes an option, so there is nothing to keep in step with them.
"""

from __future__ import annotations

import difflib
import enum
import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vfio_user.devices.option_docs import described_arguments
from vfio_user.devices.user_code import describe_failure
from vfio_user.errors import DefinitionError, DeviceOptionError

if TYPE_CHECKING:
    from vfio_user.server.device import Device

__all__ = ["DeviceOption", "convert", "device_options", "make_device"]

_DeviceT = TypeVar("_DeviceT", bound="Device")

_SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TRUTH = {"on": True, "yes": True, "true": True, "1": True, "off": False, "no": False, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class DeviceOption:
    """One option of a device.

    Attributes:
        name: of the parameter.
        type: what a value is converted to.
        required: it has no default.
        default: None also where it is required.
        doc: what the class's docstring says of it, in one line; empty where it says nothing.
    """

    name: str
    type: Any
    required: bool
    default: Any
    doc: str = ""

    @property
    def type_text(self) -> str:
        """What to write as a value, for people: ``integer``, ``on|off``, ``slow|fast``."""
        return _type_text(self.type)

    @property
    def default_text(self) -> str:
        """The default, in the form a value is written; empty where it is required."""
        return "" if self.required else _value_text(self.default)

    def __str__(self) -> str:
        """One line: name, type, default."""
        return f"{self.name} ({self.type_text}, {'required' if self.required else f'default {self.default_text}'})"


def device_options(cls: type[Device]) -> list[DeviceOption]:
    """The options of a device class, in the order of its constructor.

    A constructor that passes ``**options`` on to its base class has the base's options too. Parameters whose type has
    no form as text are not options.

    Raises:
        DefinitionError: a parameter without a default has a type that has no form as text.
    """
    options: dict[str, DeviceOption] = {}
    for base in cls.__mro__:
        constructor = base.__dict__.get("__init__")
        if constructor is None:
            continue
        docs = described_arguments(base)
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                option = _option(cls, parameter, constructor, docs.get(parameter.name, ""))
                if option is not None:
                    options.setdefault(option.name, option)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return list(options.values())


def make_device(cls: type[_DeviceT], settings: Mapping[str, str] | None = None, *, name: str | None = None) -> _DeviceT:
    """Makes a device from options given as text.

    Args:
        cls: the class.
        settings: text by option; see ``convert``.
        name: what to call the device in errors; the class's name when left out.

    Raises:
        DeviceOptionError: there is no such option, a required one is missing, or a value cannot be converted. The text
            lists what there is.
        DefinitionError: the constructor raised; its own exception is the cause, its traceback a note.
    """
    name = name or cls.__name__
    options = {option.name: option for option in device_options(cls)}
    arguments = {}
    for key, text in (settings or {}).items():
        option = options.get(key.replace("-", "_"))
        if option is None:
            near = difflib.get_close_matches(key.replace("-", "_"), options, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise DeviceOptionError(f"{name} has no option {key!r}{hint} {_listed(name, options.values())}")
        try:
            arguments[option.name] = convert(text, option.type)
        except ValueError as exc:
            raise DeviceOptionError(f"{name}: option {option.name} cannot be {text!r}: {exc}") from exc
    missing = [option for option in options.values() if option.required and option.name not in arguments]
    if missing:
        raise DeviceOptionError(f"{name} needs {', '.join(map(str, missing))}: give it as {missing[0].name}=VALUE")
    try:
        return cls(**arguments)
    except Exception as exc:
        raise describe_failure(exc, f"{name} could not be made", DefinitionError) from exc


def convert(text: str, wanted: Any) -> Any:
    """Converts one value.

    Integers may be written with ``0x``, ``0o`` or ``0b`` and end in K, M, G or T (times 1024); booleans are on/off,
    yes/no, true/false or 1/0; members of an Enum go by name, whatever the case, with ``-`` for ``_``; ``none`` is
    None where that is allowed.

    Args:
        text: as it was typed.
        wanted: int, float, bool, str, Path, an Enum, a Literal, or a union of those and None.

    Raises:
        ValueError: it cannot be; the text says what could.
    """
    kinds = _union_members(wanted)
    if len(kinds) > 1:
        if type(None) in kinds and text.lower() == "none":
            return None
        for kind in kinds:
            if kind is not type(None):
                try:
                    return convert(text, kind)
                except ValueError:
                    continue
        raise ValueError(f"it must be {_type_text(wanted)}")
    if typing.get_origin(wanted) is typing.Literal:
        choices = {str(choice): choice for choice in typing.get_args(wanted)}
        return _choose(text, choices)
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        members: dict[str, enum.Enum] = {}
        for member_name, member in wanted.__members__.items():
            members[member_name.lower().replace("_", "-")] = member
        return _choose(text.lower().replace("_", "-"), members)
    if wanted is bool:
        return _choose(text.lower(), _TRUTH, shown="on or off")
    if wanted is int:
        return _integer(text)
    if wanted is float:
        try:
            return float(text)
        except ValueError:
            raise ValueError("it must be a number, as in 0.5") from None
    if wanted is Path:
        return Path(text)
    return text


def _integer(text: str) -> int:
    digits, factor = text, 1
    # 0x1B is a number, 1B is not a size: only K, M, G and T count, and no hexadecimal digit is one of them.
    stem = text.removesuffix("iB") if text[-3:-2].upper() in _SIZES else text
    if stem and stem[-1].upper() in _SIZES:
        digits, factor = stem[:-1], _SIZES[stem[-1].upper()]
    try:
        return int(digits, 0) * factor
    except ValueError:
        raise ValueError("it must be an integer, as in 42, 0x2a or 64K") from None


def _choose(text: str, choices: Mapping[str, Any], shown: str | None = None) -> Any:
    if text in choices:
        return choices[text]
    raise ValueError(f"it must be {shown or 'one of ' + ', '.join(choices)}")


def _option(cls: type, parameter: inspect.Parameter, constructor: Any, doc: str) -> DeviceOption | None:
    required = parameter.default is parameter.empty
    kind = _annotation(parameter, constructor)
    if kind is None:
        kind = str if required else type(parameter.default)
    if not _has_text_form(kind):
        if required:
            raise DefinitionError(
                f"{cls.__name__} needs {parameter.name}, a {_type_text(kind)}, which cannot be given as text: "
                f"give the parameter a default"
            )
        return None
    return DeviceOption(parameter.name, kind, required, None if required else parameter.default, doc)


def _annotation(parameter: inspect.Parameter, constructor: Any) -> Any:
    """The type a parameter is annotated with; None when there is none, or it is imported for type checkers only."""
    found = parameter.annotation
    if isinstance(found, str):
        try:
            # As inspect.signature(eval_str=True) does, which gives up on all of them when one has no meaning here.
            return eval(found, getattr(constructor, "__globals__", {}))  # noqa: S307 - the text is of imported code
        except (NameError, AttributeError, SyntaxError, TypeError):
            return None
    return None if found is parameter.empty else found


def _has_text_form(kind: Any) -> bool:
    members = _union_members(kind)
    if len(members) > 1:
        return all(member is type(None) or _has_text_form(member) for member in members)
    if kind in (int, float, bool, str, Path) or typing.get_origin(kind) is typing.Literal:
        return True
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _union_members(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _type_text(kind: Any) -> str:
    members = _union_members(kind)
    if len(members) > 1:
        return " or ".join("none" if member is type(None) else _type_text(member) for member in members)
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "|".join(name.lower().replace("_", "-") for name in kind.__members__)
    names = {int: "integer", float: "number", bool: "on|off", str: "text", Path: "path"}
    return names.get(kind) or str(getattr(kind, "__name__", kind))


def _value_text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, enum.Enum):
        return value.name.lower().replace("_", "-")
    if isinstance(value, int):
        return _integer_text(value)
    return str(value) or "''"


def _integer_text(value: int) -> str:
    """Small numbers in decimal, whole sizes as sizes, the rest - masks and addresses - in hexadecimal."""
    if abs(value) < 4096:
        return str(value)
    for suffix, factor in reversed(_SIZES.items()):
        if value % factor == 0 and value // factor < 1024:
            return f"{value // factor}{suffix}"
    return hex(value)


def _listed(name: str, options: typing.Iterable[DeviceOption]) -> str:
    lines = [str(option) for option in options]
    return f"Options of {name}: {', '.join(lines)}" if lines else f"{name} has no options at all"

"""Structures in memory that are large and mostly zero: their fields by name, over the bytes themselves.

    class Entry(Structure):
        SIZE = 64
        count = Number(0, 8)
        name = Text(8, 20)


    entry = Entry(count=3, name="disk")
    assert Entry.unpack(entry.pack()).count == 3

Queue entries, which are small and pass by the thousand, are named tuples instead: see ``entries``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, Self, TypeVar, overload

__all__ = ["Number", "Numbers", "Raw", "Structure", "Text"]

T = TypeVar("T")


class _Field(Generic[T]):
    """A field of a structure.

    Attributes:
        offset: bytes from the start of the structure.
        size: bytes.
        name: the attribute it was declared as.
        doc: what it says.
    """

    def __init__(self, offset: int, size: int, doc: str = "") -> None:
        self.offset = offset
        self.size = size
        self.name = ""
        self.doc = doc

    def __set_name__(self, owner: type[Structure], name: str) -> None:
        self.name = name
        if self.offset + self.size > owner.SIZE:
            raise ValueError(
                f"{owner.__name__}.{name} ends at byte {self.offset + self.size}, behind SIZE, which is {owner.SIZE}"
            )
        for other in vars(owner).values():
            if not isinstance(other, _Field) or other is self or not other.name:
                continue
            if other.offset < self.offset + self.size and self.offset < other.offset + other.size:
                raise ValueError(f"{owner.__name__}.{name} overlaps {other.name} at byte {other.offset}")

    @overload
    def __get__(self, instance: None, owner: type[Structure]) -> Self: ...
    @overload
    def __get__(self, instance: Structure, owner: type[Structure]) -> T: ...
    def __get__(self, instance: Structure | None, owner: type[Structure]) -> Self | T:
        if instance is None:
            return self
        return self._unpack(bytes(instance.data[self.offset : self.offset + self.size]))

    def __set__(self, instance: Structure, value: T) -> None:
        packed = self._pack(value)
        if len(packed) > self.size:
            raise ValueError(f"{type(instance).__name__}.{self.name}: {value!r} does not fit {self.size} bytes")
        instance.data[self.offset : self.offset + self.size] = packed.ljust(self.size, b"\0")

    def _unpack(self, data: bytes) -> T:
        raise NotImplementedError

    def _pack(self, value: T) -> bytes:
        raise NotImplementedError


class Number(_Field[int]):
    """An unsigned little-endian integer of any number of bytes."""

    def _unpack(self, data: bytes) -> int:
        return int.from_bytes(data, "little")

    def _pack(self, value: int) -> bytes:
        try:
            return int(value).to_bytes(self.size, "little")
        except OverflowError:
            raise ValueError(f"{self.name}: {value} is no unsigned integer of {self.size} bytes") from None


class Text(_Field[str]):
    """ASCII, left justified and padded with spaces, as most of the specification's strings are. Spec: 1.4.2.

    A field of zero bytes reads as the empty string.
    """

    def _unpack(self, data: bytes) -> str:
        return data.rstrip(b" \0").decode("ascii", "replace")

    def _pack(self, value: str) -> bytes:
        return value.encode("ascii").ljust(self.size)


class Raw(_Field[bytes]):
    """Bytes as they are; those left out are zero."""

    def _unpack(self, data: bytes) -> bytes:
        return data

    def _pack(self, value: bytes) -> bytes:
        return bytes(value)


class Numbers(_Field[tuple[int, ...]]):
    """An array of unsigned little-endian integers; those left out are zero.

    Args:
        offset: bytes from the start of the structure.
        width: bytes of one.
        count: how many.
        doc: what they say.
    """

    def __init__(self, offset: int, width: int, count: int, doc: str = "") -> None:
        super().__init__(offset, width * count, doc)
        self.width = width

    def _unpack(self, data: bytes) -> tuple[int, ...]:
        return tuple(
            int.from_bytes(data[start : start + self.width], "little") for start in range(0, self.size, self.width)
        )

    def _pack(self, value: tuple[int, ...]) -> bytes:
        return b"".join(int(item).to_bytes(self.width, "little") for item in value)


class Structure:
    """A structure; subclasses have ``SIZE`` and fields.

    Args:
        **values: fields by name; all others are zero.

    Attributes:
        SIZE: bytes.
        data: the bytes.

    Raises:
        AttributeError: there is no such field.
        ValueError: a value does not fit its field.
    """

    SIZE: ClassVar[int]

    def __init__(self, **values: Any) -> None:
        self.data = bytearray(self.SIZE)
        for name, value in values.items():
            if not isinstance(getattr(type(self), name), _Field):
                raise AttributeError(f"{type(self).__name__}.{name} is no field")
            setattr(self, name, value)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Self:
        """Reads a structure; a copy of ``data``, whose further bytes are ignored.

        Raises:
            ValueError: fewer bytes than the structure has.
        """
        if len(data) < cls.SIZE:
            raise ValueError(f"{len(data)} bytes are no {cls.__name__}: it has {cls.SIZE}")
        made = cls()
        made.data[:] = data[: cls.SIZE]
        return made

    def pack(self) -> bytes:
        """The bytes."""
        return bytes(self.data)

    @classmethod
    def fields(cls) -> list[str]:
        """The names of its fields, by offset."""
        found = [field for base in cls.__mro__ for field in vars(base).values() if isinstance(field, _Field)]
        return [field.name for field in sorted(found, key=lambda field: field.offset)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and type(self) is type(other) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={_shown(getattr(self, name))}" for name in self.fields() if _is_set(getattr(self, name))
        )
        return f"{type(self).__name__}({shown})"


def _is_set(value: object) -> bool:
    """A field that is not all zero."""
    return any(value) if isinstance(value, bytes | tuple) else bool(value)


def _shown(value: object) -> str:
    """A value without the zeroes at its end."""
    if isinstance(value, bytes):
        return repr(value.rstrip(b"\0"))
    if isinstance(value, tuple):
        last = max(index for index, item in enumerate(value) if item)
        return repr(value[: last + 1])
    return repr(value)

"""A device's state as a string of bytes: in a file, or on its way to another process.

::

    preamble        8 bytes of magic, u32 version of this format, u32 0
    record ...      u32 memory, u32 bytes, u64 offset; so many bytes of that memory, from that offset on
    record ...      u32 0xFFFFFFFD, u32 bytes, u64 0; a chunk of the device's own
    record          u32 0xFFFFFFFE, u32 bytes, u64 0; the description: JSON
    record          u32 0xFFFFFFFF, u32 0, u64 0: the end, so that what was cut off is noticed

All numbers are little-endian. Memories are numbered in the order of their names; what no record writes is zero. The
description comes behind them, so that memory can be sent while the device still runs (PRE_COPY): at the end, a piece is
sent once more if it has changed since. Chunks are the device's business (``PciDevice.save_chunks``), but for their
order, which is kept.

The description names everything: which class, in which version, its registers, its pending interrupts, and the
attributes it declares in ``saved_attributes``.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vfio_user.errors import DefinitionError, InvalidAccess
from vfio_user.pci.saved_state import FunctionState

if TYPE_CHECKING:
    from vfio_user.server.pci_device import PciDevice

__all__ = ["DeviceState", "StateWriter"]

_PREAMBLE = struct.Struct("<8sII")
_RECORD = struct.Struct("<IIQ")
_MAGIC = b"vfu-stat"
_VERSION = 1
_CHUNK = 0xFFFF_FFFD
_DESCRIPTION = 0xFFFF_FFFE
_END = 0xFFFF_FFFF

#: Bytes of memory in one record. Large enough that records cost nothing, small enough that zeros are left out.
_PIECE = 1 << 16

#: Bytes a description may have, far more than any has; it bounds what a client can make us keep.
_MAX_DESCRIPTION = 64 << 20

_PLAIN = (bool, int, float, str, type(None))


class DeviceState:
    """Saves and loads one device.

    Args:
        device: the device, completely built.

    Attributes:
        max_size: bytes of the longest string of bytes that can be its state, four times everything allowing for
            memory that is sent again, and ``chunks_limit`` for its own chunks.

    Raises:
        DefinitionError: it has a region that cannot be saved.

    Threading: session thread.
    """

    def __init__(self, device: PciDevice) -> None:
        self._device = device
        self._function = FunctionState(device.function)
        self._memories = [memory for _, memory in sorted(self._function.memories.items())]
        self.max_size = _MAX_DESCRIPTION + 4 * sum(len(memory) + _RECORD.size for memory in self._memories)
        self.max_size += device.chunks_limit

    def writer(self) -> StateWriter:
        """Begins to save."""
        return StateWriter(self._describe, self._memories, self._device.save_chunks)

    def _describe(self) -> dict[str, Any]:
        device = self._device
        return {
            "device": type(device).__name__,
            "version": device.state_version,
            "function": self._function.save(),
            "interrupts": device.interrupts.save_state(),
            "attributes": {name: _plain(getattr(device, name), name) for name in device.saved_attributes},
        }

    def check(self, data: bytes | bytearray) -> Callable[[], None]:
        """Checks a saved state, without changing anything.

        Returns:
            A function that puts it back: registers, memory, attributes, chunks, then interrupts. Hooks do not run.

        Raises:
            InvalidAccess: it is not a whole state of such a device; the text names what is wrong.
        """
        description, pieces, chunks = self._parse(memoryview(data))
        device = self._device
        name, version = description.get("device"), description.get("version")
        if name != type(device).__name__:
            raise InvalidAccess(f"saved state: it is of a {name!r}, not of a {type(device).__name__!r}")
        if version != device.state_version:
            raise InvalidAccess(
                f"saved state of {name}: version {version}, this class reads {device.state_version} (state_version)"
            )
        # First: a device that was made otherwise says so in its own words.
        attributes = self._check_attributes(description.get("attributes"))
        restore_function = self._function.check(description.get("function"))
        restore_interrupts = device.interrupts.check_state(description.get("interrupts"))

        def put_back() -> None:
            restore_function()
            for memory in self._memories:
                _clear(memory)
            for number, offset, piece in pieces:
                self._memories[number][offset : offset + len(piece)] = piece
            for attribute, value in attributes.items():
                _set(device, attribute, value)
            for chunk in chunks:
                device.load_chunk(chunk)
            restore_interrupts()

        return put_back

    def _parse(self, data: memoryview) -> tuple[dict[str, Any], list[tuple[int, int, memoryview]], list[memoryview]]:
        """Cuts the bytes up; returns the description, (memory, offset, bytes) of each piece, and the chunks."""
        if len(data) < _PREAMBLE.size:
            raise InvalidAccess(f"saved state: {len(data)} bytes are none")
        magic, version, _ = _PREAMBLE.unpack_from(data)
        if magic != _MAGIC:
            raise InvalidAccess(f"saved state: it begins with {magic!r}, not with {_MAGIC!r}: it is none")
        if version != _VERSION:
            raise InvalidAccess(f"saved state: version {version} of the format; this library reads {_VERSION}")
        pieces: list[tuple[int, int, memoryview]] = []
        chunks: list[memoryview] = []
        description: object = None
        stray: InvalidAccess | None = None
        at = _PREAMBLE.size
        while True:
            if len(data) - at < _RECORD.size:
                raise InvalidAccess(f"saved state: it is cut off after {len(data)} bytes")
            number, size, offset = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            if number == _END:
                break
            content = data[at : at + size]
            if len(content) != size:
                raise InvalidAccess(f"saved state: it is cut off after {len(data)} bytes")
            at += size
            if number == _DESCRIPTION:
                try:
                    description = json.loads(bytes(content))
                except (ValueError, RecursionError) as exc:
                    raise InvalidAccess(f"saved state: its description is no JSON: {exc}") from exc
            elif number == _CHUNK:
                chunks.append(content)
            elif number >= len(self._memories) or offset + size > len(self._memories[number]):
                stray = InvalidAccess(
                    f"saved state: [{offset:#x}, {offset + size:#x}) of memory {number} is none of this device's"
                )
            else:
                pieces.append((number, offset, content))
        if at != len(data):
            raise InvalidAccess(f"saved state: {len(data) - at} bytes follow its end")
        if stray is not None:
            if isinstance(description, dict):  # which may say more, being that of a device that was made otherwise
                self._check_attributes(description.get("attributes"))
            raise stray
        if not isinstance(description, dict):
            raise InvalidAccess("saved state: it has no description")
        return description, pieces, chunks

    def _check_attributes(self, saved: object) -> dict[str, Any]:
        device = self._device
        name = type(device).__name__
        if not isinstance(saved, dict) or saved.keys() != set(device.saved_attributes):
            names = sorted(saved) if isinstance(saved, dict) else saved
            raise InvalidAccess(
                f"saved state of {name}: its attributes are {names}, not {sorted(device.saved_attributes)}; if the "
                "class has changed, raise state_version"
            )
        values = {}
        for attribute in device.saved_attributes:
            current = getattr(device, attribute)
            try:
                value = values[attribute] = _unplain(saved[attribute], f"{name}.{attribute}")
            except RecursionError:
                raise InvalidAccess(f"saved state of {name}: {attribute} is nested too deep") from None
            if type(value) is not type(current) and value is not None and current is not None:
                raise InvalidAccess(
                    f"saved state of {name}: {attribute} is a {type(value).__name__}, not a {type(current).__name__}"
                )
        device.check_loaded(values)
        return values


class StateWriter:
    """Saves one device, while it runs or at once when it is stopped.

    Args:
        describe: gives the description, once the device is stopped.
        memories: the device's.
        chunks: the device's ``save_chunks``.

    Attributes:
        remaining: bytes of memory that have not been looked at yet, this time through.

    Threading: session thread.
    """

    def __init__(
        self,
        describe: Callable[[], Mapping[str, Any]],
        memories: list[bytearray | memoryview],
        chunks: Callable[[], Iterable[bytes]],
    ) -> None:
        self._describe = describe
        self._memories = memories
        self._make_chunks = chunks
        self._chunks: Iterator[bytes] | None = None
        self.remaining = 0
        self._begun = False
        #: What was sent of each piece last, as a hash, so that memory need not be kept twice.
        self._sent: dict[tuple[int, int], bytes] = {}

    def rehearse(self) -> Iterator[bytes]:
        """What can be sent while the device runs: its memory, as far as it is not zero, and chunks of its own.

        An empty piece says that there is nothing more at the moment.
        """
        yield from self._preamble()
        yield from self._changed()
        for chunk in self._own_chunks():
            yield _RECORD.pack(_CHUNK, len(chunk), 0) + chunk if chunk else b""

    def finish(self) -> Iterator[bytes]:
        """The rest, the device being stopped; all of it where nothing was sent before."""
        yield from self._preamble()
        yield from self._changed()
        for chunk in self._own_chunks():
            if not chunk:
                break
            yield _RECORD.pack(_CHUNK, len(chunk), 0) + chunk
        description = json.dumps(self._describe(), separators=(",", ":")).encode()
        yield _RECORD.pack(_DESCRIPTION, len(description), 0) + description
        yield _RECORD.pack(_END, 0, 0)

    def _own_chunks(self) -> Iterator[bytes]:
        """The device's own: one iterator, which the end goes on with."""
        if self._chunks is None:
            self._chunks = iter(self._make_chunks())
        return self._chunks

    def _preamble(self) -> Iterator[bytes]:
        if not self._begun:
            self._begun = True
            yield _PREAMBLE.pack(_MAGIC, _VERSION, 0)

    def _changed(self) -> Iterator[bytes]:
        self.remaining = sum(map(len, self._memories))
        for number, memory in enumerate(self._memories):
            for offset in range(0, len(memory), _PIECE):
                piece = bytes(memory[offset : offset + _PIECE])
                self.remaining -= len(piece)
                key = number, offset
                last = self._sent.get(key)
                if last is None and not any(piece):
                    continue
                digest = hashlib.blake2b(piece, digest_size=16).digest()
                if digest != last:
                    self._sent[key] = digest
                    yield _RECORD.pack(number, len(piece), offset) + piece


def _clear(memory: bytearray | memoryview) -> None:
    # Only what is not zero: memory nobody touched stays memory nobody has to back.
    for offset in range(0, len(memory), _PIECE):
        piece = memory[offset : offset + _PIECE]
        if any(piece):
            memory[offset : offset + _PIECE] = bytes(len(piece))


def _set(device: object, name: str, value: Any) -> None:
    current = getattr(device, name)
    if isinstance(current, bytearray) and isinstance(value, bytearray) and len(current) == len(value):
        current[:] = value  # there may be views of it
    else:
        setattr(device, name, value)


def _plain(value: Any, name: str) -> Any:
    """The value as JSON has it; what JSON does not have is an object with one member, which says what it is."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, bytes | bytearray):
        return {type(value).__name__: value.hex()}
    if type(value) is list:
        return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _plain(item, f"{name}[{key!r}]") for key, item in value.items()}}
    raise DefinitionError(
        f"saved attribute {name} is a {type(value).__name__}; what can be saved is None, bool, int, float, str, bytes, "
        "bytearray, and lists, tuples and dictionaries by name of those"
    )


def _unplain(saved: Any, name: str) -> Any:
    if type(saved) in _PLAIN:
        return saved
    if isinstance(saved, list):
        return [_unplain(item, name) for item in saved]
    if isinstance(saved, dict) and len(saved) == 1:
        ((kind, value),) = saved.items()
        if kind in ("bytes", "bytearray") and isinstance(value, str):
            try:
                return bytes.fromhex(value) if kind == "bytes" else bytearray.fromhex(value)
            except ValueError:
                pass
        if kind == "tuple" and isinstance(value, list):
            return tuple(_unplain(item, name) for item in value)
        if kind == "dict" and isinstance(value, dict):
            return {key: _unplain(item, name) for key, item in value.items()}
    raise InvalidAccess(f"saved state: {name} is no value this library saves")

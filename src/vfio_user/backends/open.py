"""The text a user gives for a disk, as in ``--image=...``, and the backend it means.

==================================  ==============================================================================
``/path/disk.img``                  a file or block device (a relative path, too, unless it begins like one below)
``file:PATH?read_only=on``          the same with options: ``read_only``, ``direct`` (O_DIRECT), ``mapped`` (mmap)
``memory:64M``                      a RAM disk of zeroes
``null:1T``                         takes everything, keeps nothing
``overlay:BASE``                    another of these, read-only; what is written goes away with the device
``nbd://host:port/export``          a server that speaks NBD; also ``nbds:``, ``nbd+unix:///export?socket=/path``...
==================================  ==============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from vfio_user.backends.base import Backend

__all__ = ["file_of", "open_backend", "parse_size"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"(\d+)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z]+(?:\+[a-z]+)?):(.*)", re.DOTALL)
_SWITCH = {"on": True, "yes": True, "true": True, "1": True, "off": False, "no": False, "false": False, "0": False}


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: "512", "64M", "1GiB"; units are powers of 1024.

    Raises:
        ValueError: the text is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: write bytes, or a number with K, M, G, T or P, as 64M")
    return int(match[1]) * _UNITS[match[2].upper()]


def open_backend(text: str) -> Backend:
    """Opens what the text means; see the module.

    Raises:
        ValueError: the text means nothing; the message says what would.
        OSError: it cannot be opened. ENOPKG: a library is missing; the message says how to get it.

    Ownership: the caller closes it.
    """
    return _open(text, read_only=False)


def file_of(text: str) -> Path | None:
    """The file or block device a text means; None where it means something else."""
    match = _SCHEME.fullmatch(text)
    if match is not None and match[1] == "file":
        return Path(match[2].partition("?")[0])
    if match is not None and (match[1] in _OPENERS or match[2].startswith("//")):
        return None
    return Path(text)


def _open(text: str, *, read_only: bool) -> Backend:
    """Opens it; where a text has no ``read_only`` of its own, this says so."""
    if not text:
        raise ValueError("an image without a name: give a path, or memory:SIZE, null:SIZE, overlay:IMAGE, nbd://...")
    match = _SCHEME.fullmatch(text)
    if match is not None and match[1] in _OPENERS:
        return _OPENERS[match[1]](match[2], text, read_only)
    if match is not None and match[2].startswith("//"):
        raise ValueError(f"image {text!r}: no backend is called {match[1]!r}; there are {', '.join(sorted(_OPENERS))}")
    return _open_file(text, text, {"read_only": read_only})


def _file(rest: str, text: str, read_only: bool) -> Backend:
    path, _, query = rest.partition("?")
    options = {"read_only": read_only}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        name = name.replace("-", "_")
        if name not in ("read_only", "direct", "mapped"):
            raise ValueError(f"image {text!r}: a file has no option {name!r}; it has read_only, direct and mapped")
        if value.lower() not in _SWITCH:
            raise ValueError(f"image {text!r}: option {name} is on or off, not {value!r}")
        options[name] = _SWITCH[value.lower()]
    return _open_file(path, text, options)


def _open_file(path: str, text: str, options: dict[str, bool]) -> Backend:
    read_only = options["read_only"]
    if not options.get("mapped", False):
        from vfio_user.backends.file import FileBackend

        return FileBackend(path, read_only=read_only, direct=options.get("direct", False))
    if options.get("direct", False):
        raise ValueError(f"image {text!r}: mapped is the page cache, direct goes past it: one of the two")
    from vfio_user.backends.mapped_file import MappedFileBackend

    return MappedFileBackend(path, read_only=read_only)


def _memory(rest: str, _text: str, _read_only: bool) -> Backend:
    from vfio_user.backends.memory import MemoryBackend

    return MemoryBackend(parse_size(rest))


def _null(rest: str, _text: str, _read_only: bool) -> Backend:
    from vfio_user.backends.memory import NullBackend

    return NullBackend(parse_size(rest))


def _overlay(rest: str, _text: str, _read_only: bool) -> Backend:
    from vfio_user.backends.overlay import OverlayBackend

    base = _open(rest, read_only=True)
    try:
        return OverlayBackend(base)
    except BaseException:
        base.close()
        raise


def _nbd(_rest: str, text: str, read_only: bool) -> Backend:
    from vfio_user.backends.nbd import NbdBackend

    return NbdBackend(text, read_only=read_only)


_OPENERS: dict[str, Callable[[str, str, bool], Backend]] = {
    "file": _file,
    "memory": _memory,
    "null": _null,
    "overlay": _overlay,
    "nbd": _nbd,
    "nbds": _nbd,
    "nbd+unix": _nbd,
    "nbds+unix": _nbd,
    "nbd+vsock": _nbd,
}

"""Storage on a server that speaks NBD (nbdkit, qemu-nbd, nbd-server...), through libnbd.

libnbd speaks the protocol, with TLS and every URI there is: ``nbd://host:port/export``,
``nbd+unix:///export?socket=/path``, ``nbds://...``. Where the server allows several connections to one export, a few
are opened, so that as many commands are under way as a device has threads.

Spec: the NBD protocol and NBD URI specifications (github.com/NetworkBlockDevice/nbd, doc/).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from queue import LifoQueue
from typing import Any

from vfio_user.backends.base import Backend, ReadableBuffer

__all__ = ["MAX_CONNECTIONS", "NbdBackend"]

#: Connections to one export: as many as ``Workers`` has threads.
MAX_CONNECTIONS = 4

#: Bytes of one request: what every server takes (32 MiB is the limit the specification recommends).
_MAX_REQUEST = 32 * 1024 * 1024


class NbdBackend(Backend):
    """See the module.

    Args:
        uri: which export of which server.
        read_only: write nothing, though the server would allow it.

    Raises:
        ValueError: that is no NBD URI.
        OSError: the server cannot be reached, or refuses; ENOPKG where libnbd's Python binding is missing.
    """

    def __init__(self, uri: str, *, read_only: bool = False) -> None:
        self._nbd = _binding()
        self._connections: list[Any] = []
        self._idle: LifoQueue[Any] = LifoQueue()
        first = self._connect(uri)
        try:
            with self._errors(f"connecting to {uri}"):
                size = first.get_size()
                minimum = first.get_block_size(self._nbd.SIZE_MINIMUM)
                self._can_flush, self._can_trim, self._can_zero = first.can_flush(), first.can_trim(), first.can_zero()
                read_only = read_only or first.is_read_only()
                more = MAX_CONNECTIONS - 1 if read_only or first.can_multi_conn() else 0
            for _ in range(more):
                self._connect(uri)
        except BaseException:
            self._disconnect()
            raise
        super().__init__(size, block_size=max(512, minimum), read_only=read_only)

    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        with self._connection(f"a read of {length} bytes at {offset:#x}") as nbd:
            for view in views:
                for start in range(0, len(view), _MAX_REQUEST):
                    part = view[start : start + _MAX_REQUEST]
                    part[:] = nbd.pread(len(part), offset)
                    offset += len(part)

    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        data = b"".join(views) if len(views) > 1 else views[0]
        with self._connection(f"a write of {length} bytes at {offset:#x}") as nbd:
            for start in range(0, length, _MAX_REQUEST):
                nbd.pwrite(bytearray(data[start : start + _MAX_REQUEST]), offset + start)

    def _zero(self, offset: int, length: int, *, may_deallocate: bool) -> None:
        if not self._can_zero:
            super()._zero(offset, length, may_deallocate=may_deallocate)
            return
        flags = 0 if may_deallocate else self._nbd.CMD_FLAG_NO_HOLE
        with self._connection(f"zeroing {length} bytes at {offset:#x}") as nbd:
            for start in range(0, length, _MAX_REQUEST):
                nbd.zero(min(_MAX_REQUEST, length - start), offset + start, flags)

    # A discard is a write of zeroes that may leave a hole: after NBD's own (TRIM) the contents would be undefined.

    def _flush(self) -> None:
        if self._can_flush:
            with self._connection("a flush") as nbd:
                nbd.flush()

    def _close(self) -> None:
        self._disconnect()

    def _connect(self, uri: str) -> Any:
        nbd = self._nbd.NBD()
        with self._errors(f"connecting to {uri}"):
            nbd.connect_uri(uri)
        self._connections.append(nbd)
        self._idle.put(nbd)
        return nbd

    def _disconnect(self) -> None:
        # The last reference to a connection closes it: there is no method for that.
        self._idle = LifoQueue()
        while self._connections:
            with contextlib.suppress(self._nbd.Error):  # it may have gone already
                self._connections.pop().shutdown()

    @contextlib.contextmanager
    def _connection(self, what: str) -> Iterator[Any]:
        """A connection nobody else uses meanwhile."""
        nbd = self._idle.get()
        try:
            with self._errors(what):
                yield nbd
        finally:
            self._idle.put(nbd)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Exceptions of libnbd as ours."""
        try:
            yield
        except self._nbd.Error as exc:
            number = exc.errnum or errno.EIO
            if number == errno.EINVAL and what.startswith("connecting") and "URI" in str(exc):
                raise ValueError(f"{what}: {exc.string}") from exc
            raise OSError(number, f"{what} failed: {exc.string or os.strerror(number)}") from exc


def _binding() -> Any:
    try:
        import nbd  # type: ignore[import-not-found, unused-ignore]
    except ImportError as exc:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        raise OSError(
            errno.ENOPKG,
            "NBD needs libnbd's Python binding, which no package index has: on Debian and Ubuntu apt install "
            f"python3-libnbd, on Fedora dnf install python3-libnbd. It serves the system's own Python only; this is "
            f"{version} at {sys.executable}: a virtual environment of that Python needs --system-site-packages",
        ) from exc
    return nbd

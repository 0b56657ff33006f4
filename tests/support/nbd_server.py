"""A small NBD server over a real socket, for tests: fixed newstyle negotiation, simple replies, one export in memory.

Spec: github.com/NetworkBlockDevice/nbd, doc/proto.md.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

__all__ = ["NbdServer", "nbd_server"]

_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_GO = 1, 2, 7
_REP_ACK, _REP_INFO, _REP_ERR_UNSUP = 1, 3, 0x8000_0001
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _SEND_TRIM, _SEND_WRITE_ZEROES, _MULTI_CONN = 1, 2, 4, 32, 64, 256
_READ, _WRITE, _DISC, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6


class NbdServer:
    """The export and what was asked of it.

    Attributes:
        contents: its bytes.
        flags: what the server says it can do.
        requests: (command, flags, offset, length) of each.
        connections: how many clients connected.
        fails: errno every read, write, zero and flush is answered with, instead.
    """

    def __init__(self, contents: bytes, *, read_only: bool = False, zeroes: bool = True, multi: bool = True) -> None:
        self.contents = bytearray(contents)
        self.flags = _HAS_FLAGS | _SEND_FLUSH | _SEND_TRIM
        self.flags |= (_READ_ONLY * read_only) | (_SEND_WRITE_ZEROES * zeroes) | (_MULTI_CONN * multi)
        self.requests: list[tuple[int, int, int, int]] = []
        self.connections = 0
        self.fails = 0

    def serve(self, client: socket.socket) -> None:
        """One connection, until it ends."""
        with client, contextlib.suppress(ConnectionError, struct.error):
            stream = client.makefile("rb")
            with stream:
                if self._negotiate(client, stream):
                    self._transmit(client, stream)

    def _negotiate(self, client: socket.socket, stream: object) -> bool:
        read = stream.read  # type: ignore[attr-defined]
        client.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        read(4)
        while True:
            _, option, length = struct.unpack(">8sII", read(16))
            read(length)

            def reply(kind: int, data: bytes = b"", option: int = option) -> None:
                client.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)

            if option == _OPT_GO:
                reply(_REP_INFO, struct.pack(">HQH", 0, len(self.contents), self.flags))
                reply(_REP_ACK)
                return True
            if option == _OPT_EXPORT_NAME:
                client.sendall(struct.pack(">QH", len(self.contents), self.flags) + bytes(124))
                return True
            if option == _OPT_ABORT:
                reply(_REP_ACK)
                return False
            reply(_REP_ERR_UNSUP)

    def _transmit(self, client: socket.socket, stream: object) -> None:
        read = stream.read  # type: ignore[attr-defined]
        while True:
            magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQI", read(28))
            assert magic == 0x25609513
            self.requests.append((command, flags, offset, length))
            answer = b""
            if command == _DISC:
                return
            if command == _WRITE:
                data = read(length)
                if not self.fails:
                    self.contents[offset : offset + length] = data
            elif command == _WRITE_ZEROES and not self.fails:
                self.contents[offset : offset + length] = bytes(length)
            elif command == _READ and not self.fails:
                answer = bytes(self.contents[offset : offset + length])
            elif command == _TRIM:  # allowed by the specification, and what a client must not count on
                self.contents[offset : offset + length] = b"\xdb" * length
            client.sendall(struct.pack(">IIQ", 0x67446698, self.fails, cookie) + answer)


@contextlib.contextmanager
def nbd_server(
    path: Path, contents: bytes, *, read_only: bool = False, zeroes: bool = True, multi: bool = True
) -> Iterator[NbdServer]:
    """Serves contents at a socket file."""
    server = NbdServer(contents, read_only=read_only, zeroes=zeroes, multi=multi)
    threads: list[threading.Thread] = []
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(8)

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                server.connections += 1
                threads.append(threading.Thread(target=server.serve, args=(client,), daemon=True))
                threads[-1].start()

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join(10)
            for thread in threads:
                thread.join(10)

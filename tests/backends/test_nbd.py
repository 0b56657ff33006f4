"""NBD, against a server that speaks it over a real socket."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.libnbd import need_libnbd
from tests.support.nbd_server import NbdServer, nbd_server
from vfio_user.backends import open_backend
from vfio_user.backends.nbd import MAX_CONNECTIONS, NbdBackend

SIZE = 64 * 1024
READ, WRITE, FLUSH, WRITE_ZEROES = 0, 1, 3, 6


@pytest.fixture
def libnbd() -> None:
    need_libnbd()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"nbd+unix:///?socket={tmp_path / 'nbd.sock'}"


@pytest.fixture
def server(libnbd: None, tmp_path: Path) -> Iterator[NbdServer]:
    with nbd_server(tmp_path / "nbd.sock", os.urandom(SIZE)) as made:
        yield made


Operations = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "zero", "keep", "discard", "flush"]),
        st.integers(0, SIZE),
        st.integers(0, SIZE),
    ),
    max_size=8,
)


@pytest.mark.usefixtures("libnbd")
@pytest.mark.parametrize("zeroes", [True, False])
@given(operations=Operations)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_a_row_of_bytes(zeroes: bool, tmp_path: Path, uri: str, operations: list[tuple[str, int, int]]) -> None:
    model = bytearray(os.urandom(SIZE))
    with nbd_server(tmp_path / "nbd.sock", bytes(model), zeroes=zeroes) as server, open_backend(uri) as backend:
        for number, (what, one, other) in enumerate(operations):
            start, end = min(one, other), max(one, other)
            middle = (start + end) // 2
            if what == "read":
                target = memoryview(bytearray(end - start))
                backend.read(start, [target[: middle - start], target[middle - start :]])
                assert target == model[start:end]
            elif what == "write":
                model[start:end] = bytes([number + 1]) * (end - start)
                backend.write(start, [memoryview(model)[start:middle], bytes(model[middle:end])])
            elif what == "flush":
                backend.flush()
            else:
                model[start:end] = bytes(end - start)
                if what == "discard":
                    backend.discard(start, end - start)
                else:
                    backend.zero(start, end - start, may_deallocate=what == "zero")
        assert server.contents == model


def test_what_the_server_says_of_itself(server: NbdServer, uri: str) -> None:
    with NbdBackend(uri) as backend:
        assert backend.size == SIZE
        assert backend.block_size == 512
        assert not backend.read_only
        assert backend.blocking
        assert backend.flush_blocks
        assert server.connections == MAX_CONNECTIONS
    with NbdBackend(uri, read_only=True) as backend, pytest.raises(OSError, match="read-only"):
        backend.write(0, [b"x"])


def test_one_connection_where_more_would_not_be_safe(libnbd: None, tmp_path: Path, uri: str) -> None:
    with nbd_server(tmp_path / "nbd.sock", bytes(SIZE), multi=False) as server, NbdBackend(uri):
        assert server.connections == 1


def test_an_export_that_cannot_be_written(libnbd: None, tmp_path: Path, uri: str) -> None:
    with nbd_server(tmp_path / "nbd.sock", bytes(SIZE), read_only=True), NbdBackend(uri) as backend:
        with pytest.raises(OSError, match="read-only") as refused:
            backend.write(0, [b"x"])
        assert refused.value.errno == errno.EROFS


def test_failures_of_the_server(server: NbdServer, uri: str) -> None:
    with NbdBackend(uri) as backend:
        server.fails = errno.ENOSPC
        for call in (
            lambda: backend.write(0, [b"x"]),
            lambda: backend.read(0, [memoryview(bytearray(1))]),
            lambda: backend.zero(0, 512),
            backend.flush,
        ):
            with pytest.raises(OSError, match="failed") as failed:
                call()  # type: ignore[no-untyped-call]
            assert failed.value.errno == errno.ENOSPC
        server.fails = 0
        backend.write(0, [b"x"])


def test_requests_of_several_threads_at_once(server: NbdServer, uri: str) -> None:
    with NbdBackend(uri) as backend:

        def write(number: int) -> None:
            for turn in range(20):
                backend.write(number * 4096, [bytes([number + 1, turn])])

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [server.contents[number * 4096 : number * 4096 + 2] for number in range(6)] == [
            bytes([number + 1, 19]) for number in range(6)
        ]


def test_a_space_that_is_to_be_kept(server: NbdServer, uri: str) -> None:
    with NbdBackend(uri) as backend:
        backend.zero(0, 512, may_deallocate=False)
        backend.zero(512, 512)
        backend.discard(1024, 512)
    zeroed = [(flags, offset) for command, flags, offset, _ in server.requests if command == WRITE_ZEROES]
    assert zeroed == [(2, 0), (0, 512), (0, 1024)]  # NO_HOLE


def test_nobody_listens(libnbd: None, uri: str) -> None:
    with pytest.raises(FileNotFoundError, match="connecting to"):
        open_backend(uri)


def test_without_the_binding_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setitem(sys.modules, "nbd", None)
    with pytest.raises(OSError, match="apt install python3-libnbd") as missing:
        open_backend(uri)
    assert missing.value.errno == errno.ENOPKG

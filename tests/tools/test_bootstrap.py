"""The script that makes the environment: what it reads, what it fetches, and what it says when it cannot go on."""

from __future__ import annotations

import functools
import hashlib
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tools import bootstrap

WHEEL = "pip-1.0-py3-none-any.whl"
CONTENT = b"a wheel"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the name it has there
        """Says nothing."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A package index with one project, which links to its file the way indexes do."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / WHEEL).write_bytes(CONTENT)
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "index.html").write_text(f'<a href="../files/{WHEEL}#sha256=00">{WHEEL}</a>')
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_requirements_are_those_of_the_group(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[dependency-groups]\ndev = ["pytest>=8", "mypy"]\n')
    assert bootstrap.requirements(pyproject, "dev") == ["pytest>=8", "mypy"]


def test_an_unknown_group_names_those_there_are(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text("[dependency-groups]\ndev = []\ndocs = []\n")
    with pytest.raises(bootstrap.BootstrapError, match="no dependency group 'test'; it has dev, docs"):
        bootstrap.requirements(pyproject, "test")


def test_an_included_group_is_refused_rather_than_dropped(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[dependency-groups]\ndev = [{ include-group = "docs" }]\n')
    with pytest.raises(bootstrap.BootstrapError, match="only plain requirements"):
        bootstrap.requirements(pyproject, "dev")


def test_fetch_wheel_follows_the_index(index: str) -> None:
    assert bootstrap.fetch_wheel(index, WHEEL, hashlib.sha256(CONTENT).hexdigest()) == CONTENT


def test_fetch_wheel_refuses_another_checksum(index: str) -> None:
    with pytest.raises(bootstrap.BootstrapError, match="another checksum"):
        bootstrap.fetch_wheel(index, WHEEL, "00" * 32)


def test_fetch_wheel_says_what_the_index_lacks(index: str) -> None:
    with pytest.raises(bootstrap.BootstrapError, match=r"does not offer pip-2\.0-py3-none-any\.whl"):
        bootstrap.fetch_wheel(index, "pip-2.0-py3-none-any.whl", "00" * 32)


def test_fetch_wheel_without_a_network_names_the_way_out() -> None:
    with pytest.raises(bootstrap.BootstrapError, match="PIP_INDEX_URL"):
        bootstrap.fetch_wheel("http://127.0.0.1:9", WHEEL, "00" * 32)


def test_an_interpreter_that_is_gone_is_not_usable(tmp_path: Path) -> None:
    assert bootstrap.is_usable(Path(sys.executable))
    assert not bootstrap.is_usable(tmp_path / "bin" / "python")


def test_a_failed_installation_shows_the_reason() -> None:
    command = [sys.executable, "-c", "import sys; print('no route to host'); sys.exit(1)"]
    with pytest.raises(bootstrap.BootstrapError, match=r"no route to host(.|\n)*PIP_INDEX_URL"):
        bootstrap.install(command, ["mypy>=1"])

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.support import LAMP, Outcome
from vfio_user.cli.main import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test runs in a folder of its own, with the device ``lamp.py`` in it, and leaves no import behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "lamp.py").write_text(LAMP)
    path, modules = list(sys.path), set(sys.modules)
    log = logging.getLogger("vfio_user")
    level, handlers = log.level, list(log.handlers)
    yield tmp_path
    log.setLevel(level)
    log.handlers[:] = handlers
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith("vfio_user"):
            del sys.modules[name]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command line in this process."""

    def run_command(*words: str) -> Outcome:
        try:
            status = main(words)
        except SystemExit as exc:
            status = exc.code if isinstance(exc.code, int) else -1
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run_command

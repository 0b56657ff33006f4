"""The script that makes the environment: what it reads, what it fetches, and what it says when it cannot go on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import bootstrap


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


def test_pip_comes_from_debian_where_there_is_none(tmp_path: Path) -> None:
    wheel = bootstrap.fetch_wheel(tmp_path / "pip")
    told = subprocess.run([sys.executable, f"{wheel}/pip", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith(f"pip {wheel.name.split('-')[1]} from {wheel}")


def test_pip_that_cannot_be_fetched_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(bootstrap.BootstrapError, match=r"pip cannot be fetched: (.|\n)*apt install python3-venv"):
        bootstrap.fetch_wheel(tmp_path / "pip")


def test_an_interpreter_that_is_gone_is_not_usable(tmp_path: Path) -> None:
    assert bootstrap.is_usable(Path(sys.executable))
    assert not bootstrap.is_usable(tmp_path / "bin" / "python")


def test_a_failed_installation_shows_the_reason() -> None:
    command = [sys.executable, "-c", "import sys; print('no route to host'); sys.exit(1)"]
    with pytest.raises(bootstrap.BootstrapError, match=r"no route to host(.|\n)*PIP_INDEX_URL"):
        bootstrap.install(command, ["mypy>=1"])

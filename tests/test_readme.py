"""What README.md and the documents show works: its Python runs, its example is the file, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vfio_user.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_first_example_is_the_file() -> None:
    assert blocks(README, "python")[0] == (ROOT / "examples" / "timer.py").read_text()


def test_python_runs_block_after_block() -> None:
    namespace: dict[str, object] = {"__name__": "readme"}
    found = blocks(README, "python")
    assert len(found) >= 2
    for block in found:
        exec(compile(block, "README.md", "exec"), namespace)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for target in re.findall(r"(?:^|`|\$ )make ([a-z-]+)\b", document.read_text(), re.MULTILINE):
            assert target in targets, f"{document.name} names make {target}"


def test_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = {
        command
        for document in DOCUMENTS
        for command in re.findall(r"^(?:\$ )?vfio-user ([a-z]+)", document.read_text(), re.MULTILINE)
    }
    assert commands >= {"serve", "boot"}
    for command in commands:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
    capsys.readouterr()


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", document.read_text()):
            target = link[0] or link[1]
            assert (document.parent / target).exists(), f"{document.name} links to {target}"

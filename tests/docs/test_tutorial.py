"""Every step of docs/tutorial.md, as its reader takes it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.doc_examples import DOCS, examples, run_all
from tests.support.source import SRC

PAGE = DOCS / "tutorial.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files the reader has written by the end."""
    for example in [*examples(PAGE), *examples(PAGE, "sh")]:
        if example.file_name:
            (tmp_path / example.file_name).write_text(example.code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=True, timeout=200
    ).stdout


def test_the_steps_run() -> None:
    steps = [example for example in examples(PAGE) if example.file_name != "test_dice.py"]
    assert len(steps) == 9
    made = run_all(steps)
    assert made["Dice"].device_id == 0xD1CE


def test_the_test_the_reader_writes_passes(folder: Path) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_dice.py"]
    assert "1 passed" in program(*words)


def test_the_finished_device_is_found_by_the_command_line(folder: Path) -> None:
    assert "address  where to write\n" in program("-m", "vfio_user", "registers", "dice.py")
    program("-m", "vfio_user", "registers", "dice.py", "--format=c", "--output", "dice.h")
    assert "#define DICEREGISTERS_CONTROL_FILL_MASK 0x2u" in (folder / "dice.h").read_text()


@pytest.mark.guest
@pytest.mark.parametrize("number", [0, 1])
def test_a_guest_says_what_the_page_says(folder: Path, number: int) -> None:
    boots = [one.code for one in examples(PAGE, "console") if one.code.startswith("$ vfio-user boot")]
    command, said = boots[number].split("\n", 1)
    words = shlex.split(command.removeprefix("$ vfio-user"))
    assert said in program("-m", "vfio_user", *words).replace("\r\n", "\n")


def test_the_lines_for_qemu_are_those_the_program_prints() -> None:
    from vfio_user.vm.qemu import qemu_arguments_for, shell_lines

    printed = shell_lines(qemu_arguments_for("/tmp/dice.sock"))
    assert re.sub(r"\s+", " ", printed) in re.sub(r"\s+", " ", PAGE.read_text())


def test_links_lead_somewhere() -> None:
    for page in (PAGE, DOCS / "cookbook.md"):
        targets = re.findall(r"\]\(([^)#:]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
        assert [target for target in targets if not (DOCS / target).exists()] == []

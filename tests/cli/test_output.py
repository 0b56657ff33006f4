from __future__ import annotations

import io

import pytest

from vfio_user.cli.output import WIDTH, Style, columns, complain, wrap


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_emphasis_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Style(Terminal()).bold("x") == "\x1b[1mx\x1b[0m"
    assert Style(io.StringIO()).bold("x") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Style(Terminal()).bold("x") == "x"


def test_a_closed_standard_output_has_no_emphasis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert Style().bad("x") == "x"


def test_complaints_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    complain("no")
    assert capsys.readouterr() == ("", "vfio-user: no\n")


def test_wrapped_lines_fit_and_leave_paths_whole() -> None:
    text = wrap("word " * 40 + "/a/" + "very-" * 30 + "long-path", "    ", first="  - ")
    lines = text.splitlines()
    assert lines[0].startswith("  - word")
    assert all(len(line) <= WIDTH for line in lines[:-1])
    assert lines[-1] == "    /a/" + "very-" * 30 + "long-path"


def test_columns_line_up() -> None:
    assert columns([("a", "bb", "c"), ("aaa", "b", "")], " ") == [" a    bb  c", " aaa  b"]
    assert columns([]) == []

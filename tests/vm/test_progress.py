from __future__ import annotations

import io
import re

import pytest

from vfio_user.vm.progress import Progress, format_bytes


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _steps(stream: io.StringIO) -> str:
    progress = Progress(stream)
    with progress.step("fetching") as step:
        step.detail = "27 MB"
    with progress.step("resting"):
        pass
    with pytest.raises(ValueError, match="why"), progress.step("failing"):
        raise ValueError("why")
    progress.note("waiting")
    return re.sub(r"\d+\.\d s", "N s", stream.getvalue())


def test_in_a_log_each_step_is_one_line() -> None:
    assert _steps(io.StringIO()) == (
        "vfio-user: fetching: 27 MB, N s\n"
        "vfio-user: resting: N s\n"
        "vfio-user: failing: failed, N s\n"
        "vfio-user: waiting\n"
    )


def test_on_a_terminal_a_step_shows_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    shown = _steps(_Terminal())
    assert shown.startswith("vfio-user: fetching ...\rvfio-user: fetching: 27 MB, \x1b[2mN s\x1b[0m\x1b[K\n")
    monkeypatch.setenv("NO_COLOR", "1")
    assert _steps(_Terminal()).startswith("vfio-user: fetching ...\rvfio-user: fetching: 27 MB, N s\x1b[K\n")


def test_silent(capfd: pytest.CaptureFixture[str]) -> None:
    progress = Progress.silent()
    with progress.step("nothing"):
        progress.note("nothing")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (27_400_000, "27 MB"), (1.3e9, "1.3 GB")]
)
def test_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text

"""What the page shows is what the command prints."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cli.support import program, serving

PAGE = Path(__file__).parents[2] / "docs" / "inspect.md"


def test_the_output_on_the_page_is_that_of_the_command(tmp_path: Path) -> None:
    shown = PAGE.read_text().partition("$ vfio-user inspect /tmp/edu.sock\n")[2].partition("...\n")[0]
    path = tmp_path / "edu.sock"
    with serving("edu", "--socket-path", str(path), cwd=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        done = subprocess.run(program("inspect", str(path)), capture_output=True, text=True, check=True)
    assert len(shown) > 500
    assert done.stdout.startswith(shown)

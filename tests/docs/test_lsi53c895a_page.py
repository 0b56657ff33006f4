"""docs/lsi53c895a.md: its examples run, and the table names every option."""

from __future__ import annotations

from tests.support.doc_examples import DOCS, examples, run_all
from vfio_user.devices.lsi53c8xx.controller import Lsi53c895a
from vfio_user.devices.options import device_options

PAGE = DOCS / "lsi53c895a.md"


def test_the_examples_run() -> None:
    page = list(examples(PAGE))
    assert len(page) == 2
    run_all(page)


def test_the_options() -> None:
    text = PAGE.read_text()
    assert {option.name.rstrip("0123456") for option in device_options(Lsi53c895a)} == {"disk", "cdrom", "serial"}
    assert "| `serial` |" in text
    assert "| `disk0` to `disk6` |" in text
    assert "| `cdrom0` to `cdrom6` |" in text

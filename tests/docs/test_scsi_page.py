"""The examples of docs/scsi.md, one after the other."""

from __future__ import annotations

from tests.guest.scsi_differences import table
from tests.support.doc_examples import DOCS, examples, run_all


def test_the_examples_run() -> None:
    page = list(examples(DOCS / "scsi.md"))
    assert len(page) == 5
    run_all(page)


def test_the_differences_from_qemu_are_those_the_guest_finds() -> None:
    page = (DOCS / "scsi.md").read_text()
    rows = "".join(line for line in page.splitlines(keepends=True) if line.startswith("|") and line.count("|") == 6)
    assert rows == table()

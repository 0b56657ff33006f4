"""The examples of docs/migration.md, one after the other."""

from __future__ import annotations

from tests.support.doc_examples import DOCS, examples, run_all


def test_the_examples_run() -> None:
    page = list(examples(DOCS / "migration.md"))
    assert len(page) == 5
    run_all(page)

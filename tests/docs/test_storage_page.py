"""The examples of docs/storage.md, one after the other; and its table of images against what can be opened."""

from __future__ import annotations

from tests.support.doc_examples import DOCS, examples, run_all
from vfio_user.backends import open as opening


def test_the_examples_run() -> None:
    page = list(examples(DOCS / "storage.md"))
    assert len(page) == 2
    run_all(page)


def test_every_kind_of_image_is_in_the_table() -> None:
    text = (DOCS / "storage.md").read_text()
    for scheme in opening._OPENERS:
        assert f"`{scheme.partition('+')[0].removesuffix('s')}" in text, scheme

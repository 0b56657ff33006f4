"""The examples of docs/nvme.md, one after the other; and its tables against the code."""

from __future__ import annotations

from tests.support.doc_examples import DOCS, examples, run_all
from vfio_user.devices.nvme import Nvme
from vfio_user.devices.options import device_options


def test_the_examples_run() -> None:
    page = list(examples(DOCS / "nvme.md"))
    assert len(page) == 5
    run_all(page)["disk"].loop.close()


def test_every_option_is_in_the_table() -> None:
    text = (DOCS / "nvme.md").read_text()
    for option in device_options(Nvme):
        assert f"| `{option.name}` |" in text

"""The examples of docs/registers.md run, one after the other, as a reader would type them."""

from __future__ import annotations

from tests.support.doc_examples import DOCS, examples, run_all

PAGE = DOCS / "registers.md"


def test_every_example_of_the_reference_page_runs() -> None:
    found = list(examples(PAGE))
    assert len(found) > 8
    run_all(found)


def test_the_page_mentions_every_public_policy_hook_and_reset() -> None:
    from vfio_user.pci import registers

    text = PAGE.read_text()
    policies = [name for name, value in vars(registers).items() if isinstance(value, registers.Access)]
    names = [*policies, *(kind.value for kind in registers.HookKind), *(kind.name for kind in registers.ResetKind)]
    assert len(names) > 20
    assert [name for name in names if name not in text] == []

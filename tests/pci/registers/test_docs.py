"""The examples of docs/registers.md run, one after the other, as a reader would type them."""

from __future__ import annotations

import linecache
import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "registers.md"


def test_every_example_of_the_reference_page_runs() -> None:
    text = PAGE.read_text()
    namespace: dict[str, object] = {"__name__": "registers_page"}
    examples = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(examples) > 8
    linecache.checkcache(str(PAGE))
    for example in examples:
        line = text.count("\n", 0, example.start(1))
        code = compile("\n" * line + example[1], str(PAGE), "exec", dont_inherit=True)
        exec(code, namespace)


def test_the_page_mentions_every_public_policy_hook_and_reset() -> None:
    from vfio_user.pci import registers

    text = PAGE.read_text()
    policies = [name for name, value in vars(registers).items() if isinstance(value, registers.Access)]
    names = [*policies, *(kind.value for kind in registers.HookKind), *(kind.name for kind in registers.ResetKind)]
    assert len(names) > 20
    assert [name for name in names if name not in text] == []

"""The package as a whole: its public names, and its page of documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import vfio_user.pci
import vfio_user.pci.capabilities
import vfio_user.pci.registers

PAGE = Path(__file__).parents[2] / "docs" / "pci.md"


def test_registers_and_capabilities_are_offered() -> None:
    offered = set(vfio_user.pci.__all__)
    assert set(vfio_user.pci.registers.__all__) - offered == set()
    assert set(vfio_user.pci.capabilities.__all__) - offered == set()


def test_examples_run_one_after_the_other() -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 5
    names: dict[str, Any] = {"__name__": "docs"}
    for example in examples:
        exec(compile(example, str(PAGE), "exec", dont_inherit=True), names)


def test_every_capability_is_on_the_page() -> None:
    page = PAGE.read_text()
    base = vfio_user.pci.AnyCapability
    capabilities = [
        name
        for name in vfio_user.pci.__all__
        if isinstance(item := getattr(vfio_user.pci, name), type) and issubclass(item, base) and item is not base
    ]
    assert len(capabilities) > 20
    assert [name for name in capabilities if f"`{name}`" not in page] == []


def test_every_event_is_on_the_page() -> None:
    page = PAGE.read_text()
    assert [name for name in vars(vfio_user.pci.FunctionEvents()) if f"`{name}(" not in page] == []

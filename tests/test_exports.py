"""Public names: every module lists them, in order, and a package lists its modules'."""

from __future__ import annotations

import ast
import importlib
import re
from types import ModuleType

import pytest

from tests.support.source import modules

MODULES = modules()

#: Modules a user may import: no part of the name is private.
PUBLIC = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]


def load(name: str) -> ModuleType:
    """The module; a missing extra (``qemu.qmp`` for ``vfio_user.vm``) skips the test."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name and exc.name.startswith("vfio_user"):
            raise
        pytest.skip(f"{exc.name} is not installed")


def in_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """CONSTANTS, then Classes, then functions, each in natural order: BAR2 before BAR10. (Ruff sorts so, too.)"""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name.lstrip("_")[:1].isupper() else 2
    return kind, [(int(part or 0), text) for part, text in re.findall(r"(\d*)(\D+|$)", name)]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_listed_and_exist(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    if not any(not isinstance(node, ast.Expr | ast.Pass) for node in tree.body):
        return  # nothing but a docstring: a package whose names live in its modules
    module = load(name)
    listed = getattr(module, "__all__", None)
    assert isinstance(listed, list), f"{name} has no __all__"
    assert [entry for entry in listed if not hasattr(module, entry)] == []
    assert len(listed) == len(set(listed))
    assert listed == sorted(listed, key=in_order)


@pytest.mark.parametrize("name", PUBLIC)
def test_nothing_private_is_listed(name: str) -> None:
    assert [entry for entry in getattr(load(name), "__all__", []) if entry.startswith("_")] in ([], ["__version__"])

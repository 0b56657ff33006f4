"""The package's own source, as data: its modules, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
TESTS = ROOT / "tests"
PACKAGE = SRC / "vfio_user"


def module_name(path: Path) -> str:
    """``src/vfio_user/pci/rom.py`` -> ``vfio_user.pci.rom``; a package is named without its ``__init__``."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    """Every module of the package, by its name."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """What a module imports, wherever it does (line, full name): of this package by module, of others by top level.

    An import for type checking alone counts too: a lower layer that must name a higher one's types depends on it.
    """
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                # "from package import module" imports the module.
                yield node.lineno, f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base

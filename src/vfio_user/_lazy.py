"""Packages whose names are imported when they are first used.

``vfio-user serve`` is to listen about as soon as the interpreter runs, and a device that needs one capability should
not wait for twenty. A package lists its names for type checkers under ``TYPE_CHECKING``, and here by home::

    __getattr__ = lazy_names(__name__, {"machine": ["VirtualMachine"], "qemu": ["QemuCommand", "VfioUserDevice"]})

Its modules named with ``modules=`` are found as its attributes, whether or not somebody has imported them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib import import_module

__all__ = ["lazy_names"]


def lazy_names(
    package: str, homes: Mapping[str, Iterable[str]], *, modules: Collection[str] = ()
) -> Callable[[str], object]:
    """Makes the ``__getattr__`` of a package (PEP 562).

    Args:
        package: its ``__name__``.
        homes: the names to import, by the module of the package they stand in.
        modules: modules and packages in it that are attributes of it without being imported.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def __getattr__(name: str) -> object:  # noqa: N807  # it is the module's
        if name in modules:
            return import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{package}.{home_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__

"""The package imports what is used, when it is used; to who uses it, it looks as if it had all been there."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import vfio_user
from tests.support.source import SRC


def loaded_by(statements: str) -> list[str]:
    """Modules of the package a new interpreter has after these statements."""
    program = (
        f"import sys; sys.path.insert(0, {str(SRC)!r})\n{statements}\n"
        "import json; print(json.dumps([name for name in sys.modules if name.partition('.')[0] == 'vfio_user']))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    names: list[str] = json.loads(done.stdout)
    return names


def test_the_package_alone_is_next_to_nothing() -> None:
    assert set(loaded_by("import vfio_user; vfio_user.__version__")) == {
        "vfio_user",
        "vfio_user._lazy",
        "vfio_user._version",
    }


def test_an_exception_does_not_bring_devices_along() -> None:
    names = loaded_by("from vfio_user import DeviceError")
    assert "vfio_user.errors" in names
    assert "vfio_user.server" not in names


@pytest.mark.parametrize("name", vfio_user.__all__)
def test_every_name_is_what_its_home_has(name: str) -> None:
    found = getattr(vfio_user, name)
    home = getattr(found, "__module__", "vfio_user")
    assert home.startswith("vfio_user")
    assert vars(vfio_user)[name] is found


def test_packages_are_attributes_without_being_imported() -> None:
    names = loaded_by("import vfio_user; vfio_user.pci.Msi; vfio_user.server.server.Server; vfio_user.memory.Dma")
    assert "vfio_user.memory" in names


def test_a_name_there_is_not_is_an_attribute_error() -> None:
    package: Any = vfio_user
    with pytest.raises(AttributeError, match="module 'vfio_user' has no attribute 'Devise'"):
        _ = package.Devise
    assert not hasattr(package, "__wrapped__")

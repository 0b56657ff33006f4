from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from vfio_user.devices import registry
from vfio_user.devices.registry import SHIPPED, find_device, known_devices
from vfio_user.errors import DefinitionError, DeviceNotFoundError
from vfio_user.server.device import Device

ONE_DEVICE = """
from vfio_user.server.device import Device

class Lamp(Device):
    '''Shines.'''
"""


@pytest.fixture(autouse=True)
def _modules_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test works in a folder of its own and leaves no import behind."""
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith("vfio_user"):
            del sys.modules[name]


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def install(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Makes believe another package registered an entry point."""
    points = EntryPoints([EntryPoint(name, value, registry.ENTRY_POINT_GROUP)])
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: points.select(group=group))


def message(text: str) -> str:
    with pytest.raises((DeviceNotFoundError, DefinitionError)) as caught:
        find_device(text)
    return str(caught.value)


def test_the_shipped_devices_are_those_of_pyproject() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert pyproject["project"]["entry-points"][registry.ENTRY_POINT_GROUP] == SHIPPED


def test_a_shipped_name_asks_no_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    write("lamp.py", ONE_DEVICE)
    monkeypatch.setitem(SHIPPED, "lamp", "lamp:Lamp")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: pytest.fail("asked"))
    assert find_device("lamp").__name__ == "Lamp"


def test_an_installed_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    write("other_package.py", ONE_DEVICE)
    install(monkeypatch, "lamp", "other_package:Lamp")
    assert find_device("lamp").__name__ == "Lamp"
    assert [entry.name for entry in known_devices()] == [*SHIPPED, "lamp"]


def test_the_name_of_a_shipped_device_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "edu", "elsewhere:Edu")
    assert [entry.place for entry in known_devices() if entry.name == "edu"] == [SHIPPED["edu"]]


def test_a_place_in_a_module_of_the_current_folder() -> None:
    write("lamps.py", ONE_DEVICE)
    found = find_device("lamps:Lamp")
    assert issubclass(found, Device)
    assert found.__doc__ == "Shines."


@pytest.mark.parametrize("text", ["sub/socket.py", "sub/socket.py:Lamp", "./sub/socket.py"])
def test_a_place_in_a_file_whatever_its_name(text: str) -> None:
    Path("sub").mkdir()
    write("sub/socket.py", ONE_DEVICE)
    assert find_device(text).__name__ == "Lamp"
    assert not hasattr(sys.modules["socket"], "Lamp")


def test_a_file_is_imported_once() -> None:
    write("lamp.py", ONE_DEVICE)
    assert find_device("lamp.py") is find_device("./lamp.py:Lamp")


def test_a_file_finds_the_modules_beside_it() -> None:
    Path("sub").mkdir()
    write("sub/lamp_base.py", ONE_DEVICE)
    write("sub/lamp.py", "from lamp_base import Lamp\nclass Bright(Lamp): pass\n")
    assert find_device("sub/lamp.py").__name__ == "Bright"


def test_unknown_name_offers_the_nearest_and_all() -> None:
    assert message("edo") == (
        f"there is no device 'edo'; did you mean 'edu'? Known here: {', '.join(SHIPPED)}. "
        "A class of your own is given as file.py:Class or module:Class"
    )


def test_unknown_name_with_nothing_near() -> None:
    assert message("zzzz").startswith("there is no device 'zzzz'. Known here: ")


def test_underscores_are_near_dashes() -> None:
    assert "did you mean 'gpio-pci-idio-16'?" in message("gpio_pci_idio_16")


def test_missing_file_and_folder() -> None:
    assert message("nowhere.py").startswith("nowhere.py does not exist: ")
    Path("folder.py").mkdir()
    assert message("folder.py").startswith("folder.py is a folder: ")


def test_missing_module() -> None:
    assert message("no_such_module:X").startswith("no_such_module:X: there is no module 'no_such_module'.")


def test_file_with_no_device_or_several() -> None:
    write("none.py", "from vfio_user.server.device import Device\n")
    assert message("none.py").startswith("none.py defines no device: ")
    write("two.py", ONE_DEVICE + "class Torch(Device): pass\n")
    assert message("two.py") == "two.py defines 2 devices, so name one: two.py:Lamp or two.py:Torch"


def test_missing_class_offers_the_nearest() -> None:
    write("lamp.py", ONE_DEVICE)
    assert message("lamp.py:Lamb") == ("lamp.py has no class 'Lamb'; did you mean 'Lamp'? Devices in it: Lamp")
    write("empty.py", "")
    assert message("empty.py:Zebra") == "empty.py has no class 'Zebra'. There is no device in it"


def test_something_that_is_no_device() -> None:
    write("things.py", "class Chair: pass\nnumber = 5\n")
    assert message("things.py:Chair").startswith("things.py:Chair is a class, but not a device: ")
    assert message("things.py:number").startswith("things.py:number is a int, not a class: ")


def test_a_file_that_raises_is_shown_at_its_own_frames() -> None:
    write("broken.py", "def helper():\n    return 1 / 0\n\nhelper()\n")
    with pytest.raises(DefinitionError) as caught:
        find_device("broken.py")
    assert str(caught.value) == "broken.py could not be imported: ZeroDivisionError: division by zero"
    (note,) = caught.value.__notes__
    assert note.count("File ") == 2
    assert 'broken.py", line 4, in <module>' in note
    assert 'broken.py", line 2, in helper' in note
    assert "registry.py" not in note
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_file_that_failed_is_tried_again() -> None:
    write("lamp.py", "1 / 0\n")
    message("lamp.py")
    write("lamp.py", ONE_DEVICE + "# now it works\n")
    assert find_device("lamp.py").__name__ == "Lamp"


def test_a_syntax_error_is_shown_at_its_line() -> None:
    write("broken.py", "x = 1\nclass Lamp(:\n")
    with pytest.raises(DefinitionError) as caught:
        find_device("broken.py")
    assert "SyntaxError" in str(caught.value)
    assert 'broken.py", line 2' in caught.value.__notes__[0]


def test_a_module_its_file_misses_is_its_own_error() -> None:
    write("broken.py", "import no_such_module\n")
    assert message("broken.py") == (
        "broken.py could not be imported: ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_a_module_that_exits_does_not_take_us_with_it() -> None:
    write("script.py", "raise SystemExit(3)\n")
    assert message("script.py") == "script.py could not be imported: SystemExit: 3"

"""docs/series-2021.md: what it names exists; and tests of what reviewers asked for that belong to no module alone."""

from __future__ import annotations

import ast
import re
import struct
from collections.abc import Iterator

import pytest

from tests.client.scripted import ScriptedServer, message, scripted
from tests.support.doc_examples import DOCS
from tests.support.source import PACKAGE, ROOT
from vfio_user.errors import ConnectionClosedError
from vfio_user.pci.config_space import ConfigSpace
from vfio_user.protocol.constants import Command, RegionIndex
from vfio_user.regions import Region
from vfio_user.server.device import Device
from vfio_user.testing.in_process import DeviceUnderTest

PAGE = (DOCS / "series-2021.md").read_text()

TESTS = sorted(set(re.findall(r"`(tests/[\w./]+?)(?:::(\w+))?`", PAGE)))

MODULES = sorted(set(re.findall(r"`((?!tests/|src/)[\w/]+(?:\.py|/))`", PAGE)))

PATCHES = re.findall(r"^\| (\d\d) ", PAGE, re.MULTILINE)


def test_every_patch_is_answered() -> None:
    expected = [f"{number:02}" for number in [*range(1, 20), *range(1, 12)]]
    assert expected == PATCHES


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_the_tests_it_names_exist(path: str, name: str) -> None:
    assert (ROOT / path).exists()
    if name:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("module", MODULES)
def test_the_modules_it_names_exist(module: str) -> None:
    assert (PACKAGE / module).exists()


# A waiter is never missed; an error in sending is the sender's.


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted() as server:
        yield server


def test_a_reply_that_comes_before_anybody_waits_for_it(server: ScriptedServer) -> None:
    with server.connect() as connection:
        early = connection.submit(Command.DEVICE_RESET)
        server.say(message(1, Command.DEVICE_RESET))
        connection.process()  # takes it in; nobody has asked for it yet
        assert early.result(timeout=0).payload == b""
        # All of them at once, the last one waited for first.
        several = [connection.submit(Command.DEVICE_RESET) for _ in range(5)]
        server.say(b"".join(message(number, Command.DEVICE_RESET) for number in range(2, 7)))
        for each in reversed(several):
            each.result(timeout=1)


def test_an_error_in_sending_is_the_senders(server: ScriptedServer) -> None:
    with server.connect() as connection:
        server.close()
        with pytest.raises(ConnectionClosedError):
            connection.request(Command.DEVICE_RESET)
    with scripted() as another, another.connect() as connection:
        another.close()
        with pytest.raises(ConnectionClosedError):
            connection.post(0, 0, 4, 0)


# Accesses to configuration space stay whole.


class Recorder(Region):
    """A part of configuration space that notes how it is accessed."""

    def __init__(self) -> None:
        self.size = 64
        self.seen: list[tuple[str, int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append(("read", offset, size, 0))
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("write", offset, size, value))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_an_access_to_configuration_space_stays_whole(size: int) -> None:
    part, device = Recorder(), Device()
    device.set_region(RegionIndex.CONFIG, ConfigSpace(256, [(0x40, part)]))
    with DeviceUnderTest(device) as under_test:
        value = int.from_bytes(struct.pack("<I", 0x44332211)[:size], "little")
        config = under_test.client.region(RegionIndex.CONFIG)
        config.write(0x44, size, value)
        config.read(0x48, size)
    assert part.seen == [("write", 4, size, value), ("read", 8, size, 0)]

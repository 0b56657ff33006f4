from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import cast

import pytest

from tests.cli.support import agree
from vfio_user.cli.device_processes import in_processes, wait_for_an_end
from vfio_user.cli.placement import DeviceRequest
from vfio_user.devices.edu import Edu
from vfio_user.devices.gpio_pci_idio_16 import GpioPciIdio16
from vfio_user.vm.machine import VirtualMachine

EDU = (DeviceRequest("edu", {"dma_mask": "4K"}), Edu)
GPIO = (DeviceRequest("gpio-pci-idio-16"), GpioPciIdio16)


def connected(path: object) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(30)
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def test_each_device_has_a_process_and_a_socket_that_listens_already() -> None:
    with in_processes([EDU, GPIO]) as children:
        assert [child.name for child in children] == ["edu", "gpio-pci-idio-16"]
        assert len({child.process.pid for child in children} | {os.getpid()}) == 3
        for child in children:
            with connected(child.plug.socket) as connection:
                agree(connection)
        pids, folder = [child.process.pid for child in children], Path(children[0].plug.socket).parent
    assert not folder.exists()
    # They ended by themselves, having been told.
    assert [child.process.exit_code for child in children] == [0, 0]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_class_linux_would_ignore_is_shown_as_another_one() -> None:
    class Classless(Edu):
        class_code = 0

    with in_processes([(EDU[0], Classless), EDU], firmware=False) as children:
        assert [child.plug.class_code for child in children] == [0xFF0000, None]
    with in_processes([(EDU[0], Classless)]) as children:
        assert children[0].plug.class_code is None


def test_a_process_that_ends_closes_its_socket(capfd: pytest.CaptureFixture[str]) -> None:
    wrong = DeviceRequest("edu", {"dma_mask": "none"})
    with in_processes([(wrong, Edu)]) as children:
        assert children[0].process.wait(30) == 2
        with pytest.raises(ConnectionRefusedError):
            connected(children[0].plug.socket)
    assert "dma_mask" in capfd.readouterr().err


class Machine:
    """What ends when the test says so."""

    def __init__(self) -> None:
        self.here, self.there = socket.socketpair()

    def fileno(self) -> int:
        return self.here.fileno()

    def end(self) -> None:
        self.there.close()

    def close(self) -> None:
        self.here.close()
        self.there.close()


def test_who_ends_first() -> None:
    machine = Machine()
    vm = cast("VirtualMachine", machine)
    with in_processes([EDU, GPIO]) as children:
        assert wait_for_an_end(vm, children, 0) is None
        children[1].process.signal(signal.SIGKILL)
        assert wait_for_an_end(vm, children, 30) is children[1]
        assert children[1].process.wait() == -signal.SIGKILL
        machine.end()
        assert wait_for_an_end(vm, children, None) is None
    machine.close()

"""The machine and the guest's shell against a stand-in for QEMU; `tests/guest` does the same with the real one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vfio_user.errors import GuestCommandError, StateError, VmError, VmLaunchError, VmTimeoutError, VmUnavailableError
from vfio_user.vm import QemuCommand, VirtualMachine

_FAKE = Path(__file__).with_name("fake_qemu.py")

Make = Callable[..., VirtualMachine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[VirtualMachine] = []

    def machine(behaviour: str = "obey", *, reboot: bool = False, **options: object) -> VirtualMachine:
        command = QemuCommand(executable=_FAKE, reboot=reboot, extra=("-behave", behaviour))
        made.append(VirtualMachine(command, directory=tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield machine
    for vm in made:
        if vm.is_running:
            vm.stop()


def test_life(make: Make, tmp_path: Path) -> None:
    lines: list[str] = []
    with make(on_console_line=lines.append) as vm:
        assert vm.is_running
        assert vm.wait_console("second (line)", 10)[1] == "line"
        result = vm.guest.run("echo out; echo err >&2")
        assert (result.stdout, str(result), result.returncode) == ("out\nerr\n", "out\nerr", 0)
        assert (vm.guest.kernel_version, vm.guest.boot_seconds) == ("6.1.0-test", 1.25)
        assert vm.guest.run("exit 3", check=False).returncode == 3
        with pytest.raises(GuestCommandError, match="'echo why; exit 3' ended with status 3:\nwhy") as caught:
            vm.guest.run("echo why; exit 3")
        assert (caught.value.returncode, caught.value.output) == (3, "why\n")
        assert vm.guest_status != 7
        assert vm.shutdown() == 0
    assert vm.guest_status == 7
    assert lines == ["first line", "second line"]
    assert vm.console.text == "first line\nsecond line\nno end"
    assert (tmp_path / "console.log").read_bytes() == b"first line\r\nsecond line\r\nno end"
    assert vm.argv[-2:] == ["-behave", "obey"]
    assert vm.stop() == 0


def test_output_may_look_like_anything(make: Make) -> None:
    with make() as vm:
        tricky = "a\\n<<exit 1>>\\n\\n<<0-1 0>>\\n\\377"
        assert vm.guest.run(f"printf '{tricky}'").output == b"a\n<<exit 1>>\n\n<<0-1 0>>\n\xff"
        assert vm.guest.run("true").output == b""
        assert vm.guest.run("cat <<END\na 'quoted'\n\\line\nEND").stdout == "a 'quoted'\n\\line\n"
        assert len(vm.guest.run("head -c 300000 /dev/zero").output) == 300_000


def test_failing_launch(make: Make) -> None:
    with pytest.raises(VmLaunchError, match=r"QEMU ended at its start \(status 1\)") as caught:
        make("fail").launch()
    assert caught.value.exit_code == 1
    assert caught.value.output == "fake: no such device"
    assert caught.value.command[-1] == "fail"
    assert "fake: no such device" in str(caught.value)
    assert str(_FAKE) in str(caught.value)


def test_launch_that_takes_too_long(make: Make) -> None:
    vm = make("hang")
    with pytest.raises(VmTimeoutError, match=r"QEMU did not start in 0\.2 s"):
        vm.launch(timeout=0.2)
    assert not vm.is_running


def test_no_such_program() -> None:
    with pytest.raises(VmUnavailableError, match="/nowhere/qemu cannot be run: No such file"):
        VirtualMachine(QemuCommand(executable="/nowhere/qemu")).launch()


def test_panic(make: Make) -> None:
    vm = make()
    with (
        vm,
        pytest.raises(VmLaunchError, match="QEMU ended while waiting for the guest command 'crash': guest panic: a"),
    ):
        vm.guest.run("crash")
    assert vm.panic == "a crash"
    assert vm.stop() == 0  # it ended by itself


def test_panic_where_a_reboot_would_start_over(make: Make) -> None:
    with make("reboot", reboot=True) as vm:
        with pytest.raises(VmLaunchError, match="guest panic: a crash"):
            vm.guest.run("crash")
        assert vm.stop() == -signal.SIGTERM


def test_command_without_end(make: Make) -> None:
    with make() as vm:
        with pytest.raises(
            VmTimeoutError, match=r"waited 0\.1 s for the guest command 'never'; the console ends:\nfirst"
        ):
            vm.guest.run("never", timeout=0.1)
        with pytest.raises(StateError, match="the guest never ended 'never': use a new machine"):
            vm.guest.run("true")
        assert vm.shutdown() == -signal.SIGTERM  # a guest that hangs is not asked


def test_shutdown_of_a_guest_nobody_talked_to(make: Make) -> None:
    with make() as vm:
        assert vm.shutdown() == -signal.SIGTERM


def test_stubborn_machine_is_killed(make: Make) -> None:
    with make("stubborn") as vm:
        assert vm.stop(timeout=0.1) == -signal.SIGKILL


def test_waiting(make: Make) -> None:
    with make() as vm:
        with pytest.raises(VmTimeoutError, match=r"still runs after 0\.01 s; its console ends"):
            vm.wait(0.01)
        with pytest.raises(VmTimeoutError, match=r"did not say 'nothing' in 0\.01 s"):
            vm.wait_console("nothing", 0.01)
        vm.guest.wait_ready()
        vm.guest.power_off_nowait()
        assert vm.wait(10) == 0
        with pytest.raises(VmLaunchError, match="before the console said 'nothing'"):
            vm.wait_console("nothing", 0.01)


def test_wrong_order(make: Make) -> None:
    vm = make()
    for use in (lambda: vm.pid, lambda: vm.console, lambda: vm.guest, vm.stop, vm.wait, vm.shutdown):
        with pytest.raises(StateError, match="was not launched"):
            use()
    assert not vm.is_running
    vm.launch()
    with pytest.raises(StateError, match="launched before"):
        vm.launch()
    with pytest.raises(StateError, match="make its QemuCommand with reboot=True"):
        vm.guest.reboot()
    vm.stop()
    with pytest.raises(StateError, match="its QMP is gone"):
        _ = vm.qmp


def test_temporary_folder_goes_with_the_machine() -> None:
    vm = VirtualMachine(QemuCommand(executable=_FAKE, extra=("-behave", "obey"))).launch()
    folder = vm._owned_directory
    assert folder is not None
    assert (folder / "console.log").exists()
    vm.stop()
    assert not folder.exists()


def test_launched_by_a_thread_that_ends(make: Make) -> None:
    vm = make()
    thread = threading.Thread(target=vm.launch)
    thread.start()
    thread.join()
    assert vm.guest.run("echo alive").stdout == "alive\n"


def test_pci_devices_of_a_listing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = (
        "function 0000:00:02.0\nvendor 0x494f\ndevice 0x0dc8\nclass 0xff0000\nrevision 0x01\n"
        "subsystem_vendor 0x0000\nsubsystem_device 0x0001\nirq 11\ndriver pci-idio-16\n"
        "resource 0x000000000000c000 0x000000000000c0ff 0x0000000000040101\n"
        "resource 0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        "function 0000:00:03.0\nvendor 0x1234\ndevice 0x11e8\nclass 0x00ff00\nrevision 0x10\n"
        "subsystem_vendor 0x0000\nsubsystem_device 0x0001\nirq 0\n"
        "resource 0x00000000fea00000 0x00000000feafffff 0x0000000000040200\n"
    )
    monkeypatch.setattr("vfio_user.vm.guest._LIST_PCI", f"cat <<'END'\n{listing}END")
    with make() as vm:
        gpio, edu = vm.guest.pci_devices()
        assert (gpio.address, gpio.vendor_id, gpio.device_id, gpio.driver) == (
            "0000:00:02.0",
            0x494F,
            0xDC8,
            "pci-idio-16",
        )
        assert (gpio.class_code, gpio.revision, gpio.subsystem_id, gpio.irq) == (0xFF0000, 1, 1, 11)
        assert gpio.path == "/sys/bus/pci/devices/0000:00:02.0"
        bar0, bar1 = gpio.resources
        assert bar0 is not None
        assert (bar0.start, bar0.size, bar0.is_io, bar1) == (0xC000, 256, True, None)
        assert edu.driver is None
        assert edu.resources[0] is not None
        assert (edu.resources[0].size, edu.resources[0].is_io) == (1 << 20, False)
        assert vm.guest.pci_device(0x1234, 0x11E8) == edu
        with pytest.raises(VmError, match="the guest has 0 devices 1234:0000, not 1; it has 0000:00:02"):
            vm.guest.pci_device(0x1234, 0)


def test_wait_until(make: Make) -> None:
    with make() as vm:
        with pytest.raises(VmTimeoutError, match=r"'false' did not succeed in 0\.2 s; the console ends:\nfirst line"):
            vm.guest.wait_until("false", timeout=0.2)
        vm.guest.wait_until("echo x\ntrue")


def test_files(make: Make, tmp_path: Path) -> None:
    place = tmp_path / "in the guest" / "it's"
    with make() as vm:
        vm.guest.write_file(str(place), "")  # the stand-in's channel carries no payload; tests/guest writes content
        assert place.read_bytes() == b""
        place.write_bytes(b"\0\xff<<\n")
        assert vm.guest.read_file(str(place)) == b"\0\xff<<\n"
        with pytest.raises(GuestCommandError, match="No such file"):
            vm.guest.read_file("/nowhere/file")

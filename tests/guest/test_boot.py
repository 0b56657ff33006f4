"""The guest kit by itself: machines without any device of ours boot, obey, report and end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.guest.support import VmFactory
from tests.pci.test_dump import everything
from vfio_user.errors import GuestCommandError, StateError, VmError, VmLaunchError, VmTimeoutError
from vfio_user.pci import format_lspci
from vfio_user.vm import GuestKit, VfioUserDevice

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_shell(vm_factory: VmFactory, machine: str) -> None:
    vm = vm_factory(machine, modules=["nvme"])
    guest = vm.guest
    assert guest.run("echo one; echo two >&2; echo; exit 7", check=False).stdout == "one\ntwo\n\n"
    assert guest.run("exit 7", check=False).returncode == 7
    assert guest.run("uname -r").stdout == f"{vm_factory.kit.kernel_version}\n"
    assert guest.kernel_version == vm_factory.kit.kernel_version
    with pytest.raises(GuestCommandError, match=r"'ls /nowhere' ended with status 1:\nls: /nowhere: No such file"):
        guest.run("ls /nowhere")
    # Neither a syntax error, nor a quote left open, nor a script of many lines loses the shell.
    assert guest.run("if then", check=False).returncode != 0
    assert guest.run("echo 'a", check=False).returncode != 0
    assert str(guest.run("for i in 1 2\ndo\n  printf '%s\\n' \" $i\\\\\"\ndone\n")) == " 1\\\n 2\\"

    content = bytes(range(256)) * 80
    guest.write_file("/tmp/new folder/it's", content, mode=0o640)
    assert guest.read_file("/tmp/new folder/it's") == content
    assert str(guest.run('stat -c %a "/tmp/new folder/it\'s"')) == "640"

    guest.load_module("nvme")
    assert "nvme_core" in guest.run("lsmod").stdout
    guest.unload_module("nvme")
    assert "nvme" not in guest.run("lsmod").stdout

    host_bridge = guest.pci_devices()[0]
    assert (host_bridge.address, host_bridge.vendor_id, host_bridge.class_code) == ("0000:00:00.0", 0x8086, 0x060000)
    assert "Linux version" in guest.dmesg()
    assert vm.shutdown() == 0
    assert not vm.is_running


def test_main_program_reports_its_exit_status(vm_factory: VmFactory) -> None:
    # /dev/tty opens only for a session with a terminal, which is what makes Ctrl-C work for a person.
    vm = vm_factory("pc", main="tty; true </dev/tty || exit 1; echo hello from main; exit 42")
    assert vm.wait(60) == 0
    assert vm.guest_status == 42
    assert "/dev/ttyS0\nhello from main\n" in vm.console.text


def test_panic_ends_a_machine_that_does_not_reboot(vm_factory: VmFactory) -> None:
    guest = (vm := vm_factory("pc")).guest
    with pytest.raises(VmLaunchError, match="guest panic: sysrq triggered crash"):
        guest.run("echo c >/proc/sysrq-trigger")
    assert vm.panic == "sysrq triggered crash"
    assert not vm.is_running


def test_reboot_and_panic_of_a_machine_that_reboots(vm_factory: VmFactory) -> None:
    vm = vm_factory("q35", reboot=True)
    vm.guest.run("echo kept >/tmp/mark")
    pid = vm.pid
    vm.guest.reboot()
    assert vm.pid == pid
    assert vm.guest.run("cat /tmp/mark", check=False).returncode != 0  # it is a new boot

    vm.qmp.reset()
    vm.guest.expect_reset()
    vm.guest.wait_ready()

    with pytest.raises(VmLaunchError, match="guest panic: sysrq triggered crash"):
        vm.guest.run("echo c >/proc/sysrq-trigger")
    assert not vm.is_running


def test_console_and_qmp(vm_factory: VmFactory) -> None:
    vm = vm_factory("pc")
    vm.guest.run("echo 'a line of the console' >/dev/ttyS0")
    assert vm.wait_console(r"a line of the (\w+)", 10)[1] == "console"
    assert vm.qmp.execute("query-status")["running"] is True
    vm.qmp.plug({"driver": "pci-testdev", "id": "plugged"})
    vm.guest.wait_until("grep -q 1b360005 /proc/bus/pci/devices")
    assert vm.guest.pci_device(0x1B36, 0x0005).resources[0] is not None
    vm.qmp.unplug("plugged")
    with pytest.raises(VmError, match="the guest has 0 devices 1b36:0005, not 1; it has 0000:"):
        vm.guest.pci_device(0x1B36, 0x0005)
    with pytest.raises(VmError, match="Device 'nothing' not found"):
        vm.qmp.unplug("nothing")
    with pytest.raises(VmTimeoutError, match=r"'false' did not succeed in 0\.1 s"):
        vm.guest.wait_until("false", timeout=0.1)
    with pytest.raises(VmTimeoutError, match="did not say 'never'"):
        vm.wait_console("never", 0.01)
    with pytest.raises(StateError, match="reboot=True"):
        vm.guest.reboot()
    assert vm.stop() == 0


def test_command_that_does_not_end(vm_factory: VmFactory) -> None:
    vm = vm_factory("pc")
    vm.guest.wait_ready()
    with pytest.raises(VmTimeoutError, match=r"waited 0\.2 s for the guest command 'sleep 100'"):
        vm.guest.run("sleep 100", timeout=0.2)
    with pytest.raises(StateError, match="the guest never ended 'sleep 100'"):
        vm.guest.run("true")


def test_packages(vm_factory: VmFactory) -> None:
    vm = vm_factory("q35", packages=["pciutils"])
    assert "00:00.0 Host bridge [0600]: Intel Corporation" in vm.guest.run("lspci -nn").stdout
    assert str(vm.guest.run("setpci -s 00:00.0 VENDOR_ID")) == "8086"
    # And reads from a dump what our configuration space says.
    vm.guest.write_file("/tmp/dump", format_lspci(everything()))
    text = vm.guest.run("lspci -vvv -F /tmp/dump").stdout
    for line in (
        "Region 0: Memory at 1234000000 (64-bit, prefetchable)",
        "Region 2: I/O ports at c000",
        "Region 3: Memory at feb00000 (32-bit, non-prefetchable)",
        "Power Management version 3",
        "PME(D0+,D1-,D2-,D3hot+,D3cold-)",
        "MSI: Enable- Count=1/4 Maskable+ 64bit+",
        "MSI-X: Enable- Count=33 Masked-",
        "Vector table: BAR=3 offset=00000000",
        "Express (v2) Endpoint, MSI 00",
        "Speed 8GT/s, Width x4",
        "Vendor Specific Information: Len=08",
        "Capabilities: [100 v2] Advanced Error Reporting",
        "UEMsk:	DLP- SDES- TLP- FCP- CmpltTO-",
        "Device Serial Number 01-23-45-67-89-ab-cd-ef",
        "ACSCap:	SrcValid- TransBlk- ReqRedir+",
        "Address Translation Service (ATS)",
        "Max PASID Width: 10",
        "Page Request Capacity: 00000040",
        "Alternative Routing-ID Interpretation (ARI)",
        "Latency Tolerance Reporting",
        "PCI-PM_L1.2+ PCI-PM_L1.1+ ASPM_L1.2+ ASPM_L1.1+ L1_PM_Substates+",
        "PTMClockGranularity: 4ns",
        "BAR 0: current size: 16MB, supported: 1MB 16MB",
        "Transaction Processing Hints",
        "Vendor Specific Information: ID=0042 Rev=0 Len=00c",
        "Designated Vendor-Specific: Vendor=1e98 ID=0007 Rev=0 Len=12",
        "Initial VFs: 8, Total VFs: 8, Number of VFs: 0",
        "Supported Page Size: 00000553, System Page Size: 00000001",
    ):
        assert line in text, line


def test_missing_socket_is_a_launch_error(vm_factory: VmFactory, tmp_path: Path) -> None:
    socket = tmp_path / "nobody.sock"
    with pytest.raises(VmLaunchError, match="No such file or directory") as caught:
        vm_factory("pc", devices=[VfioUserDevice(socket)])
    assert caught.value.exit_code == 1
    assert str(socket) in caught.value.output
    assert str(socket) in " ".join(caught.value.command)


def test_qemu_dies_with_us(guest_kit: GuestKit) -> None:
    """Our process is killed: no handler of ours runs, and yet QEMU ends."""
    script = f"""
        import threading
        from vfio_user.vm import QemuCommand, VirtualMachine
        machines = []
        def launch():
            machines.append(VirtualMachine(QemuCommand({str(guest_kit.qemu.path)!r}, machine="pc")).launch())
        thread = threading.Thread(target=launch)
        thread.start()
        thread.join()       # the death of the thread that launched it must not end it
        assert machines[0].is_running
        print(machines[0].pid, flush=True)
        threading.Event().wait()
    """
    source = str(Path(__file__).parents[2] / "src")
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    ) as ours:
        assert ours.stdout is not None
        qemu = os.pidfd_open(int(ours.stdout.readline()))
        try:
            ours.send_signal(signal.SIGKILL)
            assert select.select([qemu], [], [], 10)[0], "QEMU outlived the process that started it"
        finally:
            os.close(qemu)

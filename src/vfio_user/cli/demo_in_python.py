"""The demonstration where no guest can run: the client of this package does what Linux and its drivers would do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from vfio_user.cli.common import NamedDevice
from vfio_user.cli.demo_report import Report
from vfio_user.cli.output import columns, wrap
from vfio_user.cli.plugged import plugged_in
from vfio_user.client.pci_function import PciFunction
from vfio_user.devices.edu import Edu
from vfio_user.devices.gpio_pci_idio_16 import GpioPciIdio16
from vfio_user.hardware.edu import BUFFER_ADDRESS, FACTORIAL_INTERRUPT, EduRegisters
from vfio_user.hardware.pci_idio_16 import Idio16Registers
from vfio_user.vm.doctor import Finding
from vfio_user.vm.qemu import format_size

__all__ = ["demonstrate"]


def demonstrate(devices: Sequence[NamedDevice], obstacles: Sequence[Finding], begun: float, *, verbose: int) -> None:
    """Drives edu and the PCI-IDIO-16 through their sockets.

    Args:
        devices: those two, in this order.
        obstacles: why there is no guest; none if nobody wanted one.
        begun: when it began, of ``time.monotonic``.
        verbose: traces messages; see ``common.new_observer``.
    """
    edu, card = devices[0].device, devices[1].device
    assert isinstance(edu, Edu)
    assert isinstance(card, GpioPciIdio16)
    out = Report()
    out.title("Two PCI devices written in Python, and a client that drives them as Linux would")
    with ExitStack() as stack:
        plugs = stack.enter_context(plugged_in(devices, verbose=verbose))
        functions = [stack.enter_context(PciFunction.connect(plug.socket)) for plug in plugs]
        _show_identity(out, functions)
        _show_edu(out, functions[0], edu)
        _show_gpio(out, functions[1], card)
    _show_obstacles(out, obstacles)
    out.end(time.monotonic() - begun)


def _show_identity(out: Report, functions: Sequence[PciFunction]) -> None:
    """What an operating system would find on its bus."""
    out.heading("The client: it speaks to the devices as QEMU does, over the same sockets")
    rows = [("ids", "class", "interrupts", "addresses")]
    for function in functions:
        kinds = [("INTx", function.intx), ("MSI", function.msi), ("MSI-X", function.msix)]
        bars = [
            f"BAR{index} {f'{bar.size} ports' if bar.is_io else f'{format_size(bar.size)} memory'}"
            for index, bar in function.bars.items()
        ]
        rows.append(
            (
                f"{function.vendor_id:04x}:{function.device_id:04x}",
                f"{function.class_code:06x}",
                ", ".join(name for name, kind in kinds if kind is not None and kind.count),
                ", ".join(bars),
            )
        )
    out.lines(columns(rows, "  "))


def _show_edu(out: Report, function: PciFunction, edu: Edu) -> None:
    """Registers, an interrupt and DMA."""
    out.heading("edu: the client's reads and writes are calls of Python methods")
    registers = function.registers(0, EduRegisters)
    registers.liveness = 0x12345678
    out.line("client", "writes 0x12345678 to the liveness register")
    out.line("client", "reads it back, inverted by the device:", f"{int(registers.liveness):#x}")
    out.python("edu.bar0.liveness", f"{int(edu.bar0.liveness):#x}")
    function.set_master()
    [interrupt] = function.enable_interrupts()
    registers.status.raise_interrupt = 1
    registers.factorial = 10
    fired = interrupt.wait()
    out.line("client", "writes 10 to the factorial register, reads:", str(int(registers.factorial)))
    out.line("client", "and was interrupted, by MSI:", f"{fired} time{'s' if fired != 1 else ''}")
    registers.interrupt_acknowledge = FACTORIAL_INTERRUPT
    _transfer(registers, function, b"from memory")
    out.line("client", "lets it read memory of the client, by DMA")
    out.python("edu.buffer", repr(bytes(edu.buffer[:11]).decode()))


def _transfer(registers: Any, function: PciFunction, data: bytes) -> None:
    buffer = function.dma_alloc(4096)
    buffer[: len(data)] = data
    registers.dma_source = buffer.iova
    registers.dma_destination = BUFFER_ADDRESS
    registers.dma_count = len(data)
    registers.dma_command.start = 1
    while registers.dma_command.start:
        pass


def _show_gpio(out: Report, function: PciFunction, card: GpioPciIdio16) -> None:
    """What Linux' driver of it does, port by port."""
    out.heading("gpio-pci-idio-16: its outputs, inputs and interrupts, port by port")
    ports = function.registers(2, Idio16Registers)
    ports.outputs_low = 1 << 3
    out.line("client", "sets output 3")
    out.python("card.outputs", f"{card.outputs:#06x}")
    [interrupt] = function.enable_intx()
    _ = int(ports.interrupt_control)  # reading it enables the interrupt
    card.set_inputs(0x0005)
    out.python("card.set_inputs(0x0005)")
    fired = interrupt.wait()
    levels = int(ports.inputs_low)
    out.line("client", "reads inputs 0 and 2", f"{levels & 1} {levels >> 2 & 1}")
    out.line("client", "was interrupted, by INTx:", f"{fired} time{'s' if fired != 1 else ''}")
    ports.inputs_low = 0  # writing anything ends the interrupt


def _show_obstacles(out: Report, obstacles: Sequence[Finding]) -> None:
    if not obstacles:
        return
    out.heading("What this machine would need to show it with an unmodified Linux in QEMU")
    for finding in obstacles:
        out.lines([wrap(f"{finding.name}: {finding.detail}", "    ", first="  ")])
        if finding.remedy:
            out.lines([out.style.dim(wrap(finding.remedy, "       ", first="    -> "))])

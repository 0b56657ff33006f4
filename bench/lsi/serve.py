"""The controller that is measured: ``python -m bench.lsi.serve SOCKET IMAGE profile|count``.

Each SIGUSR1 ends a measurement and begins the next; what it found goes to standard error.
"""

from __future__ import annotations

import cProfile
import pstats
import signal
import sys
from collections import Counter

from vfio_user import Server
from vfio_user.devices.lsi53c8xx.controller import Lsi53c895a
from vfio_user.errors import VfioUserError
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c895aRegisters
from vfio_user.protocol.constants import Command, HeaderFlags, IrqIndex, IrqSetFlags, RegionIndex
from vfio_user.protocol.header import Header, command_name
from vfio_user.protocol.irq import SetIrqs
from vfio_user.protocol.region import RegionAccess
from vfio_user.server.session import Observer

__all__ = ["main"]

_REGISTER_BARS = (RegionIndex.BAR0, RegionIndex.BAR1)


class Messages(Observer):
    """Counts messages, by what they are about."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def command(self, header: Header, payload: bytes, fds: int) -> None:
        """See ``Observer.command``."""
        posted = " (posted)" if header.flags & HeaderFlags.NO_REPLY else ""
        self.counts[_describe(header.command, payload) + posted] += 1


def _describe(command: int, payload: bytes) -> str:
    name = command_name(command)
    try:
        if command in (Command.REGION_READ, Command.REGION_WRITE):
            access = RegionAccess.decode(payload)
            index = RegionIndex(access.region)
            where = f"{index.name}+{access.offset:#x}"
            if index in _REGISTER_BARS:
                registers = Lsi53c895aRegisters.layout.registers.items()
                for register, about in registers:
                    if about.offset <= access.offset < about.end:
                        where = register
            return f"{name} {where}"
        if command == Command.DEVICE_SET_IRQS:
            flags = SetIrqs.decode(payload).flags
            return f"{name} {IrqSetFlags(flags).name}"
    except (VfioUserError, ValueError):
        pass
    return name


def main(address: str, image: str, how: str) -> None:
    """Serves until SIGTERM."""
    device = Lsi53c895a(disk0=image)
    messages = Messages() if how == "count" else None
    profiler = cProfile.Profile()
    server = Server(device, address, observer=messages)
    fired = 0

    def report(*_: object) -> None:
        nonlocal fired
        if messages is None:
            profiler.disable()
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(40)
            profiler.clear()
            print("END", file=sys.stderr, flush=True)
            profiler.enable()
            return
        now = device.interrupts.statistics().fired[IrqIndex.INTX][0]
        messages.counts["(INTx fired)"] = now - fired
        fired = now
        for what, number in messages.counts.most_common():
            print(f"COUNT {number} {what}", file=sys.stderr)
        print("END", file=sys.stderr, flush=True)
        messages.counts.clear()

    signal.signal(signal.SIGUSR1, report)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    if messages is None:
        profiler.enable()
    server.run()
    device.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""DEVICE_GET_INFO, DEVICE_GET_IRQ_INFO and DEVICE_RESET."""

from __future__ import annotations

import select
import struct

from vfio_user.protocol.constants import Command, DeviceFlags, HeaderFlags, IrqIndex, RegionIndex
from vfio_user.testing.conformance.bench import GET_INFO, Bench
from vfio_user.testing.conformance.check import DoesNotApply, Family, Risk, Unmet
from vfio_user.testing.conformance.facts import index_name

__all__ = ["INFO", "IRQ_INFO", "RESET"]

INFO = Family("info", "vfio-user, VFIO_USER_DEVICE_GET_INFO")
IRQ_INFO = Family("irq_info", "vfio-user, VFIO_USER_DEVICE_GET_IRQ_INFO")
RESET = Family("reset", "vfio-user, VFIO_USER_DEVICE_RESET")

_QEMU = "practice (QEMU's client requires it)"


def _info(bench: Bench, payload: bytes = GET_INFO) -> tuple[int, int, int, int]:
    reply = bench.succeeds(Command.DEVICE_GET_INFO, payload)
    if len(reply) < 16:
        raise Unmet(f"a payload of {len(reply)} bytes")
    argsz, flags, num_regions, num_irqs = struct.unpack_from("<IIII", reply)
    return argsz, flags, num_regions, num_irqs


@INFO.check("size", "16 bytes of payload, no more: QEMU and SPDK read no more", clause=_QEMU)
def _(bench: Bench) -> str:
    return f"{len(bench.succeeds(Command.DEVICE_GET_INFO, GET_INFO, 16))} bytes"


@INFO.check("argsz", "argsz 16 in the reply")
def _(bench: Bench) -> str:
    argsz = _info(bench)[0]
    if argsz != 16:
        raise Unmet(f"argsz {argsz}")
    return "16"


@INFO.check("pci", "flag PCI", clause=_QEMU)
def _(bench: Bench) -> str:
    flags = _info(bench)[1]
    if not flags & DeviceFlags.PCI:
        raise Unmet(f"flags {flags:#x}")
    return f"flags {flags:#x}"


@INFO.check("flags", "no other flags than RESET and PCI", advised=True)
def _(bench: Bench) -> str:
    flags = _info(bench)[1]
    if flags & ~3:
        raise Unmet(f"flags {flags:#x}")
    return f"flags {flags:#x}"


@INFO.check("num_regions", "at least 9, at most 100 region indexes")
def _(bench: Bench) -> str:
    count = _info(bench)[2]
    if not 9 <= count <= 100:
        raise Unmet(f"{count}")
    return f"{count}"


@INFO.check(
    "num_regions-exact",
    "9, or 10 with a migration region: more overrun SPDK",
    clause="practice (SPDK, libvfio-user)",
    advised=True,
)
def _(bench: Bench) -> str:
    count = _info(bench)[2]
    if count not in (9, 10):
        raise Unmet(f"{count}")
    return f"{count}"


@INFO.check("num_irqs", "at least 5, at most 50 interrupt indexes")
def _(bench: Bench) -> str:
    count = _info(bench)[3]
    if not 5 <= count <= 50:
        raise Unmet(f"{count}")
    return f"{count}"


@INFO.check("twice", "the same answer twice")
def _(bench: Bench) -> str:
    first, second = _info(bench), _info(bench)
    if first != second:
        raise Unmet(f"{first}, then {second}")
    return "the same"


for _name, _payload, _why in (
    ("argsz-32", struct.pack("<IIII", 32, 0, 0, 0), "argsz 32, as the rust client says"),
    ("argsz-huge", struct.pack("<IIII", 0xFFFF_FFFF, 0, 0, 0), "more room than there is to fill"),
    ("long", GET_INFO + bytes(16), "a payload longer than it need be"),
    ("reserved", struct.pack("<IIII", 16, 0xFFFF_FFFF, 7, 9), "rubbish in what the reply fills"),
):

    def _accepted(bench: Bench, payload: bytes = _payload) -> str:
        return f"{len(bench.succeeds(Command.DEVICE_GET_INFO, payload, 16))} bytes"

    INFO.add(f"accepts[{_name}]", f"{_why}: answered", _accepted, advised=_name == "reserved")
for _argsz in (0, 15):
    INFO.refuses(f"argsz-{_argsz}", "argsz under 16", Command.DEVICE_GET_INFO, struct.pack("<IIII", _argsz, 0, 0, 0))
for _length in (4, 8, 15):
    INFO.refuses(f"short[{_length}]", "a payload under 16 bytes", Command.DEVICE_GET_INFO, GET_INFO[:_length])


# Interrupts.


def _irq(bench: Bench, index: int, argsz: int = 16) -> tuple[int, int, int]:
    """argsz, flags and count of an index that must be answered for."""
    reply = bench.succeeds(Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", argsz, 0, index, 0), 16)
    found, flags, at, count = struct.unpack("<IIII", reply)
    if at != index:
        raise Unmet(f"it was answered for {index_name(IrqIndex, at)}")
    return found, flags, count


def _about_each(index: IrqIndex) -> None:
    def answered(bench: Bench) -> str:
        return f"{_irq(bench, index)[2]} vectors"

    def argsz(bench: Bench) -> str:
        found = _irq(bench, index)[0]
        if found != 16:
            raise Unmet(f"argsz {found}")
        return "16"

    def flags(bench: Bench) -> str:
        _, found, count = _irq(bench, index)
        if found & ~0xF or (count and not found & 1):
            raise Unmet(f"flags {found:#x} with {count} vectors")
        return f"flags {found:#x}"

    def limit(bench: Bench) -> str:
        count = _irq(bench, index)[2]
        most = {IrqIndex.MSI: 32, IrqIndex.MSIX: 2048}.get(index, 1)
        if count > most:
            raise Unmet(f"{count} vectors")
        return f"{count} vectors"

    name = index.name
    IRQ_INFO.add(f"answered[{name}]", "16 bytes about that index; no vectors is a success, too", answered)
    IRQ_INFO.add(f"argsz[{name}]", "argsz 16 in the reply", argsz)
    IRQ_INFO.add(f"flags[{name}]", "known flags, EVENTFD where there are vectors", flags)
    IRQ_INFO.add(f"count[{name}]", "no more vectors than PCI has", limit)


for _index in IrqIndex:
    _about_each(_index)


def _capability(bench: Bench, wanted: int) -> int:
    """Where a capability is in configuration space."""
    config = bench.facts.config
    if len(config) < 256:
        raise DoesNotApply("configuration space cannot be read")
    at, seen = config[0x34] & ~3 if config[6] & 0x10 else 0, set()
    while at and at not in seen:
        seen.add(at)
        if config[at] == wanted:
            return at
        at = config[at + 1] & ~3
    raise DoesNotApply(f"configuration space has no capability {wanted:#x}")


@IRQ_INFO.check(
    "msix-table",
    "as many MSI-X vectors as the capability's table has",
    clause="PCI 3.0, 6.8.2; vfio-user, VFIO_USER_DEVICE_GET_IRQ_INFO",
)
def _(bench: Bench) -> str:
    at = _capability(bench, 0x11)
    size = (int.from_bytes(bench.facts.config[at + 2 : at + 4], "little") & 0x7FF) + 1
    count = _irq(bench, IrqIndex.MSIX)[2]
    if count != size:
        raise Unmet(f"{count} vectors, and a table of {size}")
    return f"{count} vectors"


@IRQ_INFO.check(
    "msi-vectors",
    "as many MSI vectors as the capability is capable of",
    clause="PCI 3.0, 6.8.1; vfio-user, VFIO_USER_DEVICE_GET_IRQ_INFO",
    advised=True,
)
def _(bench: Bench) -> str:
    at = _capability(bench, 0x05)
    capable = 1 << (bench.facts.config[at + 2] >> 1 & 7)
    count = _irq(bench, IrqIndex.MSI)[2]
    if count != capable:
        raise Unmet(f"{count} vectors, and a capability of {capable}")
    return f"{count} vectors"


@IRQ_INFO.check(
    "intx-pin",
    "one INTx vector if the interrupt pin says there is one, else none",
    clause="PCI 3.0, 6.2.4; vfio-user, VFIO_USER_DEVICE_GET_IRQ_INFO",
)
def _(bench: Bench) -> str:
    if len(bench.facts.config) < 256:
        raise DoesNotApply("configuration space cannot be read")
    pin, count = bench.facts.config[0x3D], _irq(bench, IrqIndex.INTX)[2]
    if bool(pin) != bool(count):
        raise Unmet(f"pin {pin}, and {count} vectors")
    return f"pin {pin}, {count} vectors"


for _name, _payload, _why in (
    ("argsz-64", struct.pack("<IIII", 64, 0, 0, 0), "more room than needed"),
    ("long", struct.pack("<IIII", 16, 0, 0, 0) + bytes(48), "a payload longer than it need be"),
):

    def _accepted_irq(bench: Bench, payload: bytes = _payload) -> str:
        return f"{len(bench.succeeds(Command.DEVICE_GET_IRQ_INFO, payload, 16))} bytes"

    IRQ_INFO.add(f"accepts[{_name}]", f"{_why}: answered", _accepted_irq)
for _argsz in (0, 15):
    IRQ_INFO.refuses(
        f"argsz-{_argsz}", "argsz under 16", Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", _argsz, 0, 0, 0)
    )
for _length in (4, 15):
    IRQ_INFO.refuses(
        f"short[{_length}]", "a payload under 16 bytes", Command.DEVICE_GET_IRQ_INFO, bytes([16]) + bytes(_length - 1)
    )
IRQ_INFO.refuses(
    "no-such-index",
    "one index beyond the last",
    Command.DEVICE_GET_IRQ_INFO,
    lambda facts: struct.pack("<IIII", 16, 0, facts.num_irqs, 0),
)
for _beyond in (100, 0xFFFF_FFFF):
    IRQ_INFO.refuses(
        f"no-such-index[{_beyond:#x}]",
        "there is no such index",
        Command.DEVICE_GET_IRQ_INFO,
        struct.pack("<IIII", 16, 0, _beyond, 0),
    )


# Reset.


def _reset(bench: Bench) -> None:
    bench.succeeds(Command.DEVICE_RESET, b"", 0)


@RESET.check("answered", "a success, a header alone", risk=Risk.RESET)
def _(bench: Bench) -> str:
    _reset(bench)
    return "a header alone"


@RESET.check("twice", "one reset after another", risk=Risk.RESET)
def _(bench: Bench) -> str:
    _reset(bench)
    _reset(bench)
    return "both answered"


@RESET.check("goes-on", "the connection goes on, and the device is the same", risk=Risk.RESET)
def _(bench: Bench) -> str:
    before = _info(bench)
    _reset(bench)
    after = _info(bench)
    if before != after:
        raise Unmet(f"{before}, then {after}")
    return "the same"


@RESET.check("no-reply", "with flag No_reply it is not answered", risk=Risk.RESET)
def _(bench: Bench) -> str:
    bench.peer.send(Command.DEVICE_RESET, flags=HeaderFlags.NO_REPLY)
    probe = bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO)
    if bench.peer.receive().header.message_id != probe:
        bench.peer.is_out_of_step = True
        raise Unmet("it was answered")
    return "nothing came"


@RESET.check("keeps-mappings", "DMA mappings stay: QEMU does not map again", risk=Risk.RESET, clause=_QEMU)
def _(bench: Bench) -> str:
    with bench.mapped(0x4000_0000, 0x1000):
        _reset(bench)
        unmap = struct.pack("<IIQQ", 24, 0, 0x4000_0000, 0x1000)
        message = bench.ask(Command.DMA_UNMAP, unmap)
    if message.is_error:
        raise Unmet(f"then DMA_UNMAP got {message}")
    return "it could be unmapped"


@RESET.check("keeps-eventfds", "eventfds of interrupts stay connected", risk=Risk.RESET, clause=_QEMU)
def _(bench: Bench) -> str:
    irq = bench.facts.vectors()
    (fd,) = bench.eventfds(1)
    bench.succeeds(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x24, irq.index, 0, 1), fds=[fd])
    _reset(bench)
    bench.succeeds(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, irq.index, 0, 1))
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    has_fired = bool(poll.poll(min(bench.peer.timeout, 0.5) * 1000))
    bench.ask(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, irq.index, 0, 0))
    if not has_fired:
        raise Unmet("the vector does not fire its eventfd any more")
    return "the vector fires its eventfd still"


@RESET.check("resets-command", "the command register is 0 again", risk=Risk.RESET, clause="PCI 3.0, 6.2.2")
def _(bench: Bench) -> str:
    bench.facts.region(RegionIndex.CONFIG)
    write = struct.pack("<QIIH", 4, RegionIndex.CONFIG, 2, 7)
    bench.succeeds(Command.REGION_WRITE, write)
    _reset(bench)
    value = bench.succeeds(Command.REGION_READ, struct.pack("<QII", 4, RegionIndex.CONFIG, 2))[16:]
    if int.from_bytes(value, "little") & 7:
        raise Unmet(f"{int.from_bytes(value, 'little'):#x}")
    return "it is"

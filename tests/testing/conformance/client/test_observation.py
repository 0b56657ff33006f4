"""For every rule of a client, one that breaks it is noticed; one that keeps it is not."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import pytest

from tests.testing.conformance.devices import Rich
from vfio_user.protocol.constants import Command, DeviceFlags, HeaderFlags
from vfio_user.protocol.dma import DmaRead, DmaWrite
from vfio_user.protocol.header import HEADER, Header, command_header
from vfio_user.regions import MemoryRegion
from vfio_user.testing.conformance.bench import GET_INFO, PROPOSAL, version_payload
from vfio_user.testing.conformance.check import Outcome
from vfio_user.testing.conformance.client import RULES, Observation, RogueServer
from vfio_user.testing.conformance.endpoint import DeviceEndpoint, HungUp
from vfio_user.transport.channel import ANCILLARY_SIZE, ancillary_fds, send_some
from vfio_user.transport.memory import MemoryChannel, memory_pair


class MemoryWire:
    carries_fds, pause = True, 0.0

    def __init__(self, channel: MemoryChannel) -> None:
        self.channel = channel

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        send_some(self.channel, [data], fds)

    def receive(self, timeout: float) -> tuple[bytes, list[int]] | None:
        room = bytearray(1 << 18)
        try:
            count, ancdata, flags, _ = self.channel.recvmsg_into([room], ANCILLARY_SIZE)
        except BlockingIOError:
            return None
        if not count:
            raise HungUp("the connection was closed")
        return bytes(room[:count]), ancillary_fds(ancdata, flags)

    def close(self) -> None:
        self.channel.close()


class WriteOnlyRegion(MemoryRegion):
    readable = False


class Observed(Rich):
    """Also has what can only be read, and what can only be written."""

    def __init__(self) -> None:
        super().__init__()
        self.set_region(8, WriteOnlyRegion(4096))


class Raw:
    """A client that sends what a test wants it to."""

    def __init__(self) -> None:
        self.device = Observed()
        self.endpoint = DeviceEndpoint(self.device)
        self.observation = Observation(self.device)
        ours, theirs = memory_pair()
        self.wire = MemoryWire(ours)
        self.server = RogueServer(MemoryWire(theirs), self.endpoint.connect(0.0), self.observation)
        self.next_id = 10
        self.fds: list[int] = []

    def agree(self, capabilities: object = PROPOSAL) -> Self:
        self.send(Command.VERSION, version_payload(capabilities))
        return self

    def put(self, data: bytes, fds: Sequence[int] = ()) -> Self:
        self.wire.send(data, fds)
        self.server.turn(0.0)
        return self

    def send(
        self,
        command: int,
        payload: bytes = b"",
        *,
        fds: int = 0,
        flags: int = 0,
        error: int = 0,
        number: int | None = None,
    ) -> Self:
        self.next_id += 1
        header = HEADER.pack(self.next_id if number is None else number, command, 16 + len(payload), flags, error)
        self.put(header + payload, [self.fd() for _ in range(fds)])
        return self

    def fd(self) -> int:
        self.fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return self.fds[-1]

    def asked(self, command: int, body: bytes = b"", number: int = 0x900) -> Self:
        """The device's side asks the client for something."""
        header = command_header(number, command, len(body))
        self.observation.asked(Header.decode(header), body)
        return self

    def answer(
        self, command: int, payload: bytes = b"", *, flags: int = 1, error: int = 0, number: int = 0x900
    ) -> Self:
        self.send(command, payload, flags=flags, error=error, number=number)
        return self

    def hang_up(self) -> Self:
        self.wire.close()
        self.server.turn(0.0)
        return self

    def outcome(self, rule: str) -> Outcome:
        return {result.check.name: result for result in self.observation.results()}[rule].outcome

    def close(self) -> None:
        self.wire.close()
        self.server.close()
        self.endpoint.close()
        for fd in self.fds:
            os.close(fd)
        self.__dict__.clear()  # the device's memory goes when nobody knows it any more


@pytest.fixture
def raw() -> Iterator[Raw]:
    client = Raw()
    yield client
    client.close()


def _map(iova: int = 0, size: int = 4096, flags: int = 3, offset: int = 0, argsz: int = 32) -> bytes:
    return struct.pack("<IIQQQ", argsz, flags, offset, iova, size)


def _irqs(flags: int, index: int = 2, start: int = 0, count: int = 1, data: bytes = b"") -> bytes:
    return struct.pack("<IIIII", 20 + len(data), flags, index, start, count) + data


def _access(offset: int, region: int, count: int) -> bytes:
    return struct.pack("<QII", offset, region, count)


def _multi(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<Q", len(entries)) + b"".join(struct.pack("<QIIQ", *entry, 0) for entry in entries)


Act = Callable[[Raw], object]

_INFO = Command.DEVICE_GET_INFO
_REGION = Command.DEVICE_GET_REGION_INFO
_IRQS = Command.DEVICE_SET_IRQS
_PAGE_MAP = _map()

#: Rule, whether a version is agreed on first, what breaks it, and what keeps it.
TABLE: list[tuple[str, bool, Act, Act]] = [
    ("header.size", True, lambda c: c.put(HEADER.pack(1, 4, 15, 0, 0)), lambda c: c.send(_INFO, GET_INFO)),
    ("header.type", True, lambda c: c.send(_INFO, GET_INFO, flags=7), lambda c: c.send(_INFO, GET_INFO)),
    ("header.reserved-flags", True, lambda c: c.send(_INFO, GET_INFO, flags=0x40), lambda c: c.send(_INFO, GET_INFO)),
    (
        "header.error-flag",
        True,
        lambda c: c.send(_INFO, GET_INFO, flags=HeaderFlags.ERROR),
        lambda c: c.send(_INFO, GET_INFO),
    ),
    ("header.error-field", True, lambda c: c.send(_INFO, GET_INFO, error=5), lambda c: c.send(_INFO, GET_INFO)),
    ("header.command", True, lambda c: c.send(Command.DMA_READ, bytes(16)), lambda c: c.send(_INFO, GET_INFO)),
    (
        "header.id-in-use",
        True,
        lambda c: c.put(2 * (command_header(7, 4, 16) + GET_INFO)),
        lambda c: c.send(_INFO, GET_INFO),
    ),
    (
        "header.no-reply",
        True,
        lambda c: c.send(_INFO, GET_INFO, flags=0x10),
        lambda c: c.send(Command.REGION_WRITE, _access(0, 7, 1) + b"\0", flags=0x10),
    ),
    (
        "header.whole-header",
        True,
        lambda c: [c.put(command_header(7, 13, 0)[:9]), c.put(command_header(7, 13, 0)[9:])],
        lambda c: c.send(_INFO, GET_INFO),
    ),
    (
        "header.ends-whole",
        True,
        lambda c: [c.put(b"abc"), c.hang_up()],
        lambda c: [c.hang_up()],
    ),
    ("version.first", False, lambda c: c.send(_INFO, GET_INFO), lambda c: c.agree()),
    ("version.once", True, lambda c: c.agree(), lambda c: c.send(_INFO, GET_INFO)),
    (
        "version.waits",
        False,
        lambda c: c.put(command_header(7, 1, 4) + bytes(4) + command_header(8, 4, 16) + GET_INFO),
        lambda c: [c.agree(), c.send(_INFO, GET_INFO)],
    ),
    ("version.form", False, lambda c: c.send(1, bytes(4) + b"{}"), lambda c: c.agree()),
    ("version.major", False, lambda c: c.send(1, version_payload({}, major=1)), lambda c: c.agree()),
    ("version.capabilities", False, lambda c: c.agree({"max_msg_fds": "8"}), lambda c: c.agree()),
    ("version.no-fds", False, lambda c: c.send(1, version_payload({}), fds=1), lambda c: c.agree()),
    ("fds.where", True, lambda c: c.send(_INFO, GET_INFO, fds=1), lambda c: c.send(_IRQS, _irqs(0x24), fds=1)),
    (
        "fds.how-many",
        True,
        lambda c: c.send(_IRQS, _irqs(0x24, count=17), fds=17),
        lambda c: c.send(_IRQS, _irqs(0x24, count=16), fds=16),
    ),
    ("info.form", True, lambda c: c.send(_INFO, bytes(16)), lambda c: c.send(_INFO, GET_INFO)),
    (
        "region_info.form",
        True,
        lambda c: c.send(_REGION, bytes(32)),
        lambda c: c.send(_REGION, struct.pack("<IIIIQQ", 32, 0, 2, 0, 0, 0)),
    ),
    (
        "region_info.index",
        True,
        lambda c: c.send(_REGION, struct.pack("<IIIIQQ", 32, 0, 9, 0, 0, 0)),
        lambda c: c.send(_REGION, struct.pack("<IIIIQQ", 32, 0, 8, 0, 0, 0)),
    ),
    (
        "region_info.room",
        True,
        lambda c: [c.send(_REGION, struct.pack("<IIIIQQ", argsz, 0, 2, 0, 0, 0)) for argsz in (32, 40)],
        lambda c: [c.send(_REGION, struct.pack("<IIIIQQ", argsz, 0, 2, 0, 0, 0)) for argsz in (32, 64)],
    ),
    (
        "io_fds.form",
        True,
        lambda c: c.send(6, struct.pack("<IIII", 16, 1, 0, 0)),
        lambda c: c.send(6, struct.pack("<IIII", 16, 0, 0, 0)),
    ),
    (
        "io_fds.index",
        True,
        lambda c: c.send(6, struct.pack("<IIII", 16, 0, 9, 0)),
        lambda c: c.send(6, struct.pack("<IIII", 16, 0, 0, 0)),
    ),
    ("irq_info.form", True, lambda c: c.send(7, struct.pack("<IIII", 15, 0, 0, 0)), lambda c: c.send(7, GET_INFO)),
    ("irq_info.index", True, lambda c: c.send(7, struct.pack("<IIII", 16, 0, 5, 0)), lambda c: c.send(7, GET_INFO)),
    (
        "set_irqs.form",
        True,
        lambda c: c.send(_IRQS, _irqs(0x21 | 0x10)),
        lambda c: c.send(_IRQS, _irqs(0x22, data=b"\0")),
    ),
    ("set_irqs.index", True, lambda c: c.send(_IRQS, _irqs(0x21, index=5)), lambda c: c.send(_IRQS, _irqs(0x21))),
    (
        "set_irqs.range",
        True,
        lambda c: c.send(_IRQS, _irqs(0x21, start=19, count=2)),
        lambda c: c.send(_IRQS, _irqs(0x21, start=19)),
    ),
    (
        "set_irqs.none",
        True,
        lambda c: c.send(_IRQS, _irqs(0x24, count=0)),
        lambda c: c.send(_IRQS, _irqs(0x21, count=0)),
    ),
    (
        "set_irqs.fds",
        True,
        lambda c: c.send(_IRQS, _irqs(0x24, count=2), fds=1),
        lambda c: c.send(_IRQS, _irqs(0x24), fds=1),
    ),
    ("dma_map.form", True, lambda c: c.send(2, _map(argsz=31)), lambda c: c.send(2, _PAGE_MAP)),
    ("dma_map.flags", True, lambda c: c.send(2, _map(flags=0x13)), lambda c: c.send(2, _PAGE_MAP)),
    ("dma_map.mode", True, lambda c: c.send(2, _map(flags=7)), lambda c: c.send(2, _PAGE_MAP)),
    ("dma_map.one-fd", True, lambda c: c.send(2, _PAGE_MAP, fds=2), lambda c: c.send(2, _PAGE_MAP)),
    (
        "dma_map.range",
        True,
        lambda c: c.send(2, _map(iova=(1 << 64) - 4096, size=8192)),
        lambda c: c.send(2, _PAGE_MAP),
    ),
    ("dma_map.pages", True, lambda c: c.send(2, _map(size=100)), lambda c: c.send(2, _PAGE_MAP)),
    (
        "dma_map.apart",
        True,
        lambda c: [c.send(2, _map(size=8192)), c.send(2, _map(iova=4096))],
        lambda c: [c.send(2, _PAGE_MAP), c.send(2, _PAGE_MAP), c.send(2, _map(iova=4096))],
    ),
    (
        "dma_map.how-many",
        True,
        lambda c: [_few_maps(c), c.send(2, _PAGE_MAP), c.send(2, _map(iova=8192))],
        lambda c: c.send(2, _PAGE_MAP),
    ),
    (
        "dma_unmap.form",
        True,
        lambda c: c.send(3, struct.pack("<IIQQ", 24, 3, 0, 0)),
        lambda c: c.send(3, struct.pack("<IIQQ", 24, 2, 0, 0)),
    ),
    (
        "dma_unmap.exact",
        True,
        lambda c: [c.send(2, _map(size=8192)), c.send(3, struct.pack("<IIQQ", 24, 0, 0, 4096))],
        lambda c: [c.send(2, _PAGE_MAP), c.send(3, struct.pack("<IIQQ", 24, 0, 0, 4096))],
    ),
    ("region_read.form", True, lambda c: c.send(9, bytes(15)), lambda c: c.send(9, _access(0, 7, 4))),
    ("region_read.inside", True, lambda c: c.send(9, _access(254, 7, 4096)), lambda c: c.send(9, _access(0, 7, 4))),
    (
        "region_read.limit",
        True,
        lambda c: c.send(9, _access(0, 7, (1 << 20) + 1)),
        lambda c: c.send(9, _access(0, 7, 4)),
    ),
    ("region_read.flags", True, lambda c: c.send(9, _access(0, 8, 4)), lambda c: c.send(9, _access(0, 7, 4))),
    (
        "region_write.form",
        True,
        lambda c: c.send(10, _access(0, 7, 4) + bytes(3)),
        lambda c: c.send(10, _access(0, 7, 4) + bytes(4)),
    ),
    (
        "region_write.inside",
        True,
        lambda c: c.send(10, _access(0, 99, 4) + bytes(4)),
        lambda c: c.send(10, _access(0, 7, 4) + bytes(4)),
    ),
    (
        "region_write.limit",
        True,
        lambda c: c.send(10, _access(0, 7, (1 << 20) + 1) + bytes(4)),
        lambda c: c.send(10, _access(0, 7, 4) + bytes(4)),
    ),
    (
        "region_write.flags",
        True,
        lambda c: c.send(10, _access(0, 6, 4) + bytes(4)),
        lambda c: c.send(10, _access(0, 7, 4) + bytes(4)),
    ),
    (
        "write_multi.agreed",
        False,
        lambda c: [c.agree({}), c.send(15, _multi((0, 7, 1)))],
        lambda c: [c.agree(), c.send(15, _multi((0, 7, 1)))],
    ),
    ("write_multi.form", True, lambda c: c.send(15, _multi((0, 7, 9))), lambda c: c.send(15, _multi((0, 7, 8)))),
    ("write_multi.inside", True, lambda c: c.send(15, _multi((0, 77, 1))), lambda c: c.send(15, _multi((0, 7, 1)))),
    ("reset.form", True, lambda c: c.send(13, b"1"), lambda c: c.send(13)),
    ("reset.offered", True, lambda c: [_no_reset(c), c.send(13)], lambda c: c.send(13)),
    (
        "feature.form",
        True,
        lambda c: c.send(16, struct.pack("<II", 16, 1)),
        lambda c: c.send(16, struct.pack("<II", 16, 0x10001)),
    ),
    (
        "mig_data.form",
        True,
        lambda c: c.send(17, struct.pack("<II", 8, 64)),
        lambda c: c.send(18, struct.pack("<II", 9, 1) + b"x"),
    ),
    (
        "dirty_pages.form",
        True,
        lambda c: c.send(14, struct.pack("<II", 8, 3)),
        lambda c: c.send(14, struct.pack("<II", 8, 1)),
    ),
    (
        "reply.asked-for",
        True,
        lambda c: c.answer(11),
        lambda c: [c.asked(11, DmaRead(0, 4).encode()), c.answer(11, flags=0x21, error=19)],
    ),
    (
        "reply.command",
        True,
        lambda c: [c.asked(11, DmaRead(0, 4).encode()), c.answer(12, flags=0x21, error=19)],
        lambda c: [c.asked(11, DmaRead(0, 4).encode()), c.answer(11, flags=0x21, error=19)],
    ),
    (
        "reply.error-form",
        True,
        lambda c: [c.asked(11, DmaRead(0, 4).encode()), c.answer(11, flags=0x21)],
        lambda c: [c.asked(11, DmaRead(0, 4).encode()), c.answer(11, flags=0x21, error=19)],
    ),
    (
        "dma_read.reply",
        True,
        lambda c: [c.asked(11, DmaRead(0, 4).encode()), c.answer(11, struct.pack("<QQ", 0, 8) + bytes(8))],
        lambda c: [c.asked(11, DmaRead(0, 4).encode()), c.answer(11, struct.pack("<QQ", 0, 4) + bytes(4))],
    ),
    (
        "dma_write.reply",
        True,
        lambda c: [c.asked(12, DmaWrite(0, b"1234").encode()), c.answer(12, struct.pack("<QQ", 4, 4))],
        lambda c: [c.asked(12, DmaWrite(0, b"1234").encode()), c.answer(12, struct.pack("<QQ", 0, 4))],
    ),
    (
        "reply.unknown-command",
        True,
        lambda c: [c.asked(99), c.answer(99)],
        lambda c: [c.asked(99), c.answer(99, flags=0x21, error=38)],
    ),
]


def _no_reset(client: Raw) -> Raw:
    client.device.flags = DeviceFlags.PCI
    return client


def _few_maps(client: Raw) -> Raw:
    """The server has said that it keeps one mapping."""
    from dataclasses import replace

    client.observation._offer = replace(client.observation._offer, max_dma_maps=1)
    return client


@pytest.mark.parametrize(("rule", "agreed", "breaks", "keeps"), TABLE, ids=[row[0] for row in TABLE])
def test_a_client_that_breaks_a_rule(raw: Raw, rule: str, agreed: bool, breaks: Act, keeps: Act) -> None:
    if agreed:
        raw.agree()
    breaks(raw)
    advised = next(check.advised for check in RULES if check.name == rule)
    assert raw.outcome(rule) is (Outcome.DIFFERS if advised else Outcome.FAILED)


@pytest.mark.parametrize(("rule", "agreed", "breaks", "keeps"), TABLE, ids=[row[0] for row in TABLE])
def test_a_client_that_keeps_it(raw: Raw, rule: str, agreed: bool, breaks: Act, keeps: Act) -> None:
    if agreed:
        raw.agree()
    keeps(raw)
    assert raw.outcome(rule) is Outcome.PASSED


def test_every_rule_is_in_the_table() -> None:
    assert sorted(row[0] for row in TABLE) == sorted(rule.name for rule in RULES)


def test_what_a_client_never_did_does_not_apply(raw: Raw) -> None:
    assert raw.outcome("dma_map.flags") is Outcome.DOES_NOT_APPLY


def test_the_next_client_begins_anew(raw: Raw) -> None:
    raw.agree()
    raw.send(Command.DMA_MAP, _PAGE_MAP)
    raw.observation.begin()
    raw.agree()
    raw.send(Command.DMA_MAP, _map(size=8192))
    assert raw.outcome("version.once") is Outcome.PASSED
    assert raw.outcome("dma_map.apart") is Outcome.PASSED


def test_mappings_change_in_the_order_of_commands_not_of_replies(raw: Raw) -> None:
    """QEMU takes a range back, and maps another in its place, without waiting."""
    raw.agree()
    unmap = struct.pack("<IIQQ", 24, 0, 0, 4096)
    raw.put(
        command_header(1, 2, 32)
        + _PAGE_MAP
        + command_header(2, 3, 24)
        + unmap
        + command_header(3, 2, 32)
        + _map(size=8192)
    )
    assert raw.outcome("dma_map.apart") is Outcome.PASSED
    assert raw.outcome("dma_unmap.exact") is Outcome.PASSED


def test_a_refused_command_changes_no_mapping(raw: Raw) -> None:
    raw.agree()
    raw.send(Command.DMA_MAP, _map(flags=0x13))  # refused: it may come again
    raw.send(Command.DMA_MAP, _map(size=8192))
    assert raw.outcome("dma_map.apart") is Outcome.PASSED

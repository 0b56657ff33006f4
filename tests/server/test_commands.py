"""What each command answers, and the known quirks of clients: one test a row of the table of clients."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Iterator, Sequence

import pytest

from tests.support.fds import close_all, memory_file
from tests.support.raw_client import RawClient, access, memory_session, message
from vfio_user.protocol.constants import Command, IrqIndex
from vfio_user.protocol.header import Header
from vfio_user.protocol.region import ACCESS
from vfio_user.regions import CallbackRegion, MemoryRegion
from vfio_user.server.commands import COMMANDS
from vfio_user.server.device import Device
from vfio_user.testing.leaks import leaked_since, open_files

MIB = 1 << 20
REGION_INFO = struct.Struct("<IIIIQQ")
INFO = struct.Struct("<IIII")

#: The text QEMU 11.1.3 sends, to the byte.
QEMU_TEXT = (
    b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, '
    b'"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}\0'
)
#: The text of the rust client (cloud-hypervisor).
RUST_TEXT = b'{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}\0'


class Resettable(Device):
    """Counts its resets."""

    def __init__(self) -> None:
        super().__init__(irqs={IrqIndex.INTX: 1, IrqIndex.MSI: 4, IrqIndex.MSIX: 20})
        self.resets = 0
        self.set_region(0, MemoryRegion(0x1000))
        self.set_region(2, CallbackRegion(0x100, read=lambda offset, size: offset))
        self.set_region(4, CallbackRegion(0x100, write=lambda *_: None))
        self.set_region(6, MemoryRegion(0x800, readonly=True, contents=b"\x55\xaa"))
        self.set_region(7, MemoryRegion(0x1000, contents=bytes(range(256)) * 16))

    def on_reset(self, kind: object) -> None:
        self.resets += 1


@pytest.fixture
def device() -> Resettable:
    return Resettable()


@pytest.fixture
def fresh(device: Device) -> Iterator[RawClient]:
    """A client that has not said a word yet."""
    with memory_session(device) as client:
        yield client


@pytest.fixture
def client(fresh: RawClient) -> RawClient:
    fresh.negotiate()
    return fresh


def version(text: bytes, minor: int) -> bytes:
    return struct.pack("<HH", 0, minor) + text


# The commands, one by one.


def test_device_info(client: RawClient) -> None:
    reply = client.request(Command.DEVICE_GET_INFO, INFO.pack(16, 0, 0, 0))
    assert INFO.unpack(reply.payload) == (16, 1, 9, 5)


@pytest.mark.parametrize(
    ("index", "flags", "size"),
    [
        (0, 3, 0x1000),
        (1, 0, 0),
        (2, 1, 0x100),
        (3, 0, 0),
        (4, 2, 0x100),
        (5, 0, 0),
        (6, 1, 0x800),
        (7, 3, 0x1000),
        (8, 0, 0),
    ],
)
def test_region_info(client: RawClient, index: int, flags: int, size: int) -> None:
    reply = client.request(Command.DEVICE_GET_REGION_INFO, REGION_INFO.pack(32, 0, index, 0, 0, 0))
    assert REGION_INFO.unpack(reply.payload) == (32, flags, index, 0, size, 0)
    assert reply.fds == []


@pytest.mark.parametrize(("index", "flags", "count"), [(0, 7, 1), (1, 1, 4), (2, 1, 20), (3, 1, 1), (4, 1, 1)])
def test_irq_info(client: RawClient, index: int, flags: int, count: int) -> None:
    reply = client.request(Command.DEVICE_GET_IRQ_INFO, INFO.pack(16, 0, index, 0))
    assert INFO.unpack(reply.payload) == (16, flags, index, count)


def test_memory_is_mapped_and_unmapped(client: RawClient, device: Device) -> None:
    before = open_files()
    fd = memory_file(bytes(0x1000) + b"hello" + bytes(0xFFB))
    request = struct.pack("<IIQQQ", 32, 3, 0x1000, 0x8000, 0x1000)
    reply = client.request(Command.DMA_MAP, request, [fd])
    assert (reply.error, reply.payload) == (0, b"")
    assert device.dma.read(0x8000, 5) == b"hello"
    # The same again changes nothing.
    assert client.request(Command.DMA_MAP, request, [fd]).error == 0
    device.dma.write(0x8000, b"world")
    assert os.pread(fd, 5, 0x1000) == b"world"
    reply = client.request(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x8000, 0x1000))
    assert reply.payload == struct.pack("<IIQQ", 24, 0, 0x8000, 0x1000)
    assert len(device.dma) == 0
    os.close(fd)
    assert leaked_since(before) == []


def test_everything_is_unmapped(client: RawClient, device: Device) -> None:
    fd = memory_file(bytes(0x3000))
    for n in range(3):
        assert client.map_memory(0x8000 + 0x2000 * n, 0x1000, fd, offset=0x1000 * n) == 0
    reply = client.request(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 2, 0, 0))
    assert reply.payload == struct.pack("<IIQQ", 24, 2, 0, 0)
    assert len(device.dma) == 0
    os.close(fd)


def test_only_the_first_descriptor_of_a_map_counts(client: RawClient, device: Device) -> None:
    before = open_files()
    fds = [memory_file(b"first".ljust(0x1000)), memory_file(b"other".ljust(0x1000))]
    request = struct.pack("<IIQQQ", 32, 3, 0, 0x8000, 0x1000)
    assert client.request(Command.DMA_MAP, request, fds).error == 0
    assert device.dma.read(0x8000, 5) == b"first"
    close_all(fds)
    assert client.unmap_memory(0x8000, 0x1000) == 0
    assert leaked_since(before) == []


def test_eventfds_are_connected_fired_and_disconnected(client: RawClient, device: Device) -> None:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    assert client.set_eventfds(IrqIndex.MSIX, fds, start=2) == 0
    fired = [device.interrupts.trigger(IrqIndex.MSIX, vector) for vector in range(6)]
    assert fired == [False, False, True, True, True, False]
    assert [os.eventfd_read(fd) for fd in fds] == [1, 1, 1]
    # NONE and BOOL fire, too: the loopback of the specification.
    assert client.request(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 2, 2, 2)).error == 0
    assert client.request(Command.DEVICE_SET_IRQS, struct.pack("<IIIII3s", 23, 0x22, 2, 2, 3, b"\0\1\1")).error == 0
    assert [os.eventfd_read(fd) for fd in fds] == [1, 2, 1]
    assert client.set_eventfds(IrqIndex.MSIX, [], start=2, count=1) == 0
    assert not device.interrupts.trigger(IrqIndex.MSIX, 2)
    assert client.request(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 2, 0, 0)).error == 0
    assert not device.interrupts.trigger(IrqIndex.MSIX, 3)
    close_all(fds)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_integer_is_written_and_read(client: RawClient, size: int) -> None:
    value = 0x8877_6655_4433_2211 & (1 << 8 * size) - 1
    client.write(0, 0x10, value, size)
    assert client.read(0, 0x10, size) == value
    client.write(0, 0x10, 0, size, posted=True)
    assert client.read(0, 0x10, size) == 0


@pytest.mark.parametrize("count", [0, 3, 5, 7, 9, 256, 0x1000])
def test_any_number_of_bytes_is_written_and_read(client: RawClient, count: int) -> None:
    data = bytes(n & 0xFF for n in range(1, count + 1))
    reply = client.request(Command.REGION_WRITE, access(0, 0, data))
    assert reply.payload == ACCESS.pack(0, 0, count)
    reply = client.request(Command.REGION_READ, ACCESS.pack(0, 0, count))
    assert reply.payload == ACCESS.pack(0, 0, count) + data


def test_several_writes_in_one_message(client: RawClient) -> None:
    entries = [(0x10, 0, 4, b"abcdXXXX"), (0x20, 0, 8, b"efghijkl"), (0x30, 0, 3, b"mnoXXXXX"), (0x33, 0, 0, bytes(8))]
    payload = struct.pack("<Q", 4) + b"".join(struct.pack("<QII8s", *entry) for entry in entries)
    assert client.request(Command.REGION_WRITE_MULTI, payload).payload == struct.pack("<Q", 4)
    assert client.request(Command.REGION_READ, ACCESS.pack(0x10, 0, 0x24)).payload[16:] == (
        b"abcd" + bytes(12) + b"efghijkl" + bytes(8) + b"mno\0"
    )
    client.command(Command.REGION_WRITE_MULTI, struct.pack("<QQII8s", 1, 0x10, 0, 4, bytes(8)), no_reply=True)
    assert client.read(0, 0x10) == 0
    assert client.request(Command.REGION_WRITE_MULTI, bytes(8)).payload == bytes(8)


def test_reset_keeps_mappings_and_eventfds(client: RawClient, device: Resettable) -> None:
    memory, event = memory_file(bytes(0x1000)), os.eventfd(0, os.EFD_NONBLOCK)
    assert client.map_memory(0x8000, 0x1000, memory) == 0
    assert client.set_eventfds(IrqIndex.MSI, [event]) == 0
    reply = client.request(Command.DEVICE_RESET)
    assert (reply.error, reply.payload, device.resets) == (0, b"", 1)
    assert device.dma.read(0x8000, 4) == bytes(4)
    assert device.interrupts.trigger(IrqIndex.MSI, 0)
    assert os.eventfd_read(event) == 1
    close_all([memory, event])


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != Command.VERSION])
def test_a_command_that_wants_no_reply_gets_none(client: RawClient, command: Command) -> None:
    payloads = {
        Command.DMA_MAP: struct.pack("<IIQQQ", 32, 3, 0, 0x8000, 0x1000),
        Command.DMA_UNMAP: struct.pack("<IIQQ", 24, 2, 0, 0),
        Command.DEVICE_GET_INFO: INFO.pack(16, 0, 0, 0),
        Command.DEVICE_GET_REGION_INFO: REGION_INFO.pack(32, 0, 0, 0, 0, 0),
        Command.DEVICE_GET_REGION_IO_FDS: INFO.pack(16, 0, 0, 0),
        Command.DEVICE_GET_IRQ_INFO: INFO.pack(16, 0, 0, 0),
        Command.DEVICE_SET_IRQS: struct.pack("<IIIII", 20, 0x21, 0, 0, 0),
        Command.REGION_READ: ACCESS.pack(0, 0, 4),
        Command.REGION_WRITE: access(0, 0, b"abcd"),
        Command.DEVICE_RESET: b"",
        Command.REGION_WRITE_MULTI: bytes(8),
        Command.DEVICE_FEATURE: struct.pack("<II", 8, 0x4_0001),
        Command.DIRTY_PAGES: struct.pack("<II", 8, 1),
        Command.MIG_DATA_READ: INFO.pack(16, 8, 0, 0),
        Command.MIG_DATA_WRITE: INFO.pack(16, 8, 0, 0),
    }
    client.command(command, payloads[command], no_reply=True)
    assert client.is_silent()
    # Those of migration are refused, this device having none: no reply is what they get, too.
    migration = (Command.DEVICE_FEATURE, Command.MIG_DATA_READ, Command.MIG_DATA_WRITE, Command.DIRTY_PAGES)
    refused = command in migration
    assert client.request(command, payloads[command]).error == (errno.EINVAL if refused else 0)


# QEMU.


def test_c1_the_reply_to_qemus_version_is_no_longer_than_its_request(fresh: RawClient) -> None:
    reply = fresh.request(Command.VERSION, version(QEMU_TEXT, 0))
    assert reply.header.message_size <= 16 + 4 + len(QEMU_TEXT) == 214
    assert reply.payload[:4] == bytes(4)
    assert reply.fds == []
    assert json.loads(reply.payload[4:-1]) == {
        "capabilities": {
            "max_msg_fds": 16,
            "max_data_xfer_size": 1048576,
            "pgsizes": 4096,
            "max_dma_maps": 65535,
            "write_multiple": True,
        }
    }


def test_c2_maps_come_before_anything_else_and_several_at_once(fresh: RawClient, device: Device) -> None:
    fresh.request(Command.VERSION, version(QEMU_TEXT, 0))
    fd = memory_file(bytes(0x4000))
    for n in range(4):
        request = struct.pack("<IIQQQ", 32, 3, 0x1000 * n, 0x10000 * n, 0x1000)
        fresh.command(Command.DMA_MAP, request, fds=[fd], message_id=100 + n)
    found = [fresh.receive().header for _ in range(4)]
    assert found == [Header(100 + n, Command.DMA_MAP, 16, 1, 0) for n in range(4)]
    assert len(device.dma) == 4
    os.close(fd)


def test_c3_a_map_without_a_descriptor_is_accepted(client: RawClient, device: Device) -> None:
    assert client.map_memory(0xFFFC_0000, 0x40000, None, flags=1) == 0
    assert len(device.dma) == 1
    assert client.unmap_memory(0xFFFC_0000, 0x40000) == 0


def test_c4_eventfd_data_without_any_puts_msix_to_use(client: RawClient, device: Device) -> None:
    assert client.set_eventfds(IrqIndex.MSIX, [], count=1) == 0
    assert not device.interrupts.trigger(IrqIndex.MSIX, 0)
    assert device.interrupts.pending(IrqIndex.MSIX) == 1
    # ... and what was pending fires when the vector gets its eventfd.
    event = os.eventfd(0, os.EFD_NONBLOCK)
    assert client.set_eventfds(IrqIndex.MSIX, [event]) == 0
    assert os.eventfd_read(event) == 1
    os.close(event)


def test_c5_posted_writes_are_never_answered(client: RawClient) -> None:
    for n in range(50):
        client.write(0, 4 * n, n, posted=True)
    assert client.is_silent()
    assert client.read(0, 4 * 49) == 49


def test_c6_no_reply_is_longer_than_qemu_expects(client: RawClient) -> None:
    longest = {
        (Command.DEVICE_GET_INFO, INFO.pack(16, 0, 0, 0)): 16,
        (Command.DEVICE_GET_IRQ_INFO, INFO.pack(16, 0, 2, 0)): 16,
        (Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x8000, 0x1000)): 32,
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 0, 0, 0)): 20,
        (Command.DEVICE_RESET, b""): 0,
        (Command.REGION_WRITE, access(0, 7, b"abcd")): 20,
        (Command.DEVICE_GET_REGION_INFO, REGION_INFO.pack(32, 0, 0, 0, 0, 0)): 32,
    }
    for (command, payload), most in longest.items():
        assert len(client.request(command, payload).payload) <= most


def test_configuration_space_is_read_in_one_piece(client: RawClient) -> None:
    reply = client.request(Command.REGION_READ, ACCESS.pack(0, 7, 0x1000))
    assert reply.payload == ACCESS.pack(0, 7, 0x1000) + bytes(range(256)) * 16


def test_intx_as_qemu_with_kvm_sets_it_up(client: RawClient, device: Device) -> None:
    trigger, unmask = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    send = [
        (struct.pack("<IIIII", 20, 0x24, 0, 0, 1), [trigger]),
        (struct.pack("<IIIII", 20, 0x09, 0, 0, 1), []),
        (struct.pack("<IIIII", 20, 0x14, 0, 0, 1), [unmask]),
        (struct.pack("<IIIII", 20, 0x11, 0, 0, 1), []),
    ]
    for payload, fds in send:
        assert client.request(Command.DEVICE_SET_IRQS, payload, fds).error == 0
    assert device.interrupts.assert_intx()
    assert os.eventfd_read(trigger) == 1
    close_all([trigger, unmask])


# SPDK.


def test_c8_no_text_and_every_id_zero(fresh: RawClient) -> None:
    fresh.send(message(Command.VERSION, struct.pack("<HH", 0, 1), message_id=0))
    reply = fresh.receive()
    assert reply.header == Header(0, Command.VERSION, 16 + len(reply.payload), 1, 0)
    assert reply.payload.startswith(b'\0\0\1\0{"capabilities":')
    fresh.send(message(Command.DEVICE_GET_INFO, INFO.pack(16, 0, 0, 0), message_id=0))
    assert fresh.receive().header.message_id == 0


def test_c9_region_info_asked_for_with_a_payload_of_4064_bytes(client: RawClient) -> None:
    request = REGION_INFO.pack(4064, 0, 0, 0, 0, 0).ljust(4064, b"\0")
    reply = client.request(Command.DEVICE_GET_REGION_INFO, request)
    assert REGION_INFO.unpack(reply.payload) == (32, 3, 0, 0, 0x1000, 0)


def test_c10_c11_device_info_has_16_bytes_and_every_region_answers(client: RawClient) -> None:
    reply = client.request(Command.DEVICE_GET_INFO, INFO.pack(16, 0, 0, 0))
    number = INFO.unpack(reply.payload)[2]
    assert number <= 10
    for index in range(number):
        assert client.request(Command.DEVICE_GET_REGION_INFO, REGION_INFO.pack(32, 0, index, 0, 0, 0)).error == 0


def test_c12_an_unmap_with_a_descriptor(client: RawClient) -> None:
    before = open_files()
    fd = memory_file(bytes(0x1000))
    assert client.map_memory(0x8000, 0x1000, fd) == 0
    reply = client.request(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x8000, 0x1000), [fd])
    assert reply.error == 0
    os.close(fd)
    assert leaked_since(before) == []


# The rust client, which cloud-hypervisor uses.


@pytest.fixture
def rust(fresh: RawClient) -> RawClient:
    assert fresh.request(Command.VERSION, version(RUST_TEXT, 1)).error == 0
    return fresh


def test_c17_errors_look_like_successes_to_a_client_that_waits_for_those(rust: RawClient) -> None:
    reply = rust.request(Command.REGION_READ, ACCESS.pack(0x2000, 0, 4))
    assert (reply.header.flags, reply.payload) == (1, ACCESS.pack(0x2000, 0, 4) + b"\xff" * 4)
    reply = rust.request(Command.REGION_READ, ACCESS.pack(0x2000, 0, 9))
    assert (reply.header.flags, reply.payload) == (1, ACCESS.pack(0x2000, 0, 9) + b"\xff" * 9)
    reply = rust.request(Command.REGION_WRITE, access(0x2000, 0, b"abcd"))
    assert (reply.header.flags, reply.payload) == (1, ACCESS.pack(0x2000, 0, 4))
    request = struct.pack("<IIQQ", 24, 0, 0x2000, 0x1000)
    reply = rust.request(Command.DMA_UNMAP, request)
    assert (reply.header.flags, reply.payload) == (1, request)


def test_c17_a_huge_failed_read_is_not_answered_in_full(rust: RawClient) -> None:
    assert len(rust.request(Command.REGION_READ, ACCESS.pack(0, 0, 0xFFFF_FFFF)).payload) == 16 + MIB


@pytest.mark.parametrize("command", [Command.DEVICE_GET_REGION_INFO, Command.DMA_MAP, Command.REGION_READ])
def test_c17_where_there_is_no_such_form_the_error_stays(rust: RawClient, command: int) -> None:
    assert rust.request(command, bytes(8)).error == errno.EINVAL


def test_c17_any_other_client_gets_errors(fresh: RawClient) -> None:
    fresh.request(Command.VERSION, version(RUST_TEXT, 0))
    assert fresh.read_error(0, 0x2000) == errno.EINVAL


def test_c18_replies_have_exactly_the_size_the_rust_client_reads(rust: RawClient) -> None:
    fd, event = memory_file(bytes(0x1000)), os.eventfd(0, os.EFD_NONBLOCK)
    exchanges: list[tuple[int, bytes, list[int], int]] = [
        (Command.DEVICE_GET_INFO, INFO.pack(32, 0, 0, 0), [], 32),
        (Command.DEVICE_GET_REGION_INFO, REGION_INFO.pack(32, 0, 0, 0, 0, 0), [], 48),
        (Command.DEVICE_GET_IRQ_INFO, INFO.pack(16, 0, 2, 0), [], 32),
        (Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x8000, 0x1000), [fd], 16),
        (Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x8000, 0x1000), [], 40),
        (Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x24, 2, 0, 1), [event], 16),
        (Command.REGION_READ, ACCESS.pack(0, 0, 4), [], 36),
        (Command.REGION_WRITE, access(0, 0, b"abcd"), [], 32),
        (Command.DEVICE_RESET, b"", [], 16),
    ]
    for command, payload, fds, size in exchanges:
        reply = rust.request(command, payload, fds)
        assert (reply.header.flags, reply.header.message_size) == (1, size)
    close_all([fd, event])


def test_c19_device_info_with_the_header_counted_in(client: RawClient) -> None:
    reply = client.request(Command.DEVICE_GET_INFO, INFO.pack(32, 0, 0, 0))
    assert INFO.unpack(reply.payload) == (16, 1, 9, 5)


def test_c22_intx_is_unmasked_after_every_access_whether_it_is_in_use_or_not(client: RawClient) -> None:
    for _ in range(3):
        client.read(0, 0)
        assert client.request(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x11, 0, 0, 1)).error == 0


def test_c23_sixteen_eventfds_in_a_message_and_all_off(client: RawClient, device: Device) -> None:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(20)]
    assert client.set_eventfds(IrqIndex.MSIX, fds[:16]) == 0
    assert client.set_eventfds(IrqIndex.MSIX, fds[16:], start=16) == 0
    assert all(device.interrupts.trigger(IrqIndex.MSIX, vector) for vector in range(20))
    assert client.request(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 2, 0, 0)).error == 0
    assert not any(device.interrupts.trigger(IrqIndex.MSIX, vector) for vector in range(20))
    close_all(fds)


def test_c24_a_reset_that_was_not_offered() -> None:
    class Plain(Resettable):
        flags = Device.flags & 0

    device = Plain()
    with memory_session(device) as client:
        client.negotiate()
        assert INFO.unpack(client.request(Command.DEVICE_GET_INFO, INFO.pack(16, 0, 0, 0)).payload)[1] == 0
        assert client.request(Command.DEVICE_RESET).error == 0
        assert device.resets == 1


# libvfio-user's sample client, and QEMU's first.


def test_c25_region_info_again_with_a_padded_payload_and_a_bogus_access(client: RawClient) -> None:
    assert client.read_error(0xDEADBEEF, 0) == errno.EINVAL
    for padding in (64, 80):
        request = REGION_INFO.pack(padding, 0, 0, 0, 0, 0).ljust(padding, b"\0")
        assert len(client.request(Command.DEVICE_GET_REGION_INFO, request).payload) == 32
    assert client.read(0, 0) == 0


def test_c27_device_info_of_20_bytes_and_posted_configuration_writes(client: RawClient) -> None:
    reply = client.request(Command.DEVICE_GET_INFO, INFO.pack(20, 0, 0, 0) + bytes(4))
    assert len(reply.payload) == 16
    client.write(7, 0x3C, 0x0B, 1, posted=True)
    assert client.read(7, 0x3C, 1) == 0x0B


# What a device is told of its interrupts.


def test_masks_are_told_by_vector() -> None:
    class Listening(Device):
        def __init__(self) -> None:
            super().__init__(irqs={IrqIndex.INTX: 1, IrqIndex.MSIX: 8})
            self.told: list[object] = []

        def on_irq_mask(self, index: IrqIndex, vectors: Sequence[int], masked: bool) -> None:
            self.told.append((index, list(vectors), masked))

    device = Listening()
    none, boolean, eventfd, mask, unmask, trigger = 1, 2, 4, 8, 16, 32
    with memory_session(device) as client:
        client.negotiate()
        for flags, index, start, count, data, error in [
            (none | mask, IrqIndex.INTX, 0, 1, b"", 0),
            (none | unmask, IrqIndex.INTX, 0, 1, b"", 0),
            (none | mask, IrqIndex.MSIX, 2, 3, b"", 0),
            (boolean | unmask, IrqIndex.MSIX, 2, 3, b"\1\0\1", 0),
            (eventfd | unmask, IrqIndex.INTX, 0, 1, b"", 0),
            (none | trigger, IrqIndex.MSIX, 0, 0, b"", 0),
            (none | mask, IrqIndex.MSIX, 7, 2, b"", errno.EINVAL),
        ]:
            payload = struct.pack("<IIIII", 20 + len(data), flags, index, start, count) + data
            assert client.request(Command.DEVICE_SET_IRQS, payload).error == error
    assert device.told == [
        (IrqIndex.INTX, [0], True),
        (IrqIndex.INTX, [0], False),
        (IrqIndex.MSIX, [2, 3, 4], True),
        (IrqIndex.MSIX, [2, 4], False),
    ]

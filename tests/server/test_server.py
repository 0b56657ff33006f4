"""The life of a server: clients come and go, signals, threads, and every way to run it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fds import close_all, memory_file, no_leaks
from tests.support.raw_client import RawClient, access, connect, message
from vfio_user.errors import AddressError, ConnectError, StateError
from vfio_user.protocol.constants import Command, HeaderFlags, IrqIndex
from vfio_user.protocol.header import Header
from vfio_user.protocol.region import ACCESS
from vfio_user.regions import CallbackRegion, MemoryRegion
from vfio_user.server import server as server_module
from vfio_user.server.device import Device
from vfio_user.server.loop import EventLoop, Timer
from vfio_user.server.server import Server, run_servers
from vfio_user.transport.address import FdAddress


class Scratch(Device):
    """Memory in region 0; region 1 runs, and region 2 puts off, whatever ``action`` is; it notes who comes and goes."""

    def __init__(self) -> None:
        super().__init__(irqs={IrqIndex.INTX: 1, IrqIndex.MSIX: 4})
        self.action: Callable[[], object] = lambda: None
        self.events: list[str] = []
        self.set_region(0, MemoryRegion(0x1000))
        self.set_region(1, CallbackRegion(8, write=lambda *_: self._act()))
        self.set_region(2, CallbackRegion(8, write=lambda *_: self.call_soon(self._act)))

    def _act(self) -> None:
        self.action()

    def on_connect(self) -> None:
        self.events.append("connect")

    def on_disconnect(self) -> None:
        self.events.append(f"disconnect, {len(self.dma)} maps")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def device() -> Scratch:
    return Scratch()


@pytest.fixture
def polled(device: Scratch, path: Path) -> Iterator[Server]:
    """A server the test drives with ``process``."""
    with Server(device, path, strict=True) as server:
        yield server


@pytest.fixture
def running(device: Scratch, path: Path) -> Iterator[Server]:
    """A server on a thread of its own."""
    with Server(device, path).start() as server:
        yield server


def negotiated(path: Path, server: Server | None = None) -> RawClient:
    """A client of a running server, or of one that is driven through the client."""
    client = connect(path, None if server is None else server.process)
    try:
        client.negotiate()
    except BaseException:
        client.close()
        raise
    return client


def run_until(server: Server, condition: Callable[[], object]) -> None:
    for _ in range(50):
        if condition():
            return
        server.process()
    raise AssertionError("it did not come to that")


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


# One client after another.


def test_the_second_client_waits_and_is_served_after_the_first(polled: Server, path: Path) -> None:
    first = negotiated(path, polled)
    second = connect(path, polled.process)
    number = second.command(Command.VERSION, bytes(4))
    assert second.is_silent()
    first.write(0, 8, 0x1234)
    first.close()
    assert second.receive().header.message_id == number
    assert second.read(0, 8) == 0x1234
    second.close()


def test_what_was_the_clients_goes_with_it_and_what_is_the_devices_stays(
    polled: Server, path: Path, device: Scratch
) -> None:
    fds = [memory_file(bytes(0x1000)), os.eventfd(0, os.EFD_NONBLOCK)]
    client = negotiated(path, polled)
    assert client.map_memory(0x8000, 0x1000, fds[0]) == 0
    assert client.set_eventfds(IrqIndex.MSIX, fds[1:]) == 0
    client.write(0, 0, 77)
    client.close()
    run_until(polled, lambda: not device.is_connected)
    # The device could still look at what it had when it was told.
    assert device.events == ["connect", "disconnect, 1 maps"]
    assert len(device.dma) == 0
    assert not device.interrupts.trigger(IrqIndex.MSIX, 0)
    with negotiated(path, polled) as client:
        assert client.read(0, 0) == 77
        assert device.events[2:] == ["connect"]
    close_all(fds)


def test_a_client_that_says_nothing(polled: Server, path: Path, device: Scratch) -> None:
    connect(path).close()
    run_until(polled, lambda: len(device.events) == 2)
    negotiated(path, polled).close()


def test_a_client_may_go_at_any_byte_and_the_next_is_served(polled: Server, path: Path, device: Scratch) -> None:
    fds = [memory_file(bytes(0x1000)), os.eventfd(0, os.EFD_NONBLOCK)]
    script = [
        (message(Command.VERSION, bytes(4)), []),
        (message(Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x8000, 0x1000)), fds[:1]),
        (message(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x24, 2, 0, 1)), fds[1:]),
        (message(Command.REGION_READ, ACCESS.pack(0, 0, 4)), []),
        (message(Command.REGION_WRITE, access(0, 0, b"abcd")), []),
    ]
    length = sum(len(data) for data, _ in script)
    with no_leaks():
        for upto, reads in itertools.product(range(length + 1), [False, True]):
            device.events.clear()
            left = upto
            client = connect(path, polled.process)
            for data, sent in script:
                if left > 0:
                    client.send(data[:left], sent)
                left -= len(data)
            while reads and not client.is_silent():
                client.receive()
            client.close()
            run_until(polled, lambda: len(device.events) == 2)
    with negotiated(path, polled) as client:
        assert client.read(0, 0) == int.from_bytes(b"abcd", "little")
    close_all(fds)


def test_a_client_that_breaks_the_protocol_is_sent_away_and_the_next_served(polled: Server, path: Path) -> None:
    with negotiated(path, polled) as bad:
        bad.send(b"\xff" * 16)
        assert bad.receive().error == 22
        assert bad.is_cut_off()
    negotiated(path, polled).close()


@pytest.mark.parametrize("mode", ["run", "process"])
def test_a_client_that_does_not_read_loses_nothing(device: Scratch, path: Path, mode: str) -> None:
    number = 3000
    with Server(device, path) as server:
        if mode == "run":
            server.start()
        with connect(path, server.process if mode == "process" else None) as client:
            client.negotiate()
            reads = b"".join(
                message(Command.REGION_READ, ACCESS.pack(0, 0, 4), message_id=n)
                + message(Command.REGION_WRITE, access(0, 0, struct.pack("<I", n)), no_reply=True)
                for n in range(number)
            )
            sender = in_thread(lambda: client.send(reads)) if mode == "run" else None
            if sender is None:
                client.send(reads)
                run_until(server, lambda: server._session is not None and server._session.wants_to_write)
            else:
                sender.join()
            found = [client.receive() for _ in range(number)]
            assert [reply.header.message_id for reply in found] == list(range(number))
            assert [struct.unpack_from("<I", reply.payload, 16)[0] for reply in found] == [0, *range(number - 1)]
            # ... and afterwards it is served as ever.
            assert client.read(0, 0) == number - 1


# Failures of the device.


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("region", [1, 2], ids=["handler", "deferred"])
def test_a_bug_in_the_device(
    device: Scratch, path: Path, caplog: pytest.LogCaptureFixture, strict: bool, region: int
) -> None:
    def breaks() -> None:
        raise ZeroDivisionError("a bug in the device")

    device.action = breaks
    server = Server(device, path, strict=strict)
    client = negotiated(path, server)
    client.write(region, 0, 1, posted=True)
    if strict:
        with pytest.raises(ZeroDivisionError):
            run_until(server, lambda: False)
    else:
        run_until(server, lambda: caplog.records)
        assert client.read(0, 0) == 0
        assert "a bug in the device" in caplog.text
    client.close()
    server.close()
    caplog.clear()


@pytest.mark.parametrize("hook", ["on_connect", "on_disconnect"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_bug_while_a_client_comes_or_goes(
    device: Scratch,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    hook: str,
    strict: bool,
) -> None:
    def breaks() -> None:
        raise ZeroDivisionError("a bug in the device")

    monkeypatch.setattr(device, hook, breaks)
    with contextlib.ExitStack() as stack:
        if strict:
            stack.enter_context(pytest.raises(ZeroDivisionError))
        server = stack.enter_context(Server(device, path, strict=strict))
        with negotiated(path, server) as client:
            assert client.map_memory(0x8000, 0x1000, None) == 0
        run_until(server, lambda: not device.is_connected)
    assert len(device.dma) == 0
    assert "while" in caplog.text
    caplog.clear()
    server.close()


@pytest.mark.parametrize("region", [1, 2])
def test_a_strict_servers_failure_is_raised_where_its_thread_is_joined(
    device: Scratch, path: Path, region: int
) -> None:
    device.action = lambda: 1 // 0
    server = Server(device, path, strict=True).start()
    with negotiated(path) as client:
        client.write(region, 0, 1, posted=True)
        with pytest.raises(ZeroDivisionError):
            server.join()
        assert client.is_cut_off()
    server.join()
    assert not path.exists()


def test_a_server_whose_device_puts_work_off_needs_no_turn_of_its_loop_for_it(
    running: Server, device: Scratch, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    with negotiated(path) as client:
        client.read(0, 0)
        turns = 0
        run_once = EventLoop.run_once

        def counted(loop: EventLoop, timeout: float | None = 0.0) -> None:
            nonlocal turns
            turns += 1
            run_once(loop, timeout)

        monkeypatch.setattr(EventLoop, "run_once", counted)
        device.action = lambda: done.append("put off")
        for number in range(1, 100):
            client.write(2, 0, 1, posted=True)
            client.read(0, 0)
            assert len(done) in (number, number - 1)
        assert turns == 0
        # A timer neither keeps it from receiving, nor is kept waiting by it.
        timer = threading.Event()
        device.action = lambda: device.call_later(0.0, timer.set)
        client.write(2, 0, 1, posted=True)
        assert timer.wait(10)
        timers: list[Timer] = []
        device.action = lambda: timers.append(device.call_later(600, timer.set))
        client.write(2, 0, 1, posted=True)
        for _ in range(3):
            client.read(0, 0)
        device.action = timers[0].cancel
        client.write(1, 0, 1)


def test_a_strict_servers_failure_is_raised_where_its_with_ends(device: Scratch, path: Path) -> None:
    device.action = lambda: 1 // 0
    server = Server(device, path, strict=True).start()

    def drive() -> None:
        with server, negotiated(path) as client:
            client.write(1, 0, 1, posted=True)
            assert client.is_cut_off()

    with pytest.raises(ZeroDivisionError):
        drive()


# Ways to run it.


def test_polled_by_somebody_elses_loop(polled: Server, path: Path, device: Scratch) -> None:
    def is_ready() -> bool:
        return bool(select.select([polled], [], [], 0)[0])

    assert not is_ready()
    client = connect(path)
    assert is_ready()
    polled.process()
    assert not is_ready()
    client.command(Command.VERSION, bytes(4))
    assert is_ready()
    polled.process()
    assert client.receive().header.command == Command.VERSION
    assert not is_ready()
    assert polled.next_timeout() is None
    device.call_soon(lambda: None)
    assert polled.next_timeout() == 0.0
    polled.process()
    assert polled.next_timeout() is None
    client.close()


async def talk(path: Path, *, close: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client on asyncio's own streams, negotiated."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(message(Command.VERSION, bytes(4)))
    head = await reader.readexactly(16)
    await reader.readexactly(struct.unpack_from("<I", head, 4)[0] - 16)
    writer.write(message(Command.REGION_READ, ACCESS.pack(0, 0, 4)))
    assert await reader.readexactly(36)
    if close:
        writer.close()
        await writer.wait_closed()
    return reader, writer


def test_in_asyncio_until_cancelled(device: Scratch, path: Path) -> None:
    async def main() -> None:
        server = Server(device, path)
        task = asyncio.create_task(server.serve_async())
        await talk(path)
        await talk(path)
        done = asyncio.Event()
        device.action = done.set
        device.call_later(0.001, device._act)
        await done.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server.is_finished

    asyncio.run(main())
    assert device.events[:3] == ["connect", "disconnect, 0 maps", "connect"]
    assert not path.exists()


@pytest.mark.parametrize("how", ["stop", "close", "stop elsewhere", "close elsewhere"])
def test_in_asyncio_until_it_is_stopped_or_closed(device: Scratch, path: Path, how: str) -> None:
    async def main() -> None:
        server = Server(device, path)
        task = asyncio.create_task(server.serve_async())
        _, writer = await talk(path, close=False)
        call = server.stop if how.startswith("stop") else server.close
        if how.endswith("elsewhere"):
            await asyncio.to_thread(call)
        else:
            call()
        await task
        writer.close()
        server.close()

    asyncio.run(main())
    assert not path.exists()
    assert not device.is_connected


def test_several_devices_on_one_loop(tmp_path: Path) -> None:
    loop = EventLoop()
    devices = [Scratch() for _ in range(3)]
    servers = [Server(device, tmp_path / f"{n}", loop=loop) for n, device in enumerate(devices)]
    clients = [connect(tmp_path / f"{n}", loop.run_once) for n in range(3)]
    for n, client in enumerate(clients):
        client.negotiate()
        client.write(0, 0, n)
    assert [client.read(0, 0) for client in clients] == [0, 1, 2]
    clients[1].close()
    servers[0].close()
    assert clients[0].is_cut_off()
    assert clients[2].read(0, 0) == 2
    assert [server.is_finished for server in servers] == [True, False, False]
    for client in clients:
        client.close()
    for server in servers:
        server.close()
    loop.close()


@pytest.mark.parametrize("shared", [False, True])
def test_several_servers_until_a_signal(tmp_path: Path, shared: bool) -> None:
    loop = EventLoop() if shared else None
    servers = [Server(Scratch(), tmp_path / f"{n}", loop=loop) for n in range(2)]
    before = signal.getsignal(signal.SIGTERM)

    def drive() -> None:
        with negotiated(tmp_path / "0") as one, negotiated(tmp_path / "1") as other:
            one.write(0, 0, 1)
            other.write(0, 0, 2)
            assert (one.read(0, 0), other.read(0, 0)) == (1, 2)
            os.kill(os.getpid(), signal.SIGTERM)
            assert one.is_cut_off()
            assert other.is_cut_off()

    thread = in_thread(drive)
    run_servers(*servers)
    thread.join()
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
    if loop is not None:
        loop.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_strict_server_among_several(tmp_path: Path, shared: bool) -> None:
    loop = EventLoop() if shared else None
    devices = [Scratch(), Scratch()]
    servers = [Server(device, tmp_path / f"{n}", loop=loop, strict=True) for n, device in enumerate(devices)]
    devices[0].action = lambda: 1 // 0

    def drive() -> None:
        with negotiated(tmp_path / "0") as client:
            client.write(1, 0, 1, posted=True)
            assert client.is_cut_off()

    thread = in_thread(drive)
    with pytest.raises(ZeroDivisionError):
        run_servers(*servers)
    thread.join()
    assert list(tmp_path.iterdir()) == []
    if loop is not None:
        loop.close()


PROGRAM = """
import sys
from vfio_user.server import Device, Server, run_servers
from vfio_user.regions import MemoryRegion
servers = []
for path in sys.argv[1:]:
    device = Device()
    device.set_region(0, MemoryRegion(64))
    servers.append(Server(device, path))
print("listening", flush=True)
run_servers(*servers)
print("done", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("servers", [1, 2])
def test_a_signal_ends_a_program_cleanly(tmp_path: Path, number: signal.Signals, servers: int) -> None:
    paths = [tmp_path / f"{n}" for n in range(servers)]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, paths)], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "listening\n"
        with negotiated(paths[0]) as client:
            client.read(0, 0)
            program.send_signal(number)
            assert client.is_cut_off()
        assert program.stdout.readline() == "done\n"
        assert program.wait(10) == 0
    assert list(tmp_path.iterdir()) == []


# Other threads.


def test_another_threads_call_reaches_a_server_that_waits_in_the_receive_call(
    running: Server, path: Path, device: Scratch
) -> None:
    with negotiated(path) as client:
        client.read(0, 0)
        called = threading.Event()
        started = time.monotonic()
        device.call_soon(called.set)
        assert called.wait(10)
        assert time.monotonic() - started < 5 * server_module._TICK
        # From then on it is woken at once.
        again = threading.Event()
        device.call_soon(again.set)
        assert again.wait(10)
        assert client.read(0, 0) == 0


@pytest.mark.parametrize("what", ["call_soon", "watch", "stop"])
def test_another_thread_is_heard_while_a_timer_is_waited_for(device: Scratch, path: Path, what: str) -> None:
    done = threading.Event()
    timers: list[Timer] = []
    device.action = lambda: timers.append(device.call_later(60, lambda: None))
    with Server(device, path).start() as server, negotiated(path) as client:
        fd = os.eventfd(1, os.EFD_NONBLOCK)
        client.write(1, 0, 1)
        client.read(0, 0)
        deadline = time.monotonic() + 10
        while device.loop._poll_of is None:  # until it waits for the timer
            assert time.monotonic() < deadline
        started = time.monotonic()
        if what == "stop":
            server.stop()
            server.join()
        elif what == "watch":
            device.watch(fd, lambda: done.set() if os.eventfd_read(fd) else None)
            assert done.wait(10)
        else:
            device.call_soon(done.set)
            assert done.wait(10)
        assert time.monotonic() - started < 10
        timers[0].cancel()
    device.loop.close()  # the device's own, with what it had put off or watched when it was stopped
    os.close(fd)


def test_what_a_client_sent_while_the_device_waited_comes_before_what_it_sent_afterwards(
    device: Scratch, path: Path
) -> None:
    seen: list[int] = []
    sent = threading.Event()
    device.set_region(3, CallbackRegion(8, write=lambda _offset, _size, value: seen.append(value)))

    def action() -> None:
        device.dma.read(0x1000, 8)
        assert sent.wait(10)

    device.action = action
    with Server(device, path).start(), negotiated(path) as client:
        assert client.map_memory(0x1000, 0x1000, None) == 0
        client.read(0, 0)
        client.write(2, 0, 1, size=8)
        asked = client.receive()
        assert asked.header.command == Command.DMA_READ
        first, second = (
            message(Command.REGION_WRITE, ACCESS.pack(0, 3, 8) + bytes([number] * 8), message_id=number, no_reply=True)
            for number in (1, 2)
        )
        header = Header(asked.header.message_id, asked.header.command, 40, HeaderFlags.REPLY, 0)
        client.send(first + header.encode() + asked.payload[:16] + bytes(8))
        client.send(second)
        sent.set()
        client.read(0, 0)
    assert seen == [0x0101010101010101, 0x0202020202020202]


def test_another_threads_timer_and_watch(running: Server, path: Path, device: Scratch) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    with negotiated(path) as client:
        client.read(0, 0)
        timer, watched = threading.Event(), threading.Event()
        device.call_later(0.0, timer.set)
        watch = device.watch(fd, lambda: watched.set() if os.eventfd_read(fd) else None)
        os.eventfd_write(fd, 1)
        assert timer.wait(10)
        assert watched.wait(10)
        closed = threading.Event()
        device.call_soon(watch.close)
        device.call_soon(closed.set)
        assert closed.wait(10)
    os.close(fd)


@pytest.mark.parametrize("connected", [False, True])
def test_close_from_another_thread_waits_for_run(device: Scratch, path: Path, connected: bool) -> None:
    server = Server(device, path)
    ended: list[str] = []

    def run() -> None:
        server.run()
        ended.append("run")

    thread = in_thread(run)
    if connected:
        client = negotiated(path)
        client.read(0, 0)
    else:
        while server._runner is None:
            os.sched_yield()
    server.close()
    assert not path.exists()
    assert not device.is_connected
    thread.join()
    assert ended == ["run"]
    if connected:
        client.close()


# Beginning and end.


def test_start_twice_stop_and_close_any_number_of_times(device: Scratch, path: Path) -> None:
    server = Server(device, path).start()
    with pytest.raises(StateError, match="started already"):
        server.start()
    for _ in range(2):
        server.stop()
        server.close()
        server.stop()
        server.join()
    assert server.is_finished
    assert not path.exists()
    server.run()
    server.process()


def test_stopped_before_it_ever_ran(device: Scratch, path: Path) -> None:
    server = Server(device, path)
    server.stop()
    server.run()
    assert not path.exists()


@pytest.mark.parametrize("call", ["stop", "close"])
@pytest.mark.parametrize("mode", ["run", "process"])
@pytest.mark.parametrize("region", [1, 2], ids=["handler", "deferred"])
def test_the_device_itself_ends_the_server(device: Scratch, path: Path, call: str, mode: str, region: int) -> None:
    with Server(device, path) as server:
        device.action = getattr(server, call)
        if mode == "run":
            server.start()
        with connect(path, server.process if mode == "process" else None) as client:
            client.negotiate()
            client.command(Command.REGION_WRITE, access(0, region, bytes(4)))
            if mode == "run":
                server.join()
            else:
                run_until(server, lambda: server.loop.is_stopping or server.is_finished)
        if mode == "run" or call == "close":
            assert server.is_finished
            assert not path.exists()


def test_a_device_can_be_served_again_with_what_it_had_put_off(device: Scratch, path: Path) -> None:
    seen: list[str] = []
    device.call_soon(seen.append, "before any server")
    with Server(device, path) as server:
        server.process()
        with negotiated(path, server) as client:
            client.write(0, 0, 5)
        device.call_soon(seen.append, "left over")
    device.call_soon(seen.append, "between")
    with Server(device, path) as server, negotiated(path, server) as client:
        assert client.read(0, 0) == 5
    assert seen == ["before any server", "left over", "between"]
    assert device.region(0).read(0, 4) == 5
    device.loop.close()


def test_regions_cannot_change_under_a_client(polled: Server, path: Path, device: Scratch) -> None:
    with negotiated(path, polled), pytest.raises(StateError, match="while a client is connected"):
        device.set_region(5, MemoryRegion(16))
    run_until(polled, lambda: not device.is_connected)
    device.set_region(5, MemoryRegion(16))


def test_an_address_that_cannot_be_used(device: Scratch, path: Path, running: Server) -> None:
    for nonsense in ("", "udp:1"):
        with pytest.raises(AddressError):
            Server(Scratch(), nonsense)
    for used in (path, path / "x"):
        with pytest.raises(ConnectError):
            Server(Scratch(), used)
    negotiated(path).close()


def test_who_is_connected_is_in_the_log(polled: Server, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vfio_user.server"):
        negotiated(path, polled).close()
        run_until(polled, lambda: len(caplog.records) == 2)
    who = f"client (pid {os.getpid()}, uid {os.getuid()})"
    assert [record.getMessage() for record in caplog.records] == [
        f"unix:{path}: {who} connected",
        f"unix:{path}: {who} left: the client closed the connection",
    ]


# Inherited descriptors.


def test_an_inherited_listening_socket(device: Scratch, path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    with Server(device, f"fd:{listening.detach()}") as server:
        for value in range(3):
            with negotiated(path, server) as client:
                assert client.read(0, 0) == max(0, value - 1)
                client.write(0, 0, value)
        assert not server.is_finished
    # The file is whoever made it's.
    assert path.exists()


@pytest.mark.parametrize("mode", ["run", "process"])
def test_an_inherited_connection_is_served_once(device: Scratch, mode: str) -> None:
    ours, theirs = socket.socketpair()
    with Server(device, f"fd:{theirs.detach()}") as server:
        assert device.events == ["connect"]
        thread = in_thread(server.run) if mode == "run" else None
        with RawClient(ours, server.process if mode == "process" else None) as client:
            client.negotiate()
            assert client.read(0, 0) == 0
        if thread is not None:
            thread.join()
        else:
            run_until(server, lambda: server.is_finished)
        assert server.is_finished
    assert device.events == ["connect", "disconnect, 0 maps"]


# INTx, whose second eventfd the server watches.


def test_intx_is_unmasked_by_the_clients_eventfd(polled: Server, path: Path, device: Scratch) -> None:
    trigger, unmask = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)

    def set_irqs(client: RawClient, flags: int, *fds: int) -> None:
        payload = struct.pack("<IIIII", 20, flags, IrqIndex.INTX, 0, 1)
        assert client.request(Command.DEVICE_SET_IRQS, payload, fds).error == 0

    with negotiated(path, polled) as client:
        set_irqs(client, 0x24, trigger)
        set_irqs(client, 0x14, unmask)
        assert device.interrupts.assert_intx()
        assert os.eventfd_read(trigger) == 1
        # The line is still up: unmasked, it fires again.
        os.eventfd_write(unmask, 1)
        polled.process()
        assert os.eventfd_read(trigger) == 1
        device.interrupts.deassert_intx()
        os.eventfd_write(unmask, 1)
        polled.process()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(trigger)
        # Another takes its place, and then none.
        other = os.eventfd(0, os.EFD_NONBLOCK)
        set_irqs(client, 0x14, other)
        assert device.interrupts.assert_intx()
        os.eventfd_write(other, 1)
        polled.process()
        assert os.eventfd_read(trigger) == 2
    run_until(polled, lambda: not device.is_connected)
    assert device.interrupts.unmask_fd is None
    close_all([trigger, unmask, other])


def test_intx_unmasked_by_a_message_fires_again_only_if_it_is_left_up(tmp_path: Path) -> None:
    now = [0.0]
    device, trigger = Scratch(), os.eventfd(0, os.EFD_NONBLOCK)
    with Server(device, tmp_path / "a.sock", loop=EventLoop(clock=lambda: now[0])) as server:
        with negotiated(tmp_path / "a.sock", server) as client:

            def unmask() -> None:
                assert client.request(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x11, 0, 0, 1)).error == 0

            payload = struct.pack("<IIIII", 20, 0x24, IrqIndex.INTX, 0, 1)
            assert client.request(Command.DEVICE_SET_IRQS, payload, [trigger]).error == 0
            assert device.interrupts.assert_intx()
            assert os.eventfd_read(trigger) == 1
            unmask()
            server.process()
            with pytest.raises(BlockingIOError):
                os.eventfd_read(trigger)
            now[0] += server.next_timeout() or 0
            server.process()
            assert os.eventfd_read(trigger) == 1
            unmask()
            device.interrupts.deassert_intx()
            assert server.next_timeout() is None
            assert device.interrupts.assert_intx()
            assert os.eventfd_read(trigger) == 1
        run_until(server, lambda: not device.is_connected)
    assert device.interrupts.postpone is None
    os.close(trigger)


def test_a_client_that_cannot_be_accepted_is_tried_again_later(tmp_path: Path) -> None:
    """As when this process is out of descriptors: the listening socket stays readable all the time."""
    now = [0.0]
    loop = EventLoop(clock=lambda: now[0])
    device = Device()
    with Server(device, tmp_path / "a.sock", loop=loop) as server, socket.socket(socket.AF_UNIX) as client:
        listener, server._listener = server._listener, _Refusing(server._listener.fileno())
        client.connect(str(tmp_path / "a.sock"))
        loop.run_once(0)
        assert loop.next_timeout() == pytest.approx(0.1)
        loop.run_once(0)
        connected = [device.is_connected]
        server._listener = listener
        now[0] = 0.1
        loop.run_once(0)
        loop.run_once(0)
        connected.append(device.is_connected)
    assert connected == [False, True]
    loop.close()


class _Refusing:
    """A listener from which no client comes."""

    address = FdAddress(0)
    exhausted = False

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def accept(self) -> None:
        return None

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        pass

"""``Server``: makes one device available at an address, to one client after another.

Four ways to run it, the caller's choice:

* ``run()`` blocks until ``stop()``; ``run_servers`` does so for several, and ends on SIGTERM and Ctrl-C;
* ``start()`` runs it on a thread of its own;
* ``fileno()``, ``process()`` and ``next_timeout()`` let any other loop drive it;
* ``await serve_async()`` runs it in asyncio's loop.

Servers may share an ``EventLoop``: then one thread serves all their devices.
"""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vfio_user.errors import ConnectionClosedError, StateError
from vfio_user.server.device import Device, MigrationProtocol
from vfio_user.server.loop import EventLoop, Timer, Watch
from vfio_user.server.watchdog import watchdog
from vfio_user.transport.address import Address, parse_address
from vfio_user.transport.channel import Channel
from vfio_user.transport.listener import Listener, listen
from vfio_user.transport.stream_socket import describe_peer

if TYPE_CHECKING:
    from vfio_user.server.session import Observer, Session

__all__ = ["Server", "run_servers"]

log = logging.getLogger("vfio_user.server")

#: How long, in seconds, a server that waits in the receive call itself may take to notice that it is to stop, or that
#: another thread wants something for the first time.
_TICK = 0.2


#: Seconds a client that unmasked INTx has to lower the line, before it is told once more that the line is up. Its guest
#: is amid a handler then, and needs some microseconds for that; a millisecond is what a loop can wait at least.
_INTX_PAUSE = 0.001

#: Seconds until a client that could not be accepted is tried again.
_RETRY = 0.1


class Server:
    """See the module.

    Args:
        device: what is served; it may be served by one server only.
        address: where: a path, or any other form of ``transport.address``.
        mode: permission bits of a socket file.
        group: group of a socket file, by name or number.
        loop: the loop to work on; None for one of its own.
        observer: is shown every message.
        migration: how clients may migrate it: see ``Device.offer_migration``; None leaves that as it is.
        strict: exceptions of device code that are not DeviceError end the server and are raised by ``run``,
            ``process``, ``serve_async``, ``join`` or the end of a ``with`` statement; for tests.

    Attributes:
        address: where clients connect, as far as it is known: the port that was free for ``tcp:0``, the socket file
            behind a descriptor that was inherited.
        loop: the loop it works on.

    Raises:
        AddressError: the address means nothing.
        ConnectError: it cannot listen there.
        DefinitionError: the device cannot be migrated in the way that is asked for.

    Ownership: ``close`` it, or use it in a ``with`` statement: the socket file goes, a connected client is cut off, and
    its mappings and eventfds are dropped. The device stays usable.

    Threading: ``stop`` and ``close`` from any thread (``close`` waits for ``run`` to return); everything else from the
    one that runs it.
    """

    def __init__(
        self,
        device: Device,
        address: str | Path | Address,
        *,
        mode: int | None = None,
        group: str | int | None = None,
        loop: EventLoop | None = None,
        observer: Observer | None = None,
        migration: MigrationProtocol | None = None,
        strict: bool = False,
    ) -> None:
        self.device = device
        self._observer = observer
        self._strict = strict
        self._owns_loop = loop is None
        self.loop = loop or device.loop
        self._session: Session | None = None
        self._channel: Channel | None = None
        #: The connection whose receive call returns after each ``_TICK``.
        self._ticking: Channel | None = None
        self._watch: Watch | None = None
        self._unmask_watch: Watch | None = None
        self._thread: threading.Thread | None = None
        #: The thread in ``run`` or ``serve_async``, which alone may take things apart then.
        self._runner: int | None = None
        self._on_close: Callable[[], None] | None = None
        self._finished = threading.Event()
        self._failure: BaseException | None = None
        self._closed = False
        if migration is not None:
            device.offer_migration(migration)
        self._listener: Listener = listen(parse_address(address), mode=mode, group=group)
        self.address: Address = self._listener.address
        device.attach(self.loop)
        if strict:
            self.loop.on_failure = self._fail
        device.interrupts.on_unmask_fd_changed = self._watch_unmask_fd
        device.interrupts.postpone = self._postpone
        self._wait_for_client()

    # Ways to run it.

    def run(self) -> None:
        """Serves until ``stop``, or until no client can come any more; then closes."""
        self._runner = threading.get_ident()
        try:
            while not self.loop.is_stopping and not self.is_finished:
                session = self._session
                # (A command kept back has a timer, which is waited for elsewhere; but not for ever, if the device may.)
                if session is not None and self.loop.is_simple and session.quiescence.kept is None:
                    self._serve_directly(session)
                else:
                    self.loop.run_once(None)
                self._raise_failure()
        finally:
            self._ran()

    def start(self) -> Self:
        """Serves on a thread of its own, until ``close``; returns itself.

        Raises:
            StateError: it was started before.
        """
        if self._thread is not None:
            raise StateError("the server was started already")
        self._thread = threading.Thread(target=self._run_for_join, name=f"vfio-user {self.address}", daemon=True)
        self._thread.start()
        return self

    def process(self) -> None:
        """Does what there is to do now, without waiting."""
        if not self._closed:
            self.loop.run_once(0.0)
        self._raise_failure()

    def fileno(self) -> int:
        """Readable when ``process`` has something to do (timers aside: see ``next_timeout``)."""
        return self.loop.fileno()

    def next_timeout(self) -> float | None:
        """Seconds until ``process`` is due though ``fileno`` says nothing; None for never."""
        return self.loop.next_timeout()

    async def serve_async(self) -> None:
        """Serves in the running asyncio loop, until cancelled or until no client can come any more; then closes."""
        import asyncio  # half of what starting a server would take

        outer = asyncio.get_running_loop()
        turn = asyncio.Event()
        fd = self.fileno()
        outer.add_reader(fd, turn.set)
        self._runner, self._on_close = threading.get_ident(), turn.set
        try:
            while not self.loop.is_stopping and not self.is_finished:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(turn.wait(), self.next_timeout())
                turn.clear()
                self.process()
        finally:
            outer.remove_reader(fd)
            self._ran()

    def join(self) -> None:
        """Waits for the thread of ``start`` to end.

        Raises:
            Exception: what a strict server failed with.
        """
        if self._thread is not None:
            self._thread.join()
        self._raise_failure()

    def stop(self) -> None:
        """Ends ``run``, ``start``'s thread or ``serve_async`` soon. Any thread, and signal handlers."""
        self.loop.stop()

    @property
    def is_finished(self) -> bool:
        """No client is connected and none can come: it was closed, or served the one connection it inherited."""
        return self._session is None and self._listener.exhausted

    def close(self) -> None:
        """Stops, removes the socket file and lets go of the client. Idempotent. Any thread."""
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            self.stop()
            thread.join()
        elif self._runner not in (None, threading.get_ident()):
            self.stop()
            self._finished.wait()
        else:
            self._close()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._end_session("the server is closing", self._session)
        if self._watch is not None:
            self._watch.close()
        self._listener.close()
        self.device.interrupts.on_unmask_fd_changed = self.device.interrupts.postpone = None
        if self._owns_loop:
            self.device.detach()
            self.loop.close()
        if self._on_close is not None:
            self._on_close()

    def _ran(self) -> None:
        """``run`` or ``serve_async`` is over."""
        try:
            self._close()
        finally:
            self._runner = None
            self._finished.set()

    def _run_for_join(self) -> None:
        """The thread of ``start``: what ``run`` raises is kept for ``join``."""
        try:
            self.run()
        except Exception as exc:
            log.exception("%s: the server ended", self.address)
            self._failure = exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if kind is None:
            self._raise_failure()

    # One client after another.

    def _wait_for_client(self) -> None:
        fd = self._listener.fileno()
        if fd >= 0:
            self._watch = self.loop.watch(fd, self._accept, for_clients=True)
        elif not self._listener.exhausted:
            self._accept()

    def _wait_again(self) -> None:
        if not self._closed and self._session is None and self._watch is None:
            self._wait_for_client()

    def _accept(self) -> None:
        """Begins a session with the next client. Until it ends, further clients wait in the socket's queue."""
        channel = self._listener.accept()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if channel is None:
            # Gone again, or this process is out of descriptors: the client waits, and must not keep the thread busy.
            self.loop.call_later(_RETRY, self._wait_again)
            return
        # The messages' half of the package takes a third of its time to import, and is no use before there is a client.
        from vfio_user.server.session import Session

        peer = describe_peer(channel)
        session = Session(self.device, channel, peer=peer, observer=self._observer, strict=self._strict)
        self._session, self._channel = session, channel
        self._watch = self.loop.watch(channel.fileno(), self._serve, for_clients=True)
        session.on_pending = self._serve
        watchdog.add(session)
        log.info("%s: %s connected", self.address, peer)
        try:
            self.device.connected()
        except Exception as exc:
            log.exception("the device failed while its client connected")
            self._fail(exc)

    def _serve(self) -> None:
        """The client's socket is ready: to read from, or at last to write to."""
        session = self._session
        if session is None:
            return
        with self._ending(session):
            session.serve()
            self._wait_for_what_is_due(session)

    def _wait_for_what_is_due(self, session: Session) -> None:
        """Waits to write or to read; or for nothing, when all that is left is that the device's code returns."""
        watch = self._watch
        if watch is not None and self._session is session:
            held_back, is_over = session.wants_to_write, session.client_memory.ended is not None
            events = 0 if is_over else select.EPOLLOUT if held_back else 0 if session.is_full else select.EPOLLIN
            if watch.events != events:
                watch.set_events(readable=events == select.EPOLLIN, writable=events == select.EPOLLOUT)

    def _serve_directly(self, session: Session) -> None:
        """Waits in the receive call itself, as long as there is nothing else to wait for.

        That saves the call that would ask which descriptor is ready: a tenth of a register access.
        """
        channel = self._channel
        assert isinstance(channel, socket.socket)
        if channel is not self._ticking:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(_TICK * 1e6)))
            self._ticking = channel
        with self._ending(session):
            session.receive_blocking(self.loop)
            if session.wants_to_write:
                self._wait_for_what_is_due(session)
                self.loop.run_once(None)

    @contextlib.contextmanager
    def _ending(self, session: Session) -> Iterator[None]:
        """Ends the session when its connection does, or when it fails in a way nobody foresaw."""
        try:
            yield
        except ConnectionClosedError as exc:
            self._end_session(str(exc), session)
        except Exception as exc:
            self._end_session("the server failed", session)
            if not self._strict:
                log.exception("%s: the session failed; the client was cut off", session.peer)
            self._fail(exc)

    def _end_session(self, why: str, session: Session | None) -> None:
        # Not the next client's, which may be here when device code of the last returns from a wait for it.
        if session is None or session is not self._session:
            return
        self._session = self._channel = self._ticking = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        watchdog.remove(session)
        session.close()
        log.info("%s: %s left: %s", self.address, session.peer, why)
        try:
            self.device.disconnected()
        except Exception as exc:
            log.exception("the device failed while it let go of its client")
            self._fail(exc)
        if not self._closed:
            self._wait_for_client()

    def _postpone(self, fire: Callable[[], object]) -> Timer:
        return self.loop.call_later(_INTX_PAUSE, fire)

    def _watch_unmask_fd(self, fd: int | None) -> None:
        """The client connected (or took back) an eventfd by which it unmasks INTx."""
        if self._unmask_watch is not None:
            self._unmask_watch.close()
            self._unmask_watch = None
        if fd is not None:
            self._unmask_watch = self.loop.watch(fd, self.device.interrupts.unmask_event)

    def _fail(self, exc: Exception) -> None:
        """Keeps the first thing that failed, to be raised where a strict server runs."""
        if self._strict and self._failure is None:
            self._failure = exc

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure


def run_servers(*servers: Server) -> None:
    """Serves until SIGTERM, SIGINT (Ctrl-C) or ``stop``; closes every server, whatever happens.

    One server runs on this thread, which must be the main thread; several each on a thread of their own, unless they
    share a loop, which then runs on this one.

    Raises:
        Exception: what a strict server failed with.
    """
    loops = {id(server.loop): server for server in servers}

    def stop(_signal: int, _frame: object) -> None:
        for server in servers:
            server.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if len(servers) == 1:
            servers[0].run()
        elif len(loops) == 1:
            loop = servers[0].loop
            while not loop.is_stopping and not all(server.is_finished for server in servers):
                loop.run_once(None)
                for server in servers:
                    server._raise_failure()
        else:
            for server in servers:
                server.start()
            for server in servers:
                server.join()
    finally:
        for server in servers:
            server.close()
        for number, handler in before.items():
            signal.signal(number, handler)

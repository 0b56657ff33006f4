"""Interrupts: eventfds made, connected, waited for and closed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tests.client.scripted import Answering, ScriptedServer, message
from vfio_user.client.irq import Irq
from vfio_user.errors import CommandError, ConnectionClosedError, InterruptTimeoutError, StateError
from vfio_user.protocol.constants import Command, IrqInfoFlags, IrqSetFlags
from vfio_user.protocol.irq import IrqInfo, SetIrqs


@pytest.fixture
def irq(answering: Answering) -> Iterator[Irq]:
    """MSI-X with four vectors."""
    answering.answers[Command.DEVICE_GET_IRQ_INFO] = lambda _: IrqInfo(2, IrqInfoFlags.EVENTFD, 4).encode()
    with answering.client() as client:
        irq = client.irq(2)
        answering.heard.clear()
        yield irq


def sent(answering: Answering) -> list[tuple[int, int, int, int]]:
    """(flags, start, count, descriptors) of each SET_IRQS."""
    requests = [(SetIrqs.decode(heard.payload), heard.fds) for heard in answering.heard]
    answering.heard.clear()
    return [(int(request.flags), request.start, request.count, fds) for request, fds in requests]


def test_life(irq: Irq, answering: Answering) -> None:
    assert (irq.name, irq.count, len(irq), repr(irq)) == ("MSIX", 4, 0, "<MSIX: 0 of 4 vectors enabled>")
    vectors = irq.enable(3)
    assert (len(irq), list(irq), irq[2]) == (3, vectors, vectors[2])
    assert sent(answering) == [(0x24, 0, 3, 3)]
    irq.enable(connected=[1, 2])
    assert sent(answering) == [(0x21, 0, 0, 0), (0x24, 0, 1, 0), (0x24, 1, 2, 2), (0x24, 3, 1, 0)]
    irq.connect(0)
    irq.disconnect(1)
    irq.mask()
    irq.unmask()
    irq.trigger(2)
    assert sent(answering) == [(0x24, 0, 1, 1), (0x24, 1, 1, 0), (0x9, 0, 1, 0), (0x11, 0, 1, 0), (0x21, 2, 1, 0)]
    irq.disable()
    irq.disable()
    assert sent(answering) == [(0x21, 0, 0, 0)]
    assert all(vector.fd == -1 for vector in vectors)


def test_waiting(irq: Irq) -> None:
    vector = irq.enable()[1]
    with pytest.raises(InterruptTimeoutError, match=r"MSIX vector 1 did not fire within 0\.5 seconds"):
        vector.wait(0.5)
    assert (vector.poll(), vector.is_pending) == (0, False)
    os.eventfd_write(vector.fd, 2)
    assert (vector.is_pending, vector.is_pending) == (True, True)
    os.eventfd_write(vector.fd, 1)
    assert (vector.wait(), vector.is_pending) == (3, False)
    os.eventfd_write(irq[0].fd, 1)
    assert irq.wait() == 1


def test_waiting_on_a_real_socket(server: ScriptedServer) -> None:
    with server.client() as client:
        irq = Irq(client, IrqInfo(2, IrqInfoFlags.EVENTFD, 1))
        server.say(message(7, 1))
        pending = client.connection.submit(Command.DEVICE_RESET)
        server.say(message(pending.message_id, Command.DEVICE_RESET))
        irq.vectors = []
        irq.count = 1
        client.connect_irqs = lambda *_, **__: None  # type: ignore[method-assign]
        (vector,) = irq.enable()
        thread = threading.Timer(0.01, os.eventfd_write, (vector.fd, 1))
        thread.start()
        assert vector.wait(5) == 1
        thread.join()
        assert pending.is_done
        server.close()
        with pytest.raises(ConnectionClosedError):
            vector.wait(5)
        irq.close()


def test_vectors_that_are_not_there(irq: Irq) -> None:
    for count in (0, 5, -1):
        with pytest.raises(StateError, match=f"the device has 4 MSIX vectors; {count} cannot be enabled"):
            irq.enable(count)
    with pytest.raises(StateError, match="MSIX vector 0 is not enabled; 0 of 4 are"):
        irq.wait()
    vector = irq.enable(1)[0]
    irq.disable()
    for use in (vector.wait, vector.poll, lambda: vector.is_pending):
        with pytest.raises(StateError, match="MSIX vector 0 is disabled"):
            use()


def test_a_kind_without_eventfds(irq: Irq) -> None:
    irq.flags = IrqInfoFlags(0)
    with pytest.raises(StateError, match="does not signal MSIX by eventfd"):
        irq.enable()


def test_a_kind_of_no_name(irq: Irq) -> None:
    irq.index = 77
    assert irq.name == "interrupt 77"


def test_a_server_that_refuses(irq: Irq, answering: Answering) -> None:
    answering.answers[Command.DEVICE_SET_IRQS] = lambda _: 22
    with pytest.raises(CommandError, match=r"DEVICE_SET_IRQS of MSIX vectors \[0, 4\)"):
        irq.enable()
    assert irq.vectors == []
    assert IrqSetFlags.DATA_EVENTFD in SetIrqs.decode(answering.heard[0].payload).flags


def test_another_device_takes_over(irq: Irq, answering: Answering) -> None:
    other = Irq(irq.client, IrqInfo(2, IrqInfoFlags.EVENTFD, 4))
    irq.enable(3, connected=[0, 2])
    stand_in = os.eventfd(0)
    irq.connect(2, stand_in)
    sent(answering)
    vectors = other.take_over(irq)
    # What the one device has, the other gets: nothing for vector 1, what stands in for vector 2.
    assert sent(answering) == [(0x24, 0, 1, 1), (0x24, 1, 1, 0), (0x24, 2, 1, 1)]
    assert irq.given == {0: irq[0].fd, 2: stand_in}
    # The other's own eventfds by descriptors of its own.
    assert (len(other), other.given) == (3, {0: other[0].fd, 2: stand_in})
    os.eventfd_write(irq[1].fd, 2)
    assert vectors[1].poll() == 2
    # What was counted and not asked for is told once.
    os.eventfd_write(irq[0].fd, 1)
    assert irq[0].is_pending
    irq[0].hand_over(other[0])
    assert (irq[0].poll(), other[0].poll()) == (0, 1)
    # Each has a descriptor of its own.
    irq.close()
    os.eventfd_write(vectors[1].fd, 1)
    assert vectors[1].poll() == 1
    other.close()
    os.close(stand_in)
    assert (irq.given, other.given) == ({}, {})


def test_more_than_can_be_taken_over(irq: Irq, answering: Answering) -> None:
    irq.enable(4)
    with pytest.raises(StateError, match="the device has 3 MSIX vectors; 4 cannot be taken over"):
        Irq(irq.client, IrqInfo(2, IrqInfoFlags.EVENTFD, 3)).take_over(irq)
    answering.answers[Command.DEVICE_SET_IRQS] = lambda _: 22
    other = Irq(irq.client, IrqInfo(2, IrqInfoFlags.EVENTFD, 4))
    with pytest.raises(CommandError):
        other.take_over(irq)
    assert (len(other), other.given) == (0, {})
    answering.answers.clear()

"""Interrupts, as the client gets them: eventfds, one for each vector.

Spec: "VFIO_USER_DEVICE_GET_IRQ_INFO", "VFIO_USER_DEVICE_SET_IRQS".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vfio_user.errors import InterruptTimeoutError, StateError
from vfio_user.protocol.constants import IrqIndex, IrqInfoFlags, IrqSetFlags
from vfio_user.protocol.irq import IrqInfo

if TYPE_CHECKING:
    from vfio_user.client.device import VfioUserClient

__all__ = ["Irq", "IrqVector"]


class IrqVector:
    """One vector, with its eventfd.

    Attributes:
        irq: the kind of interrupt it belongs to.
        number: which.
        fd: the eventfd; readable when it has fired.
    """

    def __init__(self, irq: Irq, number: int, fd: int | None = None) -> None:
        self.irq = irq
        self.number = number
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if fd is None else fd
        self._kept = 0

    def wait(self, timeout: float | None = None) -> int:
        """Waits until it fires, serving the device's DMA meanwhile.

        Args:
            timeout: seconds; None for the connection's.

        Returns:
            How often it has fired since it was last asked, at least 1. Interrupts of a device that fires faster than
            this program looks add up.

        Raises:
            InterruptTimeoutError: it did not.
            StateError: the vector was disabled.
            ConnectionClosedError: the connection has ended.
        """
        fired = self._take()
        if fired:
            return fired
        connection = self.irq.client.connection
        if not connection.wait_readable(self._open_fd(), timeout):
            given = connection.timeout if timeout is None else timeout
            raise InterruptTimeoutError(f"{self} did not fire within {given:g} seconds")
        return self._take()

    def poll(self) -> int:
        """How often it has fired since it was last asked, 0 if not; waits for nothing.

        Raises:
            StateError: the vector was disabled.
            ConnectionClosedError: the connection has ended.
        """
        self.irq.client.connection.process()
        return self._take()

    @property
    def is_pending(self) -> bool:
        """It has fired and was not asked since; asking this changes nothing."""
        self._kept = self._take()
        return bool(self._kept)

    def _take(self) -> int:
        kept, self._kept = self._kept, 0
        with contextlib.suppress(BlockingIOError):
            kept += os.eventfd_read(self._open_fd())
        return kept

    def _open_fd(self) -> int:
        if self.fd < 0:
            raise StateError(f"{self} is disabled: enable it again, and take the new vector")
        return self.fd

    def hand_over(self, other: IrqVector) -> None:
        """Lets another vector, with the same eventfd, tell of what this one has counted and nobody asked for."""
        other._kept += self._kept
        self._kept = 0

    def close(self) -> None:
        """Closes the eventfd. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __str__(self) -> str:
        return f"{self.irq.name} vector {self.number}"


class Irq:
    """One kind of interrupt. Get it from ``VfioUserClient.irq``; ``irq[3]`` is vector 3 once it is enabled.

    Attributes:
        client: whose.
        index: which.
        count: vectors the device has.
        flags: what can be done with them.
        vectors: those that are enabled.
        given: the eventfd the device has now, by vector: the vector's own, or one in its place.

    Ownership: the eventfds are closed by ``disable``, or with the client.
    """

    def __init__(self, client: VfioUserClient, info: IrqInfo) -> None:
        self.client = client
        self.index = info.index
        self.count = info.count
        self.flags = info.flags
        self.vectors: list[IrqVector] = []
        self.given: dict[int, int] = {}

    @property
    def name(self) -> str:
        """``MSIX``, ``INTX``."""
        try:
            return IrqIndex(self.index).name
        except ValueError:
            return f"interrupt {self.index}"

    def enable(self, count: int | None = None, *, connected: Iterable[int] | None = None) -> list[IrqVector]:
        """Gives vectors an eventfd each, and the eventfds to the device; replaces what was enabled before.

        Args:
            count: vectors, from 0 on; None for all.
            connected: those of them whose eventfd the device gets now; None for all. (MSI-X vectors that are masked
                get theirs when they are unmasked.)

        Raises:
            StateError: the device has no interrupts of this kind, or not as many, or not by eventfd.
            CommandError: the server refused.
        """
        wanted = self.count if count is None else count
        if not 1 <= wanted <= self.count:
            raise StateError(f"the device has {self.count} {self.name} vectors; {wanted} cannot be enabled")
        if not self.flags & IrqInfoFlags.EVENTFD:
            raise StateError(f"the device does not signal {self.name} by eventfd")
        self.disable()
        self.vectors = [IrqVector(self, number) for number in range(wanted)]
        live = set(range(wanted)) if connected is None else set(connected)
        try:
            self._give([v.fd if v.number in live else None for v in self.vectors])
        except BaseException:
            self._close_vectors()
            raise
        return self.vectors

    def take_over(self, other: Irq) -> list[IrqVector]:
        """Enables what another device has enabled, with the very same eventfds: for a device that takes its place.

        Who waits for one of them, waits for both devices.

        Args:
            other: the same kind of interrupt of the other device; stays as it is.

        Raises:
            StateError: this device has not as many vectors.
            CommandError: the server refused.
        """
        if len(other) > self.count:
            raise StateError(f"the device has {self.count} {self.name} vectors; {len(other)} cannot be taken over")
        self.disable()
        self.vectors = [IrqVector(self, vector.number, os.dup(vector.fd)) for vector in other]
        given = [other.given.get(vector.number) for vector in other]
        # Of a vector's own eventfd this has a descriptor of its own, as the other one's is closed with its client.
        own = [new.fd if fd == vector.fd else fd for fd, vector, new in zip(given, other, self.vectors, strict=True)]
        try:
            self._give(own)
        except BaseException:
            self._close_vectors()
            raise
        return self.vectors

    def connect(self, vector: int, fd: int | None = None) -> None:
        """Gives one vector's eventfd to the device again, or another one in its place, which stays the caller's."""
        self._give([self[vector].fd if fd is None else fd], vector)

    def disconnect(self, vector: int) -> None:
        """Takes one vector's eventfd back; its interrupts are pending in the device until it is connected again."""
        self._give([None], self[vector].number)

    def _give(self, fds: list[int | None], start: int = 0) -> None:
        self.client.connect_irqs(self.index, fds, start=start)
        for vector, fd in enumerate(fds, start):
            if fd is None:
                self.given.pop(vector, None)
            else:
                self.given[vector] = fd

    def disable(self) -> None:
        """Takes everything back from the device, and closes the eventfds. Nothing happens if nothing is enabled."""
        if self.vectors:
            try:
                self.client.set_irqs(self.index, IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER, 0, 0)
            finally:
                self._close_vectors()

    def mask(self, vector: int = 0) -> None:
        """Masks a vector in the device. (Of PCI's interrupts, INTx alone can be masked this way.)"""
        self.client.set_irqs(self.index, IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_MASK, vector, 1)

    def unmask(self, vector: int = 0) -> None:
        """Unmasks a vector in the device: the end of an INTx handler, since INTx masks itself when it fires."""
        self.client.set_irqs(self.index, IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_UNMASK, vector, 1)

    def trigger(self, vector: int = 0) -> None:
        """Makes the device fire a vector: a test of the way back."""
        self.client.set_irqs(self.index, IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER, vector, 1)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for vector 0; see ``IrqVector.wait``."""
        return self[0].wait(timeout)

    def close(self) -> None:
        """Closes the eventfds without telling the device. Idempotent."""
        self._close_vectors()

    def _close_vectors(self) -> None:
        for vector in self.vectors:
            vector.close()
        self.vectors = []
        self.given.clear()

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[IrqVector]:
        return iter(self.vectors)

    def __getitem__(self, vector: int) -> IrqVector:
        """The vector of that number.

        Raises:
            StateError: it is not enabled.
        """
        if not 0 <= vector < len(self.vectors):
            raise StateError(
                f"{self.name} vector {vector} is not enabled; {len(self.vectors)} of {self.count} are: call enable()"
            )
        return self.vectors[vector]

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self.vectors)} of {self.count} vectors enabled>"

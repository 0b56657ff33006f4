"""A device's interrupts: what the client set up for each, and the eventfds that carry them.

An interrupt *index* is a kind (``IrqIndex``: INTx, MSI, MSI-X, ERR, REQ); each has a number of *vectors*. The client
gives a vector an eventfd, and firing the vector adds one to it.

**MSI and MSI-X** are messages. A vector that fires while it is masked, or while the index is in use but the vector has
no eventfd, becomes *pending* and fires when it can. (QEMU puts MSI-X to use with a SET_IRQS that brings no eventfd at
all.) A vector of an index not in use fires into nothing, as it does in hardware.

**INTx** is a level. While the line is asserted, and neither masked nor disabled in the command register, its eventfd is
written once and the line masks itself (AUTOMASKED) until the client unmasks it; if it is still asserted then, it fires
again. Unmasking is a message, or, with KVM, a write of the client's to a second eventfd that the session watches::

    assert_intx ──> level ──┐
    not intx_disabled ──────┼── and ──> write eventfd, mask ──> ... ──> UNMASK ──┐
    not masked ─────────────┘<──────────────────────────────────────────────────┘

QEMU without KVM does not know when its guest is done with an interrupt, so it unmasks at the first access of the
guest's handler to the device, before the handler had a chance to do what lowers the line. To fire again right then
makes the guest take every interrupt twice. So with ``postpone`` set, a line that is still asserted when a *message*
unmasks it fires again a little later, unless it is lowered before.

**Eventfds of a peer.** Only eventfds are accepted: writing 8 bytes to whatever else a peer sends could block, or do
worse. An eventfd blocks its writer only when its counter is full and O_NONBLOCK is not set, and that flag is the
peer's; so a blocking one is polled before it is written. (QEMU and cloud-hypervisor set the flag.) A peer that goes
out of its way, by filling the counter in the instant between or by clearing the flag later, can still hold up the
thread of the device it uses.

Spec: vfio-user "VFIO_USER_DEVICE_GET_IRQ_INFO", "VFIO_USER_DEVICE_SET_IRQS"; ``struct vfio_irq_set`` of
``linux/vfio.h``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vfio_user.errors import InvalidAccess
from vfio_user.protocol.constants import NUM_PCI_IRQS, IrqIndex, IrqInfoFlags, IrqSetFlags

__all__ = ["Cancellable", "InterruptStatistics", "Interrupts"]

_INTX = int(IrqIndex.INTX)
_MSI = int(IrqIndex.MSI)
_MSIX = int(IrqIndex.MSIX)

#: What the client may do with each kind. As VFIO does, whether or not the device has any. NORESIZE never: it would make
#: QEMU tear all vectors down for each one it adds.
_INFO_FLAGS = [
    IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED,
    IrqInfoFlags.EVENTFD,
    IrqInfoFlags.EVENTFD,
    IrqInfoFlags.EVENTFD,
    IrqInfoFlags.EVENTFD,
]

# Plain integers: each operator of a flag enumeration is a call.
_ACTION_MASK, _DATA_MASK = int(IrqSetFlags.ACTION_TYPE_MASK), int(IrqSetFlags.DATA_MASK)
_ACTIONS = tuple(map(int, (IrqSetFlags.ACTION_MASK, IrqSetFlags.ACTION_UNMASK, IrqSetFlags.ACTION_TRIGGER)))
_DATA_TYPES = tuple(map(int, (IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD)))


@dataclass(frozen=True, slots=True)
class InterruptStatistics:
    """What became of a device's interrupts.

    Attributes:
        fired: for each index, how often each vector's eventfd was written.
        deferred: how often a vector became pending, or INTx was held back, instead.
        dropped: how often one fired into nothing.
    """

    fired: dict[IrqIndex, list[int]]
    deferred: int
    dropped: int


class Cancellable(Protocol):
    """A call put off."""

    def cancel(self) -> None:
        """Calls it off."""


class _Vectors:
    """The vectors of one index.

    Attributes:
        armed: vector -> descriptor, of those that can fire right now: the hot path looks here and nowhere else.
        fds: vector -> descriptor, of those that have one.
        guarded: descriptor -> how to ask whether writing it would block, of those that can.
        masked: vectors that are masked.
        pending: bit v is set: vector v is to fire as soon as it can.
        enabled: the client has put the index to use.
        held: nothing fires now, the device being stopped.
        fired: times each vector fired.
    """

    __slots__ = ("armed", "count", "enabled", "fds", "fired", "guarded", "held", "index", "masked", "pending")

    def __init__(self, index: IrqIndex, count: int) -> None:
        self.index = index
        self.count = count
        self.armed: dict[int, int] = {}
        self.fds: dict[int, int] = {}
        self.guarded: dict[int, select.poll] = {}
        self.masked: set[int] = set()
        self.pending = 0
        self.enabled = False
        self.held = False
        self.fired = [0] * count

    def assign(self, vector: int, fd: int | None) -> None:
        """Gives a vector an eventfd, which is owned from here on, or takes it away; the old one is closed."""
        old = self.fds.pop(vector, None)
        if old is not None:
            self.guarded.pop(old, None)
            os.close(old)
        if fd is not None:
            self.fds[vector] = fd
            if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK:
                self.guarded[fd] = select.poll()
                self.guarded[fd].register(fd, select.POLLOUT)
        self.rearm(vector)

    def rearm(self, vector: int) -> None:
        """Brings ``armed`` up to date after an eventfd or a mask changed. INTx never is: it goes by its level."""
        fd = self.fds.get(vector)
        if fd is None or self.held or vector in self.masked or fd in self.guarded or self.index == _INTX:
            self.armed.pop(vector, None)
        else:
            self.armed[vector] = fd

    def signal(self, vector: int) -> bool:
        """Writes the vector's eventfd, masked or not; False if it has none, or is held."""
        fd = self.fds.get(vector)
        if fd is None or self.held:
            return False
        try:
            if not self.guarded or (guard := self.guarded.get(fd)) is None or guard.poll(0):
                os.eventfd_write(fd, 1)
        except BlockingIOError:
            pass  # the counter is full: it has been signalled already, which is all an interrupt can say
        self.fired[vector] += 1
        return True

    def disable(self) -> None:
        """Closes every eventfd and forgets masks and what was pending."""
        for fd in self.fds.values():
            os.close(fd)
        self.armed.clear()
        self.fds.clear()
        self.guarded.clear()
        self.masked.clear()
        self.pending = 0
        self.enabled = False


class Interrupts:
    """The interrupts of one device.

    Args:
        counts: vectors of each index; those left out have none, except ERR and REQ, which always have one.

    Attributes:
        on_intx_level: called with the new level whenever the INTx line changes: the status register shows it.
        postpone: calls something a little later, and gives what calls that off; None to fire again at once. See above.
        on_unmask_fd_changed: called with the eventfd to watch from now on, None for none any more, while the one
            before is still open. When it becomes readable, call ``unmask_event``.

    Raises:
        ValueError: INTx with more than one vector, or a negative count.

    Ownership: descriptors handed to ``set_irqs`` are this object's from the call on; ``clear`` closes them.

    Threading: session thread.
    """

    def __init__(self, counts: Mapping[IrqIndex, int]) -> None:
        numbers = {IrqIndex.ERR: 1, IrqIndex.REQ: 1, **counts}
        for index, count in numbers.items():
            if count < 0 or (count > 1 and index not in (IrqIndex.MSI, IrqIndex.MSIX)):
                raise ValueError(
                    f"{count} vectors of {index.name}: MSI and MSI-X may have several, the others at most 1"
                )
        self._vectors = [_Vectors(index, numbers.get(index, 0)) for index in IrqIndex]
        self._intx = self._vectors[_INTX]
        self._intx_level = False
        self._intx_disabled = False
        self._unmask_fd: int | None = None
        self._deferred = self._dropped = 0
        self._postponed: Cancellable | None = None
        self.postpone: Callable[[Callable[[], object]], Cancellable] | None = None
        self.on_intx_level: Callable[[bool], None] | None = None
        self.on_unmask_fd_changed: Callable[[int | None], None] | None = None

    # ---- What the client does ----

    def info(self, index: int) -> tuple[IrqInfoFlags, int]:
        """What the client may do with an index, and its number of vectors.

        Raises:
            InvalidAccess: there is no such index.

        Spec: "VFIO_USER_DEVICE_GET_IRQ_INFO".
        """
        vectors = self._of(index)
        return _INFO_FLAGS[vectors.index], vectors.count

    def set_irqs(
        self,
        index: int,
        flags: int,
        start: int,
        count: int,
        bools: bytes | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        """Sets up, masks, unmasks or fires vectors ``[start, start + count)``; all of it or nothing.

        =======  ========================  =================================  ===================================
        action   NONE                      BOOL: those whose byte is not 0    EVENTFD
        =======  ========================  =================================  ===================================
        TRIGGER  fire; count 0: turn off   fire                               fire through these; none: de-assign
        MASK     mask                      mask                               accepted, without effect
        UNMASK   unmask                    unmask                             INTx: unmask when the client writes
        =======  ========================  =================================  ===================================

        Args:
            index: an ``IrqIndex``.
            flags: ``IrqSetFlags``: one data type and one action.
            start: the first vector.
            count: how many.
            bools: one byte a vector, with BOOL.
            fds: one eventfd a vector, or none at all, with EVENTFD.

        Raises:
            InvalidAccess: what was sent makes no sense, in any of the ways vfio-user 5.5 and VFIO refuse.

        Ownership: ``fds`` are this object's in every case.

        Spec: "VFIO_USER_DEVICE_SET_IRQS".
        """
        unused = list(fds)
        try:
            vectors = self._of(index)
            action, data = _check_set(vectors, flags, start, count, bools, fds)
            if action == IrqSetFlags.ACTION_TRIGGER and data == IrqSetFlags.DATA_EVENTFD:
                unused.clear()
                self._assign(vectors, start, count, fds)
            elif data == IrqSetFlags.DATA_EVENTFD:
                if action == IrqSetFlags.ACTION_UNMASK and vectors is self._intx:
                    unused.clear()
                    self._replace_unmask_fd(fds[0] if fds else None)
                # Else: the client offers to be told, or to tell us, by eventfd. VFIO itself knows only the case above.
            elif count == 0:
                self._disable(vectors)
            else:
                wanted = range(start, start + count)
                for vector in wanted if bools is None else (v for v, on in zip(wanted, bools, strict=True) if on):
                    if action == IrqSetFlags.ACTION_MASK:
                        self.mask(vectors.index, vector)
                    elif action == IrqSetFlags.ACTION_UNMASK:
                        if vectors is self._intx and self._intx_level and self.postpone is not None:
                            vectors.masked.discard(vector)
                            self._fire_later(self.postpone)
                        else:
                            self.unmask(vectors.index, vector)
                    else:
                        vectors.signal(vector)
        finally:
            for fd in unused:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def mask(self, index: IrqIndex, vector: int) -> None:
        """Holds a vector back: it becomes pending instead of firing.

        This is the client's mask. The mask bits of the device's MSI-X table do not belong here: clients (QEMU, VFIO
        itself) keep that table to themselves, so the device's own copy stays as reset left it, all masked.

        Raises:
            InvalidAccess: no such vector.
        """
        vectors = self._checked(index, vector)
        vectors.masked.add(vector)
        vectors.rearm(vector)

    def unmask(self, index: IrqIndex, vector: int) -> None:
        """Lets a vector fire again, and fires it if it is pending (INTx: if it is asserted).

        Raises:
            InvalidAccess: no such vector.
        """
        vectors = self._checked(index, vector)
        vectors.masked.discard(vector)
        vectors.rearm(vector)
        self._catch_up(vectors, vector)

    @property
    def unmask_fd(self) -> int | None:
        """The eventfd the client writes to unmask INTx; None while there is none."""
        return self._unmask_fd

    def unmask_event(self) -> None:
        """The unmask eventfd became readable: drains it, unmasks INTx and fires again if it is still asserted."""
        fd = self._unmask_fd
        if fd is None:
            return
        try:
            # Not os.eventfd_read: the eventfd may be a blocking one, and somebody else may have read it first.
            os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return
        self.unmask(IrqIndex.INTX, 0)

    def clear(self) -> None:
        """The client is gone: closes every eventfd. The INTx line keeps its level, which is the device's."""
        for vectors in self._vectors:
            self._disable(vectors)

    # ---- What the device does ----

    def trigger(self, index: IrqIndex, vector: int = 0) -> bool:
        """Fires a vector of MSI, MSI-X, ERR or REQ.

        ERR makes QEMU stop the whole machine; it is for errors the device cannot contain.

        Returns:
            Whether the client was told now. If not, the vector is pending, or the index not in use.

        Raises:
            InvalidAccess: a bug of the device: no such vector, or INTx, which has a level instead.
        """
        vectors = self._vectors[index]
        fd = vectors.armed.get(vector)
        if fd is None:
            return self._trigger_slowly(vectors, vector)
        try:  # noqa: SIM105 - suppress() would cost as much as the write itself
            os.eventfd_write(fd, 1)
        except BlockingIOError:
            pass  # the counter is full: it has been signalled already
        vectors.fired[vector] += 1
        return True

    def assert_intx(self) -> bool:
        """Raises the INTx line. It stays up until ``deassert_intx``, however often the client is told.

        Returns:
            Whether the client was told now.

        Raises:
            InvalidAccess: a bug of the device: it has no interrupt pin.
        """
        if not self._intx.count:
            raise InvalidAccess("INTx asserted by a device without an interrupt pin: declare one")
        self._set_level(True)
        return self._fire_intx()

    def deassert_intx(self) -> None:
        """Lowers the INTx line. The client is not told: it finds out by asking the device."""
        self._set_level(False)

    @property
    def intx_level(self) -> bool:
        """Whether the INTx line is up."""
        return self._intx_level

    @property
    def intx_disabled(self) -> bool:
        """Interrupt Disable of the command register: the line keeps its level but tells nobody.

        Spec: PCI 3.0 6.2.2.
        """
        return self._intx_disabled

    @intx_disabled.setter
    def intx_disabled(self, disabled: bool) -> None:
        self._intx_disabled = disabled
        self._fire_intx()

    def pending(self, index: IrqIndex) -> int:
        """The pending vectors, as the Pending Bit Array shows them: bit v is vector v."""
        return self._vectors[index].pending

    # ---- When the device moves ----

    @property
    def held(self) -> bool:
        """The device is stopped, to be migrated: what would fire becomes pending, and fires when this ends."""
        return self._intx.held

    @held.setter
    def held(self, held: bool) -> None:
        for vectors in self._vectors:
            vectors.held = held
            for vector in vectors.fds:
                vectors.rearm(vector)
        if not held:
            self._catch_up_all()

    def save_state(self) -> dict[str, Any]:
        """What is the device's of it: the level of INTx, and what is pending. Plain data, fit for JSON."""
        pending = {vectors.index.name: vectors.pending for vectors in self._vectors if vectors.index in (_MSI, _MSIX)}
        return {"intx_level": self._intx_level, "pending": pending}

    def check_state(self, state: object) -> Callable[[], None]:
        """Checks a saved state, without changing anything.

        Returns:
            A function that puts it back. What is pending fires as soon as the client connects it, and nothing is held.

        Raises:
            InvalidAccess: it is no saved state, or one with more vectors than there are.
        """
        level = state.get("intx_level") if isinstance(state, dict) else None
        saved = state.get("pending") if isinstance(state, dict) else None
        if not isinstance(level, bool) or not isinstance(saved, dict) or saved.keys() != {"MSI", "MSIX"}:
            raise InvalidAccess(f"saved interrupts: {state!r} is no level of INTx and pending vectors of MSI and MSIX")
        if level and not self._intx.count:
            raise InvalidAccess("saved interrupts: INTx is asserted, and this device has no interrupt pin")
        for index in (IrqIndex.MSI, IrqIndex.MSIX):
            bits, count = saved[index.name], self._vectors[index].count
            if type(bits) is not int or not 0 <= bits < 1 << count:
                raise InvalidAccess(
                    f"saved interrupts: {bits!r} are no pending vectors of {index.name}, which has {count}"
                )

        def put_back() -> None:
            for index in (IrqIndex.MSI, IrqIndex.MSIX):
                self._vectors[index].pending = saved[index.name]
            self._set_level(level)
            self._catch_up_all()

        return put_back

    def _catch_up_all(self) -> None:
        for vectors in self._vectors:
            for vector in vectors.fds:
                self._catch_up(vectors, vector)

    # ---- When it is reset, and what happened ----

    def reset(self) -> None:
        """The device is reset: nothing is pending and the INTx line is down. The client's eventfds and masks stay.

        QEMU sets interrupts up again after a reset, but others need not.
        """
        for vectors in self._vectors:
            vectors.pending = 0
        self._set_level(False)

    def statistics(self) -> InterruptStatistics:
        """Counts since the object was made."""
        return InterruptStatistics(
            fired={vectors.index: list(vectors.fired) for vectors in self._vectors if vectors.count},
            deferred=self._deferred,
            dropped=self._dropped,
        )

    # ---- Inside ----

    def _of(self, index: int) -> _Vectors:
        if not 0 <= index < NUM_PCI_IRQS:
            raise InvalidAccess(f"interrupt index {index}: a PCI device has 0 (INTx) to {NUM_PCI_IRQS - 1} (REQ)")
        return self._vectors[index]

    def _checked(self, index: int, vector: int) -> _Vectors:
        vectors = self._of(index)
        if not 0 <= vector < vectors.count:
            raise InvalidAccess(f"{vectors.index.name} vector {vector}: the device has {vectors.count}, counted from 0")
        return vectors

    def _assign(self, vectors: _Vectors, start: int, count: int, fds: Sequence[int]) -> None:
        vectors.enabled = True
        for position in range(count):
            vectors.assign(start + position, fds[position] if fds else None)
            if fds:
                self._catch_up(vectors, start + position)

    def _catch_up(self, vectors: _Vectors, vector: int) -> None:
        """Fires what was held back, if it no longer is."""
        if vectors is self._intx:
            self._fire_intx()
        elif vectors.pending >> vector & 1 and vector not in vectors.masked and vectors.signal(vector):
            vectors.pending &= ~(1 << vector)

    def _disable(self, vectors: _Vectors) -> None:
        vectors.disable()
        if vectors is self._intx:
            self._call_off()
            self._replace_unmask_fd(None)

    def _replace_unmask_fd(self, fd: int | None) -> None:
        old = self._unmask_fd
        if fd is None and old is None:
            return
        self._unmask_fd = fd
        try:
            if self.on_unmask_fd_changed is not None:
                self.on_unmask_fd_changed(fd)
        finally:
            if old is not None:
                os.close(old)

    def _trigger_slowly(self, vectors: _Vectors, vector: int) -> bool:
        """``trigger`` of a vector that is masked, has no eventfd, or has one that could block."""
        self._checked(vectors.index, vector)
        if vectors is self._intx:
            raise InvalidAccess("INTx has a level: use assert_intx and deassert_intx")
        if vector not in vectors.masked and vectors.signal(vector):
            return True
        if vectors.enabled and vectors.index in (_MSI, _MSIX):
            vectors.pending |= 1 << vector
            self._deferred += 1
        else:
            self._dropped += 1
        return False

    def _set_level(self, level: bool) -> None:
        if level != self._intx_level:
            self._intx_level = level
            self._call_off()
            if self.on_intx_level is not None:
                self.on_intx_level(level)

    def _fire_later(self, postpone: Callable[[Callable[[], object]], Cancellable]) -> None:
        self._call_off()
        self._postponed = postpone(self._fire_intx)

    def _call_off(self) -> None:
        if self._postponed is not None:
            self._postponed.cancel()
            self._postponed = None

    def _fire_intx(self) -> bool:
        self._call_off()
        if not self._intx_level:
            return False
        intx = self._intx
        if not self._intx_disabled and 0 not in intx.masked and intx.signal(0):
            intx.masked.add(0)
            return True
        self._deferred += 1
        return False


def _check_set(
    vectors: _Vectors, flags: int, start: int, count: int, bools: bytes | None, fds: Sequence[int]
) -> tuple[int, int]:
    """Every rule about a SET_IRQS of these vectors.

    Returns:
        The action and the data type.
    """
    action = flags & _ACTION_MASK
    data = flags & _DATA_MASK
    name = vectors.index.name
    if flags != action | data or action not in _ACTIONS or data not in _DATA_TYPES:
        raise InvalidAccess(f"SET_IRQS flags {flags:#x}: exactly one data type (1, 2, 4) and one action (8, 16, 32)")
    if fds and data != IrqSetFlags.DATA_EVENTFD:
        raise InvalidAccess(f"SET_IRQS of {name} with {len(fds)} file descriptor(s), which only EVENTFD data has")
    if count == 0:
        # A client may turn off what the device does not have; libvfio-user refuses that, to no one's benefit.
        if start == 0 and action == IrqSetFlags.ACTION_TRIGGER and data == IrqSetFlags.DATA_NONE:
            return action, data
        raise InvalidAccess(f"SET_IRQS of no {name} vectors, start {start}: only NONE|TRIGGER from 0 has a count of 0")
    if start < 0 or count < 0 or start + count > vectors.count:
        raise InvalidAccess(f"SET_IRQS of {name} vectors [{start}, {start + count}): the device has {vectors.count}")
    if vectors.index in (IrqIndex.ERR, IrqIndex.REQ) and action != IrqSetFlags.ACTION_TRIGGER:
        raise InvalidAccess(f"SET_IRQS of {name} to mask or unmask: it can only be triggered")
    if data == IrqSetFlags.DATA_BOOL and (bools is None or len(bools) != count):
        length = "no" if bools is None else len(bools)
        raise InvalidAccess(f"SET_IRQS of {count} {name} vectors with {length} bytes of BOOL data: one byte a vector")
    if fds and len(fds) != count:
        raise InvalidAccess(f"SET_IRQS of {count} {name} vectors with {len(fds)} file descriptors: all or none")
    for fd in fds:
        if not _is_eventfd(fd):
            raise InvalidAccess(f"SET_IRQS of {name} with a file descriptor that is no eventfd")
    return action, data


def _is_eventfd(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"  # noqa: PTH115 - no path, a name
    except OSError:
        pass
    # Without /proc: an eventfd has no file type. What else has none (epoll, timerfd, KVM's) refuses our write at once.
    try:
        return stat.S_IFMT(os.fstat(fd).st_mode) == 0
    except OSError:
        return False

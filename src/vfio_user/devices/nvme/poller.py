"""Doorbells that are looked at instead of ringing: memory a driver writes its tails and heads to.

A write to a doorbell register costs a driver a message, or the guest an exit. So the doorbells can be memory: the page
of BAR0 they lie in, which the client maps, or a page of guest memory the driver has given (Doorbell Buffer Config).
Somebody has to look there. While there is work the poller looks again and again, in turns of the device's loop, so that
messages, timers and descriptors get theirs in between. When it has found nothing for a while it *rests*:

* Of doorbells alone, nobody tells when they change. It looks now and then, each time later than the time before, up to
  every ``REST_LIMIT`` seconds, which takes less than 1 % of a processor. Nothing is missed: a tail stays in its
  doorbell until somebody looks.
* With an event index beside the doorbells (Doorbell Buffer Config has one), the driver can be asked to ring: ``arm``
  writes there how far the poller has come. It then looks once more, as the driver may have written a tail before it
  saw that; and does not look again until ``wake`` says that a doorbell register was written.

Other threads of the device get the interpreter, and on one processor anything at all, only while this one waits. So it
does not look all the time while they have work (``give_way``).

Looking is a copy of the doorbells and a comparison with the copy before, whatever the number of queues.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from vfio_user.rings import load_barrier

__all__ = ["DOORBELL_SIZE", "REST_LIMIT", "DoorbellPoller", "Scheduler"]

#: Bytes of a doorbell.
DOORBELL_SIZE = 4

#: Looks in one turn of the loop; about 30 us, which is how much later a message may be seen.
_LOOKS = 64

#: Looks in one turn that find something; some 1 ms of work at most, if there is much in each.
_FINDS = 8

#: Turns without any change until it rests; some 2 ms. Less than the gaps of a busy driver would make it rest in them.
_TURNS = 50

#: Seconds of the first rest, and of the longest. To wake up alone takes 60 us of a virtual processor that has gone to
#: sleep, and with the look 120.
_FIRST_REST = 0.0005
REST_LIMIT = 0.020


class _Timer(Protocol):
    def cancel(self) -> None: ...


class Scheduler(Protocol):
    """Who has work done later on the device's thread: a ``Device``."""

    def call_soon(self, callback: Callable[[], None], /) -> None:
        """Calls it in the loop's next turn."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> _Timer:
        """Calls it in that many seconds."""


class DoorbellPoller:
    """See the module.

    Args:
        scheduler: the device.
        look: copies the doorbells, 4 bytes each.
        ring: is told the number of each doorbell that changed, and its value. Both tails and heads: the numbers are
            those of the doorbell registers.
        work: carries out what was rung; called once after the doorbells of one look, so that it is done before the
            next.
        arm: asks the driver to ring a register for whatever it writes after what it is given, which is what ``look``
            returned; None where there is no way to ask.
        give_way: lets other threads of the device work for a moment, if they have work, and says whether they had.
            While they have there is one look in a turn. None where there are no others.

    Attributes:
        is_running: between ``start`` and ``stop``.
        is_resting: it found nothing for a while, and looks rarely, or not at all.
        looks: how often it has looked; for statistics and tests.

    Raises (from its turns, to the loop, which logs it): what the functions it was given raise. It has stopped then.

    Threading: session thread.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        look: Callable[[], bytes],
        ring: Callable[[int, int], None],
        work: Callable[[], None] | None = None,
        arm: Callable[[bytes], None] | None = None,
        give_way: Callable[[], bool] | None = None,
    ) -> None:
        self.is_running = False
        self.is_resting = False
        self.looks = 0
        self._scheduler = scheduler
        self._look = look
        self._ring = ring
        self._work = work
        self._arm = arm
        self._give_way = give_way
        self._seen = b""
        self._idle_turns = 0
        self._rest = _FIRST_REST
        self._timer: _Timer | None = None
        #: Turns of before a stop do nothing.
        self._generation = 0

    def start(self, seen: bytes = b"") -> None:
        """Begins to look. Idempotent.

        Args:
            seen: the doorbells, as far as they have rung already; others count as 0, as they do after a reset.
        """
        if not self.is_running:
            self.is_running = True
            self._seen = seen
            self._busy()

    def stop(self) -> None:
        """Looks no more. Idempotent."""
        self.is_running = self.is_resting = False
        self._generation += 1
        self._cancel()

    def wake(self) -> None:
        """There may be something new, or will be soon: a doorbell register was written, a queue was made."""
        if self.is_resting:
            self._busy()

    def forget(self, number: int) -> None:
        """A queue was made: its doorbell, which may have been another's, counts as 0.

        A doorbell that is the device's memory has to be set to 0, too. Of one that is not, the value it has now rings.
        """
        at = number * DOORBELL_SIZE
        if at < len(self._seen):
            self._seen = self._seen[:at] + bytes(DOORBELL_SIZE) + self._seen[at + DOORBELL_SIZE :]

    def _busy(self) -> None:
        self._cancel()
        self.is_resting = False
        self._idle_turns = 0
        self._rest = _FIRST_REST
        self._generation += 1
        self._next_turn()

    def _next_turn(self) -> None:
        generation = self._generation
        self._scheduler.call_soon(lambda: self._turn(generation))

    def _turn(self, generation: int) -> None:
        if generation != self._generation:
            return
        found = looks = 0
        look = self._look
        give_way = self._give_way
        try:
            most = 1 if give_way is not None and give_way() else _LOOKS
            if generation != self._generation:
                return
            while looks < most and found < _FINDS:
                looks += 1
                now = look()
                if now != self._seen:
                    found += 1
                    self._changed(now)
                    if generation != self._generation:
                        return
                    if give_way is not None and give_way():
                        break
        except BaseException:
            self.stop()
            raise
        self.looks += looks
        if found:
            self._idle_turns = 0
        else:
            self._idle_turns += 1
        if self._idle_turns < _TURNS:
            self._next_turn()
        else:
            self._go_to_rest()

    def _changed(self, now: bytes) -> None:
        """Rings every doorbell that has changed."""
        load_barrier()
        seen = self._seen[: len(now)].ljust(len(now), b"\0")
        self._seen = now
        layout = f"<{len(now) // DOORBELL_SIZE}I"
        for number, (old, new) in enumerate(zip(struct.unpack(layout, seen), struct.unpack(layout, now), strict=True)):
            if old != new:
                self._ring(number, new)
        if self._work is not None:
            self._work()

    def _go_to_rest(self) -> None:
        self.is_resting = True
        if self._arm is None:
            self._timer = self._scheduler.call_later(self._rest, self._rested)
            return
        try:
            self._arm(self._seen)
            self._look_once()
        except BaseException:
            self.stop()
            raise

    def _look_once(self) -> bool:
        """Looks; goes on looking if something has changed."""
        self.looks += 1
        now = self._look()
        if now == self._seen:
            return False
        self._busy()
        self._changed(now)
        return True

    def _rested(self) -> None:
        self._timer = None
        try:
            if not self._look_once():
                self._rest = min(2 * self._rest, REST_LIMIT)
                self._timer = self._scheduler.call_later(self._rest, self._rested)
        except BaseException:
            self.stop()
            raise

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

"""What a check is, and what can become of it.

A check asks one thing of the peer. It passes by returning what it saw, fails by raising ``Unmet`` with what it saw
instead, and raises ``DoesNotApply`` where the peer has nothing the rule is about. What would hurt a peer in use - end
its connection, write its registers, reset it - is only asked with leave: that is its ``Risk``.
"""

from __future__ import annotations

import errno
import fnmatch
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from errno import errorcode
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfio_user.testing.conformance.bench import Bench
    from vfio_user.testing.conformance.facts import Facts

__all__ = ["Check", "DoesNotApply", "Family", "Outcome", "Result", "Risk", "Unmet", "select"]


class Unmet(Exception):
    """The peer did not do what was expected; the text is what it did."""


class DoesNotApply(Exception):
    """The peer has nothing this is about; the text says what it lacks."""


class Risk(Enum):
    """What a check may do to a peer, for which leave is needed: ``--allow NAME``."""

    CLOSE = "close", "sends what a server ends the connection over"
    WRITE = "write", "writes registers of configuration space, and puts them back"
    RESET = "reset", "resets the device"
    MIGRATE = "migrate", "stops the device, saves its state and loads it again"
    HUGE = "huge", "maps terabytes, or hundreds of ranges"

    def __init__(self, word: str, explanation: str) -> None:
        self.word = word
        self.explanation = explanation


class Outcome(Enum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    #: It was not met, but the specification does not demand it: real peers do it so, or it is new in the text.
    DIFFERS = "differs"
    NOT_ASKED = "not asked"
    DOES_NOT_APPLY = "does not apply"


@dataclass(frozen=True, slots=True)
class Check:
    """One rule.

    Attributes:
        name: ``family.rule``; unique.
        clause: where the rule stands.
        expected: what a peer is to do, in words.
        run: asks; returns what was seen.
        risk: what leave is needed for; None for none.
        own_connection: it needs connections that nothing else was said on.
        advised: real peers keep it, but the text does not demand it: not to do so differs, and does not fail.
        errnos: for a check that expects a refusal, the errnos it may have.
    """

    name: str
    clause: str
    expected: str
    run: Callable[[Bench], str]
    risk: Risk | None = None
    own_connection: bool = False
    advised: bool = False
    errnos: frozenset[int] = frozenset()

    @property
    def family(self) -> str:
        """What its name begins with: the command it is about."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one check.

    Attributes:
        check: which.
        outcome: what.
        seen: what the peer did, or why it was not asked.
        seconds: it took.
    """

    check: Check
    outcome: Outcome
    seen: str
    seconds: float = 0.0


class Family:
    """The checks about one command.

    Args:
        name: what their names begin with.
        clause: where their rules stand, unless they say otherwise.
    """

    def __init__(self, name: str, clause: str) -> None:
        self.name = name
        self.clause = clause
        self.checks: list[Check] = []

    def add(
        self,
        name: str,
        expected: str,
        run: Callable[[Bench], str],
        *,
        clause: str = "",
        risk: Risk | None = None,
        own_connection: bool = False,
        advised: bool = False,
        errnos: Iterable[int] = (),
    ) -> None:
        """Adds a check; see ``Check``."""
        full_name = f"{self.name}.{name}"
        self.checks.append(
            Check(full_name, clause or self.clause, expected, run, risk, own_connection, advised, frozenset(errnos))
        )

    def check(
        self,
        name: str,
        expected: str,
        *,
        clause: str = "",
        risk: Risk | None = None,
        own_connection: bool = False,
        advised: bool = False,
    ) -> Callable[[Callable[[Bench], str]], Callable[[Bench], str]]:
        """Adds the decorated function as a check."""

        def add(run: Callable[[Bench], str]) -> Callable[[Bench], str]:
            self.add(name, expected, run, clause=clause, risk=risk, own_connection=own_connection, advised=advised)
            return run

        return add

    def refuses(
        self,
        name: str,
        why: str,
        command: int,
        payload: Callable[[Facts], bytes] | bytes,
        *,
        errnos: Collection[int] = (errno.EINVAL,),
        fds: int = 0,
        clause: str = "",
        risk: Risk | None = None,
        advised: bool = False,
    ) -> None:
        """Adds a check that a command is refused, in the only form a refusal has.

        Args:
            name: of the rule.
            why: what is wrong with it.
            command: its number.
            payload: of it, or what makes one for this peer.
            errnos: what the refusal may say; none for anything.
            fds: eventfds that go along.
            clause: where the rule stands; None for the family's.
            risk: what leave is needed for.
            advised: see ``Check``.
        """

        def run(bench: Bench) -> str:
            body = payload if isinstance(payload, bytes) else payload(bench.facts)
            return bench.refuses(command, body, errnos, fds=bench.eventfds(fds) if fds else ())

        names = " or ".join(errorcode.get(number, str(number)) for number in errnos) or "any errno"
        self.add(name, f"{names}: {why}", run, clause=clause, risk=risk, advised=advised, errnos=errnos or (-1,))


def select(checks: Iterable[Check], patterns: Iterable[str]) -> list[Check]:
    """Those a pattern fits: a name with ``*`` and ``?``, or any part of a name; all where there is no pattern."""
    wanted = list(patterns)
    return [
        check
        for check in checks
        if not wanted or any(part in check.name or fnmatch.fnmatchcase(check.name, part) for part in wanted)
    ]

"""Asks a server check by check.

First those that share one connection, then those that need their own: a server that takes one connection only is asked
everything it can be asked. A check that fails costs the shared connection, so that the next one starts clean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator

from vfio_user.errors import ConnectError
from vfio_user.testing.conformance.bench import Bench
from vfio_user.testing.conformance.check import Check, DoesNotApply, Outcome, Result, Risk, Unmet
from vfio_user.testing.conformance.endpoint import Endpoint
from vfio_user.testing.conformance.facts import Facts, survey

__all__ = ["ask_check", "ask_server"]


def ask_server(
    endpoint: Endpoint,
    checks: Iterable[Check],
    *,
    allow: Collection[Risk] = (),
    timeout: float = 2.0,
    on_facts: Callable[[Facts], None] | None = None,
) -> Iterator[Result]:
    """Asks all of them, and yields what became of each as it does.

    Args:
        endpoint: where the server is.
        checks: what to ask.
        allow: what leave is given for.
        timeout: seconds a reply may take.
        on_facts: told what the server says of itself.

    Raises:
        ConnectError: nobody listens.
        Unmet: the server does not agree to what QEMU proposes: it cannot be asked anything.
    """
    wanted = list(checks)
    bench = Bench(endpoint, timeout)
    try:
        facts = survey(bench)
        if on_facts is not None:
            on_facts(facts)
        for check in sorted(wanted, key=lambda check: check.own_connection):
            if check.risk is not None and check.risk not in allow:
                yield Result(check, Outcome.NOT_ASKED, f"{check.risk.explanation}: --allow {check.risk.word}")
            else:
                yield ask_check(bench, check)
    finally:
        bench.close()


def ask_check(bench: Bench, check: Check) -> Result:
    """Asks one."""
    if check.own_connection:
        bench.drop()
    started = time.monotonic()
    try:
        outcome, seen = Outcome.PASSED, check.run(bench)
    except Unmet as exc:
        outcome, seen = Outcome.DIFFERS if check.advised else Outcome.FAILED, str(exc)
    except DoesNotApply as exc:
        outcome, seen = Outcome.DOES_NOT_APPLY, str(exc)
    except ConnectError as exc:
        outcome, seen = Outcome.FAILED, str(exc)
    finally:
        bench.tidy()
    if check.own_connection or (outcome in (Outcome.FAILED, Outcome.DIFFERS) and bench.can_start_anew):
        bench.drop()
    return Result(check, outcome, seen, time.monotonic() - started)

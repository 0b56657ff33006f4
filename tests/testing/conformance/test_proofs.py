"""Each check passes with a server that keeps its rule, and fails with one that breaks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testing.conformance import mutations
from tests.testing.conformance.devices import Edu, Plain, Rich
from tests.testing.conformance.mutant import Exchange, MutantEndpoint, MutantWire, Mutation
from vfio_user.protocol.constants import Command
from vfio_user.testing.conformance.bench import Bench
from vfio_user.testing.conformance.check import Check, Outcome, Result, Risk
from vfio_user.testing.conformance.endpoint import DeviceEndpoint, Endpoint
from vfio_user.testing.conformance.facts import Facts, survey
from vfio_user.testing.conformance.runner import ask_check, ask_server
from vfio_user.testing.conformance.server import CHECKS


def _no_write_multiple(_wire: MutantWire, exchange: Exchange) -> None:
    if exchange.command == Command.VERSION:
        exchange.payload = exchange.payload.replace(b',"write_multiple":true', b"")
    elif exchange.command == Command.REGION_WRITE_MULTI:
        exchange.become_error(22)


#: Correct all the same: a server of another make.
WITHOUT_WRITE_MULTIPLE = Mutation("no REGION_WRITE_MULTI", reply=_no_write_multiple, version=True)


def correct_servers() -> Iterator[Endpoint]:
    yield DeviceEndpoint(Rich())
    yield DeviceEndpoint(Edu())
    yield DeviceEndpoint(Plain())
    yield MutantEndpoint(DeviceEndpoint(Edu()), WITHOUT_WRITE_MULTIPLE)
    yield DeviceEndpoint(migrating_as_before())


def migrating_as_before() -> Edu:
    device = Edu()
    device.offer_migration("v1")
    return device


def close(endpoint: Endpoint) -> None:
    endpoint.close()  # type: ignore[attr-defined]


def ask(endpoint: Endpoint, facts: Facts, check: Check) -> Result:
    bench = Bench(endpoint, timeout=0.0)
    bench.facts = facts
    try:
        return ask_check(bench, check)
    finally:
        bench.close()


def described(result: Result) -> str:
    return f"{result.check.name}: {result.outcome.value}: expected {result.check.expected}; seen {result.seen}"


@pytest.mark.parametrize("number", range(5), ids=["rich", "edu", "plain", "no-write-multiple", "v1"])
def test_correct_servers_pass_all_that_applies(number: int) -> None:
    endpoint = list(correct_servers())[number]
    results = list(ask_server(endpoint, CHECKS, allow=list(Risk), timeout=0.0))
    close(endpoint)
    fine = (Outcome.PASSED, Outcome.DOES_NOT_APPLY)
    # A region shaped by hand is no configuration space, and says so: that is for what Plain is there.
    wrong = [described(result) for result in results if result.outcome not in fine]
    if number == 2:
        wrong = [text for text in wrong if not text.startswith(("irq_info.intx-pin", "region_write.", "reset.resets"))]
    assert wrong == []


def test_hardly_anything_does_not_apply_to_a_device_with_everything() -> None:
    endpoint = DeviceEndpoint(Rich())
    results = list(ask_server(endpoint, CHECKS, allow=list(Risk), timeout=0.0))
    endpoint.close()
    skipped = {result.check.name for result in results if result.outcome is Outcome.DOES_NOT_APPLY}
    assert {name.partition("[")[0] for name in skipped} == {
        "feature.absent",
        "mig_data.absent",
        "write_multi.not-offered",
        "region_write.absent-bars",
        *(check.name.partition("[")[0] for check in CHECKS if check.family in ("migration_region", "dirty_pages")),
    } - {"dirty_pages.absent"}


def broken(check: Check, endpoint: Endpoint, facts: Facts, mutation: Mutation) -> str | None:
    """None if the check fails with the server so broken; else why that is not so."""
    mutant = MutantEndpoint(endpoint, mutation)
    try:
        result = ask(mutant, facts, check)
    finally:
        for mapping in mutations.LEFT_MAPPED:
            mapping.close()
        mutations.LEFT_MAPPED.clear()
    expected = Outcome.DIFFERS if check.advised else Outcome.FAILED
    return None if result.outcome is expected else f"with {mutation.name!r}: {described(result)}"


def test_each_check_fails_with_a_server_that_breaks_its_rule() -> None:
    """All in one, as there are hundreds: what survives is listed."""
    servers: list[tuple[Endpoint, Facts]] = []
    passed: dict[str, int] = {}
    for number, endpoint in enumerate(correct_servers()):
        bench = Bench(endpoint, timeout=0.0)
        servers.append((endpoint, survey(bench)))
        bench.close()
        for result in ask_server(endpoint, CHECKS, allow=list(Risk), timeout=0.0):
            if result.outcome is Outcome.PASSED:
                passed.setdefault(result.check.name, number)
    survived, unproved = [], []
    for check in CHECKS:
        if check.name not in passed:
            unproved.append(check.name)
            continue
        endpoint, facts = servers[passed[check.name]]
        for mutation in mutations.mutations_of(check):
            why = broken(check, endpoint, facts, mutation)
            if why is not None:
                survived.append(why)
    for endpoint, _ in servers:
        close(endpoint)
    assert not unproved, unproved
    assert not survived, "\n".join(survived)


def test_every_rule_is_some_checks() -> None:
    import fnmatch

    names = [check.name for check in CHECKS if not check.errnos]
    used = set()
    for name in names:
        used.add(next(pattern for pattern, _ in mutations.RULES if fnmatch.fnmatchcase(name, pattern)))
    assert [pattern for pattern, _ in mutations.RULES if pattern not in used] == []

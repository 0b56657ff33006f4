"""``vfio-user conform``: does a server, or a client, keep to the protocol? Rule by rule."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_user.cli.common import seconds, setting
from vfio_user.cli.output import WIDTH, Style, complain, wrap

if TYPE_CHECKING:
    from vfio_user.testing.conformance import Check, Report, Result, Risk

__all__ = ["add_arguments", "run"]

_EPILOG = """\
exit status: 0 every rule is kept, or does not apply; 1 one is broken, or the
peer cannot be asked at all; 2 usage

  vfio-user conform server /run/device.sock
  vfio-user conform server /run/device.sock --allow all --junit report.xml
  vfio-user conform server --list --only dma_map
  vfio-user conform client --listen /tmp/observed.sock --script late.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``conform``."""
    parser.epilog = _EPILOG
    kinds = parser.add_subparsers(dest="peer", metavar="PEER", required=True)
    server = kinds.add_parser("server", help="ask a server", description="Asks a server, rule by rule.")
    server.add_argument(
        "address", nargs="?", metavar="ADDRESS", help="where it listens: a path, unix:, tcp:, vsock:, fd:"
    )
    server.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="RISK",
        help="leave for what could hurt a server in use: close, write, reset, migrate, huge, or all",
    )
    server.add_argument("--timeout", type=seconds, default=2.0, metavar="SECONDS", help="for a reply (2)")
    client = kinds.add_parser(
        "client", help="observe a client", description="Listens, and observes the client that connects."
    )
    client.add_argument("--listen", metavar="ADDRESS", help="where; a socket of this run's own when left out")
    client.add_argument("--script", type=Path, metavar="FILE", help="how to misbehave; see docs/conformance.md")
    client.add_argument("--device", default="edu", metavar="DEVICE", help="what it drives (edu)")
    client.add_argument(
        "--set",
        action="append",
        default=[],
        type=setting,
        dest="settings",
        metavar="NAME=VALUE",
        help="a device option",
    )
    client.add_argument("--clients", type=int, default=1, metavar="N", help="observe so many, one after another (1)")
    for each in (server, client):
        each.add_argument(
            "--only", action="append", default=[], metavar="PATTERN", help="only rules whose name has it, or fits it"
        )
        each.add_argument("--list", action="store_true", help="list the rules, and ask nobody")
        each.add_argument("--json", action="store_true", help="print JSON")
        each.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit's XML there, too")
        each.add_argument("-v", "--verbose", action="count", default=0, help="show the rules that are kept, too")


def run(arguments: argparse.Namespace) -> int:
    """Asks or observes, and says what was seen."""
    return _server(arguments) if arguments.peer == "server" else _client(arguments)


def _server(arguments: argparse.Namespace) -> int:
    from vfio_user.errors import AddressError, VfioUserError
    from vfio_user.testing.conformance import CHECKS, Report, Unmet, select
    from vfio_user.testing.conformance.endpoint import SocketEndpoint
    from vfio_user.testing.conformance.runner import ask_server

    checks = select(CHECKS, arguments.only)
    if arguments.list:
        return _list(checks, as_json=arguments.json)
    if arguments.address is None:
        raise AddressError("say where the server listens, as in: vfio-user conform server /run/device.sock")
    allow = _risks(arguments.allow)
    endpoint = SocketEndpoint(arguments.address)
    report = Report(endpoint.name)
    try:
        for result in _shown(
            ask_server(endpoint, checks, allow=allow, timeout=arguments.timeout), len(checks), arguments
        ):
            report.results.append(result)
    except Unmet as exc:
        raise VfioUserError(f"{endpoint.name} cannot be asked anything: {exc}") from exc
    return _conclude(report, arguments)


def _client(arguments: argparse.Namespace) -> int:
    from vfio_user.testing.conformance.client import RULES

    if arguments.list:
        from vfio_user.testing.conformance import select

        return _list(select(RULES, arguments.only), as_json=arguments.json)
    from vfio_user.cli.common import make_named_device
    from vfio_user.testing.conformance.client import observe_clients

    named = make_named_device(arguments.device, dict(arguments.settings))
    report = observe_clients(
        arguments.listen,
        named.device,
        script=arguments.script,
        clients=arguments.clients,
        only=arguments.only,
        announce=lambda address: complain(f"{named.identity} listening on {address}"),
    )
    for _ in _shown(iter(report.results), len(report.results), arguments):
        pass
    return _conclude(report, arguments)


def _risks(words: Iterable[str]) -> list[Risk]:
    from vfio_user.errors import DeviceOptionError
    from vfio_user.testing.conformance import Risk

    by_word = {risk.word: risk for risk in Risk}
    found: list[Risk] = []
    for word in (part for text in words for part in text.split(",")):
        if word != "all" and word not in by_word:
            raise DeviceOptionError(f"--allow {word}: there is {', '.join(by_word)}, and all")
        found += list(Risk) if word == "all" else [by_word[word]]
    return found


def _list(checks: list[Check], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps([_about(check) for check in checks], indent=2))
        return 0
    style = Style()
    family = ""
    for check in checks:
        if check.family != family:
            family = check.family
            print(style.bold(family) + f"  {check.clause}")
        marks = f" ({check.risk.word})" if check.risk else ""
        marks += " (advised)" if check.advised else ""
        print(wrap(f"{check.name.partition('.')[2]}{marks}: {check.expected}", "      ", first="  "))
    print(f"\n{len(checks)} rules")
    return 0


def _about(check: Check) -> dict[str, object]:
    return {
        "name": check.name,
        "clause": check.clause,
        "expected": check.expected,
        "advised": check.advised,
        "allow": check.risk.word if check.risk else None,
    }


def _shown(results: Iterator[Result], total: int, arguments: argparse.Namespace) -> Iterator[Result]:
    """Prints each result as it comes, with how far it is on a terminal."""
    if arguments.json:
        yield from results
        return
    from vfio_user.testing.conformance import Outcome

    style = Style()
    marks = {
        Outcome.PASSED: style.good("ok  "),
        Outcome.FAILED: style.bad("FAIL"),
        Outcome.DIFFERS: style.doubtful("diff"),
        Outcome.NOT_ASKED: style.dim("-   "),
        Outcome.DOES_NOT_APPLY: style.dim("n/a "),
    }
    is_live = sys.stderr is not None and sys.stderr.isatty()
    family = ""
    for number, result in enumerate(results, 1):
        if is_live:
            print(f"\r{number}/{total} {result.check.family:<20}", end="\r", file=sys.stderr, flush=True)
        if arguments.verbose or result.outcome in (Outcome.FAILED, Outcome.DIFFERS):
            if result.check.family != family:
                family = result.check.family
                print(style.bold(family))
            for line in _lines(result, marks[result.outcome], verbose=arguments.verbose):
                print(line)
        yield result
    if is_live:
        print(" " * (WIDTH - 1), end="\r", file=sys.stderr, flush=True)


def _lines(result: Result, mark: str, *, verbose: int) -> list[str]:
    from vfio_user.testing.conformance import Outcome

    name = result.check.name.partition(".")[2]
    seen = _plain(result.seen)
    if result.outcome in (Outcome.FAILED, Outcome.DIFFERS):
        return [
            f"{mark}  {name}",
            wrap(f"expected {result.check.expected}", "        ", first="      "),
            wrap(f"seen     {seen}", "        ", first="      "),
            wrap(f"clause   {result.check.clause}", "        ", first="      "),
        ]
    lines = [f"{mark}  {wrap(f'{name}: {seen}', '          ', first='      ').lstrip()}"]
    if verbose > 1:
        lines.append(wrap(f"expected {result.check.expected} [{result.check.clause}]", "        ", first="      "))
    return lines


def _plain(text: str) -> str:
    """What a peer put into it must not reach the terminal as it is."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _conclude(report: Report, arguments: argparse.Namespace) -> int:
    from vfio_user.testing.conformance import Outcome

    if arguments.junit is not None:
        from vfio_user.errors import VfioUserError

        try:
            arguments.junit.write_text(report.as_junit())
        except OSError as exc:
            raise VfioUserError(f"{arguments.junit} cannot be written: {exc.strerror}") from exc
    if arguments.json:
        print(json.dumps(report.as_json(), indent=2))
        return 1 if report.failures else 0
    counts = report.counts
    many = {Outcome.DIFFERS: "differ", Outcome.DOES_NOT_APPLY: "do not apply"}
    parts = [
        f"{count} {outcome.value if count == 1 else many.get(outcome, outcome.value)}"
        for outcome in Outcome
        if (count := counts[outcome])
    ]
    print(wrap(f"{report.target}: {', '.join(parts) or 'no rule was asked about'}"))
    reasons = {result.seen for result in report.having(Outcome.NOT_ASKED)}
    for reason in sorted(reasons):
        print(wrap(f"not asked: {reason}", "    ", first="  "))
    if counts[Outcome.DIFFERS]:
        print(
            wrap("differs: kept by real peers, but not demanded by the specification; no failure", "    ", first="  ")
        )
    return 1 if report.failures else 0

"""``make bench``, or ``python -m bench``: measures, prints each figure with its target, and writes it all as JSON.

A target that is not met is said, and is no failure: the machine may be busy, or slow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench import client, dma, idle, message_dma, message_path, migration, registers, startup
from bench.report import Figure, environment, format_table, write_json

_SUITES = ("message-path", "client", "startup", "registers", "dma", "message-dma", "idle", "migration")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"what to measure: {', '.join(_SUITES)} (all)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each figure is taken (7)")
    parser.add_argument("--round-trips", type=int, default=10_000, help="reads, and writes, of one round (10000)")
    parser.add_argument("--posted-writes", type=int, default=100_000, help="posted writes of one round (100000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go (bench/results/TIME.json)")
    options = parser.parse_args()
    for suite in options.suites:
        if suite not in _SUITES:
            parser.error(f"there is no suite {suite!r}; there are {', '.join(_SUITES)}")
    return options


def main() -> None:
    """See the module."""
    options = _parse()
    suites: dict[str, Callable[[], tuple[list[Figure], dict[str, object]]]] = {
        "message-path": lambda: message_path.measure(options.rounds, options.round_trips, options.posted_writes, _say),
        "client": lambda: client.measure(options.rounds, options.round_trips, _say),
        "startup": lambda: startup.measure(options.rounds, _say),
        "registers": lambda: registers.measure(options.rounds, _say),
        "dma": lambda: dma.measure(options.rounds, _say),
        "message-dma": lambda: message_dma.measure(options.rounds, _say),
        "idle": lambda: idle.measure(options.rounds, _say),
        "migration": lambda: migration.measure(options.rounds, _say),
    }
    _say(", ".join(f"{key} {value}" for key, value in environment().items()))
    figures: list[Figure] = []
    measurements: dict[str, object] = {}
    for suite in options.suites or _SUITES:
        found, samples = suites[suite]()
        figures += found
        measurements |= samples
    _say(format_table([figure.cells() for figure in figures]))
    path = options.json or Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
    write_json(path, figures, measurements)
    _say(f"results: {path}")


def _say(text: str) -> None:
    print(f"{text}\n", flush=True)


if __name__ == "__main__":
    main()

"""What became of all checks, for people's programs: JSON, and JUnit's XML for CI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree as ET

from vfio_user.testing.conformance.check import Outcome, Result

__all__ = ["Report"]


@dataclass(slots=True)
class Report:
    """What became of all checks.

    Attributes:
        target: who was asked.
        results: in the order of asking.
    """

    target: str
    results: list[Result] = field(default_factory=list)

    @property
    def counts(self) -> Counter[Outcome]:
        """How many checks became what."""
        return Counter(result.outcome for result in self.results)

    @property
    def failures(self) -> list[Result]:
        """Those the specification demands, and the peer does not keep."""
        return self.having(Outcome.FAILED)

    def having(self, *outcomes: Outcome) -> list[Result]:
        """The results that came out so."""
        return [result for result in self.results if result.outcome in outcomes]

    def as_json(self) -> dict[str, Any]:
        """It, as what JSON has."""
        return {
            "target": self.target,
            "counts": {outcome.value: self.counts[outcome] for outcome in Outcome},
            "checks": [
                {
                    "name": result.check.name,
                    "clause": result.check.clause,
                    "expected": result.check.expected,
                    "advised": result.check.advised,
                    "outcome": result.outcome.value,
                    "seen": result.seen,
                    "seconds": round(result.seconds, 6),
                }
                for result in self.results
            ],
        }

    def as_junit(self) -> str:
        """It, as JUnit's XML: a suite for each command. What differs, as real peers do, is skipped, not failed."""
        root = ET.Element("testsuites", name=f"vfio-user conformance of {_printable(self.target)}")
        for family in dict.fromkeys(result.check.family for result in self.results):
            _add_suite(root, family, [result for result in self.results if result.check.family == family])
        ET.indent(root)
        return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_suite(root: ET.Element, family: str, results: Iterable[Result]) -> None:
    found = list(results)
    skipped = (Outcome.DIFFERS, Outcome.NOT_ASKED, Outcome.DOES_NOT_APPLY)
    suite = ET.SubElement(
        root,
        "testsuite",
        name=family,
        tests=str(len(found)),
        failures=str(sum(result.outcome is Outcome.FAILED for result in found)),
        skipped=str(sum(result.outcome in skipped for result in found)),
        time=f"{sum(result.seconds for result in found):.3f}",
    )
    for result in found:
        case = ET.SubElement(suite, "testcase", classname=family, name=result.check.name, time=f"{result.seconds:.3f}")
        text = _printable(f"{result.check.clause}: expected {result.check.expected}; seen {result.seen}")
        if result.outcome is Outcome.FAILED:
            ET.SubElement(case, "failure", message=_printable(result.seen)).text = text
        elif result.outcome in skipped:
            ET.SubElement(case, "skipped", message=f"{result.outcome.value}: {_printable(result.seen)}")


def _printable(text: str) -> str:
    """XML has no control characters, and a peer may have put some into what it said."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)

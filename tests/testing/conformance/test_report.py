from __future__ import annotations

import json
from xml.etree import ElementTree as ET

from vfio_user.testing.conformance.check import Check, Outcome, Result
from vfio_user.testing.conformance.report import Report


def check(name: str) -> Check:
    return Check(name, "vfio-user, Header", "it <is> so", lambda _: "")


REPORT = Report(
    "unix:/s",
    [
        Result(check("a.one"), Outcome.PASSED, "so"),
        Result(check("a.two"), Outcome.FAILED, "not\x1b[31m so", 0.25),
        Result(check("b.one"), Outcome.DIFFERS, "otherwise"),
        Result(check("b.two"), Outcome.NOT_ASKED, "leave"),
        Result(check("b.three"), Outcome.DOES_NOT_APPLY, "lacking"),
    ],
)


def test_counts() -> None:
    assert REPORT.counts == dict.fromkeys(Outcome, 1)
    assert [result.check.name for result in REPORT.failures] == ["a.two"]


def test_json() -> None:
    found = json.loads(json.dumps(REPORT.as_json()))
    assert found["target"] == "unix:/s"
    assert found["counts"]["differs"] == 1
    assert found["checks"][1] == {
        "name": "a.two",
        "clause": "vfio-user, Header",
        "expected": "it <is> so",
        "advised": False,
        "outcome": "failed",
        "seen": "not\x1b[31m so",
        "seconds": 0.25,
    }


def test_junit() -> None:
    root = ET.fromstring(REPORT.as_junit())
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("skipped")) for suite in root] == [
        ("a", "2", "1", "0"),
        ("b", "3", "0", "3"),
    ]
    failure = root.find("./testsuite/testcase[@name='a.two']/failure")
    assert failure is not None
    assert failure.get("message") == "not\\x1b[31m so"
    assert failure.text == "vfio-user, Header: expected it <is> so; seen not\\x1b[31m so"
    skipped = [case.get("message") for case in root.iter("skipped")]
    assert skipped == ["differs: otherwise", "not asked: leave", "does not apply: lacking"]

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.cli.support import Outcome
from vfio_user.vm.doctor import Finding

Run = Callable[..., Outcome]

OK = Finding("Python", "ok", "3.12.0")
WARN = Finding("KVM", "warn", "there is no /dev/kvm", "nothing: guests run with TCG")
MISSING = Finding("cache", "missing", "/x cannot be written " + "at all " * 12, "set VFIO_USER_CACHE")


def examine(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    monkeypatch.setattr("vfio_user.cli.doctor.examine", lambda: list(findings))


def test_remedies_are_below_what_they_mend(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    examine(monkeypatch, OK, WARN)
    assert run("doctor") == Outcome(
        0,
        "ok       Python  3.12.0\n"
        "warn     KVM     there is no /dev/kvm\n"
        "                 -> nothing: guests run with TCG\n"
        "\n"
        "nothing is missing; 1 could be better\n",
        "",
    )


def test_something_missing_is_a_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    examine(monkeypatch, OK, MISSING)
    outcome = run("doctor")
    assert outcome.status == 1
    assert outcome.stdout.endswith("\nguests cannot run here: 1 missing, see above\n")
    assert max(map(len, outcome.stdout.splitlines())) <= 80


def test_all_is_well(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    examine(monkeypatch, OK)
    assert run("doctor").stdout.endswith("\nall is well\n")


def test_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    examine(monkeypatch, MISSING)
    outcome = run("doctor", "--json")
    assert outcome.status == 1
    assert json.loads(outcome.stdout)[0]["remedy"] == "set VFIO_USER_CACHE"


def test_this_machine(run: Run) -> None:
    outcome = run("doctor")
    assert outcome.status in (0, 1)
    assert "Python" in outcome.stdout

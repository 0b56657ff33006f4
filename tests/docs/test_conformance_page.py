"""docs/conformance.md: what it lists is what there is, and its test is one."""

from __future__ import annotations

import re
from pathlib import Path

from vfio_user.testing.conformance import Outcome, Risk
from vfio_user.testing.conformance.client import MISBEHAVIOURS, Script

PAGE = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()

TABLES = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))


def test_every_risk_and_outcome_is_explained() -> None:
    for risk in Risk:
        assert f"| `{risk.word}` | {risk.explanation.split(' of ')[0]}" in PAGE
    for outcome in Outcome:
        assert f"| {outcome.value} |" in PAGE


def test_every_misbehaviour_is_listed_with_its_argument() -> None:
    listed = {words[0]: words[1:] for words in map(str.split, re.findall(r"`([^`]+)`", TABLES)) if words}
    for name, (argument, _) in MISBEHAVIOURS.items():
        assert listed[name] == ([argument] if argument else []), name


def test_the_script_means_something() -> None:
    (block,) = re.findall(r"\n\n((?:    .*\n)*    # when .*\n(?:    .*\n)*)", PAGE)
    assert len(Script.parse(block.splitlines()).steps) == 4


def test_the_test_is_one() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    test = names["test_it_keeps_to_the_protocol"]
    assert callable(test)
    test()

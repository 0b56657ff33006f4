"""A bench's figures: what is met, how a line reads, what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.report import Figure, format_table, write_json


@pytest.mark.parametrize(("value", "target", "met"), [(1.1, 1.15, True), (1.15, 1.15, True), (1.2, 1.15, False)])
def test_a_target_is_the_most_a_figure_may_be(value: float, target: float, met: bool) -> None:
    assert Figure("read", value, "x", target).is_met is met


def test_a_line_says_the_target_and_whether_it_is_met() -> None:
    assert Figure("read", 1.204, "x", 1.15, "note").cells() == ("read", "1.20x", "at most 1.15x", "NOT MET", "note")
    assert Figure("read", 13.21, "us").cells() == ("read", "13.2 us", "", "", "")
    assert Figure("writes", 12_345.6, "ns").cells()[1] == "12,346 ns"


def test_columns_are_aligned() -> None:
    assert format_table([("a", "1", "x"), ("bcd", "23", "")]) == "  a     1  x\n  bcd  23"


def test_results_are_kept_with_what_they_came_from(tmp_path: Path) -> None:
    path = tmp_path / "results" / "one.json"
    write_json(path, [Figure("read", 2.0, "x", 1.0)], {"samples": [1, 2]})
    content = json.loads(path.read_text())
    assert content["figures"][0]["is_met"] is False
    assert content["measurements"] == {"samples": [1, 2]}
    assert content["environment"]["cpus"] >= 1

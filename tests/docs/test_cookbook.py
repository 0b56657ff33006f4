"""Every recipe of docs/cookbook.md, after what they all begin with."""

from __future__ import annotations

import importlib.util

import pytest

from tests.support.doc_examples import DOCS, Example, examples, run_all
from tests.support.source import ROOT

PAGE = DOCS / "cookbook.md"
EXAMPLES = list(examples(PAGE))
BEGINNING = [example for example in EXAMPLES if not example.section]
RECIPES = {example.section: [one for one in EXAMPLES if one.section == example.section] for example in EXAMPLES}
RECIPES.pop("", None)

#: What a recipe takes from an earlier one.
USES: dict[str, list[Example]] = {
    "What the driver wants that is not there yet": RECIPES["Causes, a mask, and one interrupt"],
}


def test_there_is_a_recipe_for_each_heading() -> None:
    headings = [line.removeprefix("## ") for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    assert headings == list(RECIPES)
    assert len(headings) == 14


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "SystemRDL" in recipe and importlib.util.find_spec("systemrdl") is None:
        pytest.skip("systemrdl-compiler is not installed")
    monkeypatch.chdir(ROOT)
    run_all([*BEGINNING, *USES.get(recipe, []), *RECIPES[recipe]])

"""docs/recipes.md is what docs/recipes.py writes."""

from __future__ import annotations

from srattn import recipes
from tests.pages import load_script


def test_page_is_current() -> None:
    script = load_script("recipes")
    text = script.PAGE.read_text(encoding="utf-8")
    assert text == script.render(), "run python docs/recipes.py"
    assert all(f"## {name}\n" in text for name in recipes.names())

"""docs/recipes.md is what docs/recipes.py writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from srattn import recipes

ROOT = Path(__file__).parent.parent


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_recipes", ROOT / "docs" / "recipes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_current() -> None:
    script = _load()
    text = script.PAGE.read_text(encoding="utf-8")
    assert text == script.render(), "run python docs/recipes.py"
    assert all(f"## {name}\n" in text for name in recipes.names())

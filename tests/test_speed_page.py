"""docs/speed.md and the README's table of speeds are what docs/speed.py makes of the result files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_speed", ROOT / "docs" / "speed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_current() -> None:
    script = _load()
    assert script.PAGE.read_text(encoding="utf-8") == script.render(), "run python docs/speed.py"
    readme = script.README.read_text(encoding="utf-8")
    assert readme == script.with_table(readme), "run python docs/speed.py"


def test_every_figure_was_correct_first() -> None:
    script = _load()
    for name, _, _ in script.FILES:
        rows = script.read(name)["rows"]
        assert rows and all(row["error"] <= row["tolerance"] for row in rows if row["seconds"])

"""docs/speed.md and the README's table of speeds are what docs/speed.py makes of the result files."""

from __future__ import annotations

from tests.pages import load_script


def test_pages_are_current() -> None:
    script = load_script("speed")
    assert script.PAGE.read_text(encoding="utf-8") == script.render(), "run python docs/speed.py"
    readme = script.README.read_text(encoding="utf-8")
    assert readme == script.with_table(readme), "run python docs/speed.py"


def test_every_figure_was_correct_first() -> None:
    script = load_script("speed")
    for name, _, _ in script.FILES:
        rows = script.read(name)["rows"]
        assert rows and all(row["error"] <= row["tolerance"] for row in rows if row["seconds"])

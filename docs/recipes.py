"""Writes docs/recipes.md, the page of all recipes; `--check` only says whether it is up to date.

python docs/recipes.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from srattn import recipes

PAGE = Path(__file__).with_suffix(".md")
_RESULTS = {"top1": "top-1 %, published", "miou": "mIoU %, published", "ap": "AP, published"}

INTRODUCTION = """# Recipes

<!-- Written by docs/recipes.py from src/srattn/recipes; change those. -->

`srattn recipes` lists them, `srattn recipes NAME` prints one, `srattn train --recipe NAME` begins one. Options after
it overrule it, as in `srattn train --recipe digits --epochs 10`.

A result is of this package only where the last column says so. The others are what the authors of a model report, with
the options that their code has; where this package cannot do as they did, the recipe's notes name it.
"""


def render() -> str:
    """The page."""
    names = recipes.names()
    rows = [["recipe", "trains", "result", "cost", "run here"], ["---"] * 5]
    for name in names:
        about = recipes.describe(name)
        here = "yes" if about.run_here else "no"
        rows.append([f"[{name}](#{name})", about.title, about.result, about.cost, here])
    return "\n".join([INTRODUCTION, _table(rows), *(_section(name) for name in names)])


def _section(name: str) -> str:
    about, config = recipes.describe(name), recipes.load(name)
    state = "Measured with this package" if about.run_here else "Not run here"
    parts = [f"## {name}\n", f"{about.title}. {state}.\n", f"```sh\n{about.command}\n```\n"]
    facts = [["", ""], ["---", "---"], ["result", about.result], ["cost", about.cost], ["source", about.source]]
    parts.append(_table(facts))
    if about.sizes:
        keys = list(about.sizes[0])
        head = [_RESULTS.get(key, f"`{key}`") for key in keys]
        rule = ["---", *(["---:"] * (len(keys) - 1))]
        parts.append("Other sizes, with the options to give beside `--recipe`:\n")
        parts.append(_table([head, rule, *([_cell(size[key]) for key in keys] for size in about.sizes)]))
    if about.notes:
        parts.append("".join(f"- {' '.join(note.split())}\n" for note in about.notes))
    options = "".join(f"| `{key}` | {_cell(value)} |\n" for key, value in config.items())
    parts.append(f"| option | value |\n| --- | --- |\n{options}")
    return "\n".join(parts)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return f"`{value}`" if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes docs/recipes.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    text = render()
    if parser.parse_args().check:
        if text != PAGE.read_text(encoding="utf-8"):
            print(f"{PAGE.name} is out of date: run python docs/recipes.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

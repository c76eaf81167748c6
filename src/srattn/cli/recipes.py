"""``srattn recipes``: the recipes that come with the package, and what each costs and gives."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import jsonargparse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", type=str | None, help="a recipe to print; without it all are listed")
    parser.add_argument("--format", type=Literal["table", "json"], default="table", help="for people or for programs")


def run(args: jsonargparse.Namespace) -> int:
    from srattn import recipes

    if args.name is not None:
        text = recipes.text(args.name)
        if args.format == "json":
            about = dataclasses.asdict(recipes.describe(args.name))
            text = json.dumps({"name": args.name, "about": about, "config": recipes.load(args.name)}, indent=2) + "\n"
        print(text, end="")
        return 0
    if args.format == "json":
        print(json.dumps([{"name": n, **dataclasses.asdict(recipes.describe(n))} for n in recipes.names()], indent=2))
        return 0
    _print()
    return 0


def _print() -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from srattn import recipes
    from srattn.cli.wide import console_for

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("recipe", no_wrap=True)
    for name in ("trains", "result", "cost"):
        table.add_column(name, overflow="fold")
    table.add_column("run here", no_wrap=True)
    for name in recipes.names():
        about = recipes.describe(name)
        here = Text("yes") if about.run_here else Text("no", style="yellow")
        table.add_row(name, Text(about.title), Text(about.result), Text(about.cost), here)
    console = console_for(table)
    console.print(table)
    console.print("srattn train --recipe NAME begins one; options after it overrule it. srattn recipes NAME prints it.")

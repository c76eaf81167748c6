"""``srattn convert IN OUT --to LAYOUT``: a checkpoint from any known layout into another."""

from __future__ import annotations

from typing import Any

import jsonargparse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="IN", nargs="?", help="checkpoint (.safetensors, .pth, .pt, .bin) or transformers folder"
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        nargs="?",
        help="file to write; a path without such a suffix is a folder, for --to transformers",
    )
    parser.add_argument(
        "--to", metavar="LAYOUT", help="srattn, official, timm, transformers, mmdet or mmseg", type=str | None
    )
    parser.add_argument("--layout", metavar="LAYOUT", help="layout of IN (default: recognised)", type=str | None)
    parser.add_argument("--model", metavar="NAME", help="registered model (default: by the shapes)", type=str | None)
    parser.add_argument("--overwrite", action="store_true", help="replace what is at the target")
    parser.add_argument("--list", action="store_true", help="show the layouts of each family and their heads, and exit")


def run(args: jsonargparse.Namespace) -> int:
    if args.list:
        _print_layouts()
        return 0

    from srattn.convert.files import convert_file
    from srattn.errors import SrattnError

    for name, value in (("IN", args.source), ("OUT", args.target), ("--to LAYOUT", args.to)):
        if value is None:
            raise SrattnError(f"{name} is missing; usage: srattn convert IN OUT --to LAYOUT")
    done = convert_file(
        args.source, args.target, args.to, layout=args.layout, model=args.model, overwrite=args.overwrite
    )
    print(f"{args.source}: {done.source_layout} layout of {done.family}" + (f", {done.model}" if done.model else ""))
    for part, config in done.parts.items():
        numbers = ", ".join(f"{key} {_shown(value)}" for key, value in config.items() if key != "kind")
        print(f"  {part}: {' '.join(filter(None, (config.get('kind'), f'({numbers})')))}")
    for note in done.notes:
        print(f"  note: {note}")
    print(f"{done.path}: {done.tensors} tensors in the {args.to} layout")
    return 0


def _shown(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _print_layouts() -> None:
    from rich.table import Table

    from srattn.cli.wide import console_for
    from srattn.convert.layouts import LAYOUTS, families
    from srattn.convert.layouts.heads import TELLING

    table: Any = Table("layout", *families(), "written by", "norm epsilons: block, reduction, patch", "edge")
    for layout in LAYOUTS.values():
        marks = ["yes" if family in layout.rules else "-" for family in families()]
        own = layout.name == "srattn"
        eps = "in the file" if own else ", ".join(f"{value:g}" for value in layout.norm_eps.values())
        table.add_row(layout.name, *marks, layout.title, eps, "in the file" if own else layout.edge)
    heads: Any = Table("layout", "head", "beside a backbone of")
    for layout in LAYOUTS.values():
        for kind in TELLING:
            beside = [family for family, kinds in layout.heads.items() if kind in kinds]
            if beside or layout.parts:
                heads.add_row(layout.name, kind, "any family" if layout.parts else ", ".join(beside))
    console = console_for(table, heads)
    console.print(table)
    console.print("heads of whole models:")
    console.print(heads)

"""``srattn plan``: what each stage of a model computes at an image size, and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from srattn.cli.sizes import read_size

if TYPE_CHECKING:
    import jsonargparse

    from srattn.models.plan import Plan


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="names, see `srattn models`")
    parser.add_argument(
        "--size", type=str, nargs="+", metavar="N", help="image side, HEIGHTxWIDTH, or height and width (model's own)"
    )
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--dtype", type=Literal["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="whose machine constant is used")
    parser.add_argument("--training", action="store_true", help="plan a training step, where scores need gradients")
    parser.add_argument("--format", type=Literal["table", "json"], default="table", help="for people or for programs")


def run(args: jsonargparse.Namespace) -> int:
    from srattn.errors import SrattnError

    size = None if args.size is None else read_size("x".join(args.size))
    if args.batch < 1:
        raise SrattnError(f"--batch is at least 1, got {args.batch}")
    plans = [_plan(name, size, args) for name in args.models]
    if args.format == "json":
        print(json.dumps([{"model": p.model, "size": p.size, "rows": p.to_rows()} for p in plans], indent=2))
    else:
        for plan in plans:
            _print(plan)
    return 0


def _plan(name: str, size: tuple[int, int] | None, args: jsonargparse.Namespace) -> Plan:
    import torch

    from srattn.models.plan import plan
    from srattn.models.registry import build_model

    # Positions of a learned grid want the size at construction; the meta device allocates nothing.
    options: dict[str, Any] = {} if size is None else {"img_size": size}
    model = build_model(name, device="meta", dtype=getattr(torch, args.dtype), **options)
    return plan(model, batch=args.batch, training=args.training, device=args.device)


def _print(plan: Plan) -> None:
    from rich import box
    from rich.table import Table

    from srattn.cli.wide import console_for

    height, width = plan.size
    mode = "training" if plan.training else "inference"
    table = Table(box=box.SIMPLE_HEAD, title=f"{plan.model} at {height}x{width}, batch {plan.batch}, {mode}")
    table.caption = "multiply-adds (millions) and bytes moved (MB) of the attention in one block"
    for name in ("stage", "blocks", "tokens", "keys", "heads", "path", "MMACs", "MB"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("blocks", "heads", "MMACs", "MB") else "left")
    for row in plan:
        tokens, keys = (f"{grid[0]}x{grid[1]}" for grid in (row.tokens, row.keys))
        tokens += f" x {row.windows}" if row.windows > 1 else ""
        work, moved = f"{row.macs / 1e6:,.1f}", f"{row.bytes / 1e6:,.2f}"
        table.add_row(row.stage, str(row.blocks), tokens, keys, str(row.heads), row.path, work, moved)
    console = console_for(table)
    console.print(table)
    piped = not console.is_terminal
    for row in plan:  # below the table, since a narrow terminal would fold a column of them to nothing readable
        console.print(f"stage {row.stage}: {row.reason}", soft_wrap=piped)
        if row.feed_forward:
            console.print(f"stage {row.stage}, feed-forward: {row.feed_forward}", soft_wrap=piped)

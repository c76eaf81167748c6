"""``srattn models``: the models by name, their sizes, and which have published weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import jsonargparse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="shell-style, e.g. 'pvt_v2_*'")
    parser.add_argument("--format", type=Literal["table", "json"], default="table", help="for people or for programs")


def run(args: jsonargparse.Namespace) -> int:
    from srattn.errors import SrattnError, nearest
    from srattn.models.registry import list_models

    names = list_models(args.pattern)
    if not names:
        raise SrattnError(f"no model matches {args.pattern!r}{nearest(args.pattern, list_models())}")
    records = [_describe(name) for name in names]
    if args.format == "json":
        print(json.dumps(records, indent=2))
    else:
        _print(records)
    return 0


def _describe(name: str) -> dict[str, Any]:
    from srattn.models.registry import build_model, count_parameters
    from srattn.models.weights import find_weights

    model = build_model(name, device="meta")
    weights = find_weights(name)
    return {
        "name": name,
        "parameters": count_parameters(model),
        "depths": model.config["depths"],
        "embed_dims": model.config["embed_dims"],
        "weights": None
        if weights is None
        else {"repo": weights.repo, "licence": weights.licence, "top1": weights.top1},
    }


def _print(records: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("model", "parameters", "depths", "channels", "published weights", "licence", "top-1 %"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("parameters", "top-1 %") else "left")
    for r in records:
        weights = r["weights"] or {"repo": "", "licence": "", "top1": ""}
        depths, dims = ("-".join(map(str, r[key])) for key in ("depths", "embed_dims"))
        cells = (weights["repo"], weights["licence"], str(weights["top1"]))
        table.add_row(r["name"], f"{r['parameters']:,}", depths, dims, *cells)
    Console().print(table)
    Console().print("top-1: ImageNet-1k accuracy as published; create_model(name, pretrained=True) fetches the weights")

"""``srattn models``: the models by name, their sizes and published weights; and the heads that each task knows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import jsonargparse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="shell-style, e.g. 'pvt_v2_*'")
    parser.add_argument("--heads", action="store_true", help="the heads of each task and their options, by pattern")
    parser.add_argument("--format", type=Literal["table", "json"], default="table", help="for people or for programs")


def run(args: jsonargparse.Namespace) -> int:
    if args.heads:
        return _show_heads(args.pattern, args.format)

    from srattn.errors import SrattnError, nearest
    from srattn.models.registry import find_name, list_models
    from srattn.models.weights import without_tag

    names = list_models(args.pattern)
    if not names and (known := find_name(args.pattern)) is not None:
        names = [known]
    if not names:
        raise SrattnError(f"no model matches {args.pattern!r}{nearest(without_tag(args.pattern), list_models())}")
    records = [_describe(name, parameters) for name, parameters in _count(names)]
    if args.format == "json":
        print(json.dumps(records, indent=2))
    else:
        _print(records)
    return 0


def _count(names: Iterable[str]) -> Iterable[tuple[str, int]]:
    """The number of parameters of each model, built without values."""
    import torch
    from torch.overrides import TorchFunctionMode

    from srattn.models.registry import build_model, count_parameters

    class WithoutValues(TorchFunctionMode):
        """Leaves out the filling of tensors: for shapes alone it is most of the work."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            name = getattr(func, "__name__", "")
            if name.endswith("_") and not name.endswith("__"):  # in place; torch.nn.init gives its tensor by name
                return args[0] if args else kwargs["tensor"]
            return func(*args, **kwargs)

    for name in names:
        with torch.device("meta"), WithoutValues():
            yield name, count_parameters(build_model(name))


def _describe(name: str, parameters: int) -> dict[str, Any]:
    from srattn.models.registry import model_options, variant
    from srattn.models.weights import find_weights

    options, weights = model_options(name), find_weights(name)
    return {
        "name": name,
        "family": variant(name).family.__module__.rpartition(".")[2],
        "parameters": parameters,
        "depths": list(options.get("depths", ())),
        "embed_dims": list(options.get("embed_dims", ())),
        "weights": None
        if weights is None
        else {"repo": weights.repo, "licence": weights.licence, "top1": weights.top1},
    }


def _print(records: list[dict[str, Any]]) -> None:
    """A line a model; where it goes to a file or a pipe, a whole line at any width."""
    from rich import box
    from rich.table import Table

    from srattn.cli.wide import console_for

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("model", "family", "parameters", "depths", "top-1 %", "weights", "licence"):
        right = name in ("parameters", "top-1 %")
        table.add_column(name, no_wrap=name != "licence", justify="right" if right else "left")
    for record in records:
        weights = record["weights"] or {"repo": "", "licence": "", "top1": ""}
        table.add_row(
            record["name"],
            record["family"],
            f"{record['parameters']:,}",
            "-".join(map(str, record["depths"])),
            str(weights["top1"]),
            weights["repo"],
            weights["licence"],
        )
    console = console_for(table)
    console.print(table)
    console.print("top-1: ImageNet-1k accuracy as published; create_model(name, pretrained=True) fetches the weights.")
    console.print("srattn plan MODEL shows what a model computes at an image size.")
    heads: dict[str, list[str]] = {}
    for record in _heads():
        heads.setdefault(record["task"], []).append(record["head"])
    for task, kinds in heads.items():
        console.print(f"heads of {task}, on any of them: {', '.join(kinds)}", soft_wrap=True)
    console.print("srattn models --heads has their options.")


def _heads() -> list[dict[str, Any]]:
    """A record of each head of each task, the default of a task first."""
    from srattn.tasks.models import heads_of
    from srattn.tasks.registry import list_tasks

    return [
        {"task": task, "head": head, "options": _options(task, head)}
        for task in list_tasks()
        for head in heads_of(task)
    ]


def _options(task: str, head: str) -> dict[str, Any]:
    """The options of a head and their defaults; of a detector those of its pyramid too."""
    import inspect

    from srattn import heads
    from srattn.tasks.detection import model as detectors

    classes = {getattr(each, "kind", None): each for each in vars(heads).values() if inspect.isclass(each)}
    made: Any = getattr(detectors, head) if task == "detection" else classes[head]
    parameters = [p for p in inspect.signature(made).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in ("device", "dtype")}


def _show_heads(pattern: str, form: str) -> int:
    from fnmatch import fnmatchcase

    from srattn.errors import SrattnError, nearest

    known = _heads()
    found = [record for record in known if fnmatchcase(record["head"], pattern)]
    if not found:
        raise SrattnError(f"no head matches {pattern!r}{nearest(pattern, [record['head'] for record in known])}")
    if form == "json":
        print(json.dumps(found, indent=2))
        return 0
    for record in found:
        options = ", ".join(f"{name}={value}" for name, value in record["options"].items())
        print(f"{record['task']}  {record['head']}  {options}")
    print("srattn train --task TASK --head HEAD --head_options.NAME VALUE takes one, on any backbone.")
    return 0

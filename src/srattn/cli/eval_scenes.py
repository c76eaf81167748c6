"""``srattn eval`` of a model of masks, boxes, depths or joints."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srattn.errors import SrattnError

if TYPE_CHECKING:
    import jsonargparse

    from srattn.engine.scene_exam import SceneMeasurement
    from srattn.engine.weights import LoadedRun

_SHOWN = 40


OWN: dict[str, Any] = {
    "classes": None, "void": [], "depth_scale": None, "native": False, "overlap": 0.25, "scales": [1.0],
}  # fmt: skip
"""What `add_scene_arguments` adds, with the defaults."""


def add_scene_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """What is asked of masks and boxes alone."""
    parser.add_argument(
        "--classes",
        type=str | None,
        help="masks, boxes: names of the classes, or a file of them, where the data has none",
    )
    parser.add_argument("--void", type=list[int], default=[], help="masks: numbers that are no class, beside 255")
    parser.add_argument(
        "--depth_scale",
        type=float | None,
        help="depths: metres a unit of the files, where not the run's own (else 0.001: millimetres)",
    )
    parser.add_argument("--native", action="store_true", help="masks: in windows of images at their own size")
    parser.add_argument("--overlap", type=float, default=0.25, help="masks: of neighbouring windows")
    parser.add_argument("--scales", type=list[float], default=[1.0], help="masks: average over sizes")


def eval_scenes(args: jsonargparse.Namespace) -> int:
    """Measures, prints a table, writes figures and the picture of the worst and best cases."""
    from srattn.cli.embed import open_on
    from srattn.cli.eval import progress_bar, write_results
    from srattn.engine.scene_exam import measure_scenes
    from srattn.engine.scene_predict import Looking

    for option, given in (("--weights", args.weights), ("--corruptions", args.corruptions != "none")):
        if given:
            raise SrattnError(f"{option} is for models that classify; leave it out")
    run = open_on(args)
    graph = getattr(run.model, "facts", None)  # of an exported file
    if graph is not None and graph.options.preprocess:
        raise SrattnError(
            f"{args.model} resizes pictures itself, and their targets would not follow: export it without --preprocess"
        )
    looking = Looking(args.native, args.overlap, tuple(args.scales), args.tta == "flip")
    if run.task != "segmentation" and looking != Looking():
        raise SrattnError(f"--native, --overlap, --scales and --tta are for masks, and {args.model} finds {run.task}")
    for option, given, tasks in (
        ("--void", args.void, ["segmentation"]),
        ("--classes", args.classes, ["segmentation", "detection"]),
        ("--depth_scale", args.depth_scale is not None, ["depth"]),
    ):
        if given and run.task not in tasks:
            raise SrattnError(f"{option} has no meaning for {run.task}: leave it out")
    with progress_bar() as notify:
        found = measure_scenes(
            run,
            args.data,
            args.split,
            classes=args.classes,
            void=tuple(args.void),
            depth_scale=args.depth_scale,
            looking=looking,
            on_bad_image=args.on_bad_image,
            batch_size=min(args.batch_size, 8),
            workers=args.num_workers,
            hold_bytes=args.cache_mb << 20,
            notify=lambda done, total: notify("measuring", done, total),
        )
    unsure = _unsure(run)
    if unsure is not None:
        found.figures.pop("loss", None)
        print(f"srattn: {unsure}", file=sys.stderr)
    facts = {"model": str(run.path), "name": run.name, "task": run.task, "data": args.data, "split": found.split}
    values = facts | found.to_dict()
    if args.format == "json":
        print(json.dumps(values, indent=2))
    else:
        _print(found, facts)
    write_results(args, values, lambda path: _draw(path, run, found))
    return 0


def _unsure(run: LoadedRun) -> str | None:
    """Why an exported file has no loss: it says what it found, and not how sure of all else its model was."""
    from srattn.tasks.models import task_options

    graph = getattr(run.model, "facts", None)
    if graph is None or graph.options.answer not in ("classes", "boxes", "detections"):
        return None
    if task_options(run.model).get("stages") == 2:  # its model has none either
        return None
    other = "logits" if graph.options.answer == "classes" else "rows"
    return f"without a loss: {run.path} answers with {graph.options.answer}; one of --outputs {other} has it"


def _print(found: SceneMeasurement, facts: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from srattn.cli.wide import console_for
    from srattn.engine.progress import figure_text

    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_row("model", Text(f"{facts['model']} ({facts['name']}, {facts['task']})"))
    table.add_row("data", Text(f"{facts['data']}: {found.split}, {len(found.data.val):,} images"))
    for name, value in found.figures.items():
        table.add_row(name, Text(figure_text(name, value), style="bold" if name == found.headline else ""))
    table.add_row("images per second", f"{found.images_per_second:,.1f} with loading")
    rows = _rows_of(found)
    shown = Table(box=box.SIMPLE_HEAD)
    console = console_for(table)
    console.print(table)
    if rows is not None:
        for place, name in enumerate(rows[0]):
            shown.add_column(name, justify="right" if place else "left")
        for row in rows[1][:_SHOWN]:
            shown.add_row(*map(Text, row))
        console = console_for(shown)
        console.print(shown)
        if len(rows[1]) > _SHOWN:
            console.print(f"the first {_SHOWN} of {len(rows[1])} rows; --out has all of them")
    for line in found.data.notes:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in found.skipped[:5]:
        console.print(f"left out {line}", highlight=False, markup=False, soft_wrap=True)
    if len(found.skipped) > 5:
        console.print(f"and {len(found.skipped) - 5} more that could not be used")


def _rows_of(found: SceneMeasurement) -> tuple[list[str], list[list[str]]] | None:
    """Heads and rows of the figures by class, by joint, or by distance; None where there are none."""
    from srattn.engine.progress import figure_text

    steps = found.details.get("by_distance")
    if steps is not None:
        edges = steps["edges"]
        names = [f"{low:g} to {high:g} m" for low, high in itertools.pairwise(edges)]
        figures, counts = ("delta1", "abs_rel", "rmse"), [f"{count:,}" for count in steps["pixels"]]
        columns = [["–" if value is None else figure_text(key, value) for value in steps[key]] for key in figures]
        return ["true distance", "pixels", *figures], [list(row) for row in zip(names, counts, *columns, strict=True)]
    kind = "joint" if any(name.startswith("per_joint_") for name in found.details) else "class"
    by_name = {name: values for name, values in found.details.items() if name.startswith(f"per_{kind}_")}
    if not by_name:
        return None
    heads = [kind, *(name.removeprefix(f"per_{kind}_") for name in by_name)]
    classes = found.data.classes
    return heads, [[name, *(_percent(values.get(name)) for values in by_name.values())] for name in classes]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"


def _draw(path: Path, run: LoadedRun, found: SceneMeasurement) -> None:
    from srattn.data.dense import Scenes
    from srattn.explain.scene_sheet import draw_cases, precisions

    scores = found.details.get("per_image")
    if found.answers is not None:
        samples = found.data.val
        assert isinstance(samples, Scenes)
        scores = precisions(samples, found.answers)
    draw_cases(path, run, found.data, scores)

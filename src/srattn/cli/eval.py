"""``srattn eval``: what a model is worth on labelled images, as a table, a file and a picture."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from srattn.cli.embed import EXPORTS, open_on, task_on
from srattn.cli.eval_scenes import OWN, add_scene_arguments
from srattn.cli.predict_scenes import SCENES, refuse_other_options
from srattn.errors import SrattnError
from srattn.files import check_writable

if TYPE_CHECKING:
    import jsonargparse

    from srattn.engine.measure import Measurement, Notify

_CLASSES_SHOWN = 12


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=str | None,
        help="a run folder of srattn train, a checkpoint, a name that srattn models lists, or a file of srattn export; "
        "by default the model that comes with the package",
    )
    parser.add_argument("--weights", type=str | None, help="a checkpoint of the model that --model names")
    parser.add_argument("--data", type=str, required=True, help="labelled images: whatever srattn train takes")
    parser.add_argument(
        "--split",
        type=Literal["auto", "val", "test", "train", "all"],
        default="auto",
        help="the part to measure on; auto: what the run held out, else val, else test, else all images",
    )
    parser.add_argument("--size", type=int | None, help="side of the images in pixels, where not the model's own")
    parser.add_argument(
        "--tta", type=Literal["none", "flip"], default="none", help="flip: average over the image and its mirror image"
    )
    parser.add_argument(
        "--corruptions",
        nargs="?",
        type=str,
        default="none",
        const="all",
        help="measure under noise, blur, fog, JPEG and so on as well: all of them, or some, as in fog,jpeg",
    )
    parser.add_argument("--severities", type=list[int], default=[1, 3, 5], help="strengths of the corruptions, 1 to 5")
    parser.add_argument("--out", type=str | None, help="write all figures to this .json file")
    parser.add_argument("--picture", type=str | None, help="draw them to this .png (or .pdf, .svg) file")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    parser.add_argument("--num_workers", type=int, default=2, help="threads that decode and corrupt ahead of the model")
    parser.add_argument(
        "--cache_mb", type=int, default=1024, help="decoded images kept for the passes over corruptions"
    )
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, mps; auto takes cuda where there is one")
    parser.add_argument(
        "--on_bad_image",
        type=Literal["skip", "error"],
        default="skip",
        help="unreadable images: count them and go on, or stop with exit code 2",
    )
    for kind in ("image", "label", "split"):
        parser.add_argument(f"--{kind}_column", type=str | None, help="of lists and tables with other names of columns")
    parser.add_argument("--format", type=Literal["table", "json"], default="table", help="for people or for programs")
    add_scene_arguments(parser)


def run(args: jsonargparse.Namespace) -> int:
    for name, least in (("batch_size", 1), ("num_workers", 0), ("cache_mb", 0), ("size", 1)):
        if args[name] is not None and args[name] < least:
            raise SrattnError(f"--{name} must be at least {least}, got {args[name]}")
    from srattn.engine.rows.ranks import check_alone

    check_alone("eval")
    kinds = chosen_corruptions(args.corruptions)
    free_targets(args.out, ".json", args.picture)
    exported = Path(args.model or "").suffix in EXPORTS
    if exported and args.weights is not None:
        raise SrattnError(f"{args.model} has its weights in itself: leave out --weights")
    if task_on(args.model) != "classification":
        from srattn.cli.eval_scenes import eval_scenes

        return eval_scenes(args)
    refuse_other_options(args, OWN, SCENES)

    from srattn.data.columns import Columns
    from srattn.engine.device import pick_device
    from srattn.engine.exam import open_exam, open_subject
    from srattn.engine.measure import measure

    device = pick_device(args.device)
    subject = open_on(args) if exported else open_subject(args.model, args.weights, device, args.size)
    columns = Columns(args.image_column, args.label_column, args.split_column)
    exam = open_exam(subject, args.data, args.split, args.on_bad_image, columns)
    with progress_bar() as notify:
        found = measure(
            subject.model,
            exam.samples,
            subject.preprocess,
            exam.classes,
            batch_size=args.batch_size,
            workers=args.num_workers,
            tta=args.tta,
            corruptions=kinds,
            severities=args.severities,
            hold_bytes=args.cache_mb << 20,
            notify=notify,
        )
    left_out = exam.skipped + list(found.details["unreadable"].values())
    facts = {"model": str(subject.path), "name": subject.name, "data": args.data, "split": exam.split}
    if exported:
        found.details["parameters"] = None  # a graph has constants
    values = {**facts, **found.to_dict(), "left_out": len(left_out)}
    if args.format == "json":
        print(json.dumps(values, indent=2))
    else:
        print_measurement(found, facts, left_out)
    write_results(args, values, lambda path: _draw(path, found, facts))
    return 0


def chosen_corruptions(text: str) -> list[str]:
    """The kinds that `--corruptions` names.

    Raises:
        SrattnError: an unknown one.
    """
    from srattn.engine.corruptions import CORRUPTIONS
    from srattn.errors import nearest

    if text == "none":
        return []
    if text == "all":
        return list(CORRUPTIONS)
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    for kind in kinds:
        if kind not in CORRUPTIONS:
            raise SrattnError(f"no corruption {kind!r}{nearest(kind, CORRUPTIONS)}; there are {', '.join(CORRUPTIONS)}")
    return kinds


def free_targets(figures: str | None, kind: str, picture: str | None) -> None:
    """Refuses files that exist, are of another kind, ".json" say, or cannot be written, before any work starts."""
    for path, kinds in ((figures, (kind,)), (picture, (".png", ".pdf", ".svg"))):
        if path is None:
            continue
        if Path(path).suffix.lower() not in kinds:
            what = "figures are" if path is figures else "a picture is"
            raise SrattnError(f"{what} written to a file that ends in {' or '.join(kinds)}, got {path}")
        check_writable(path)


def write_results(args: jsonargparse.Namespace, values: dict[str, Any], draw: Any) -> None:
    """The figures as JSON and the picture, each whole or not at all, and a line on each beside what programs read."""
    from srattn.files import atomic_path

    notices = sys.stderr if args.format == "json" else sys.stdout
    if args.out is not None:
        with atomic_path(args.out) as aside:
            aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        print(f"figures {args.out}", file=notices)
    if args.picture is not None:
        with atomic_path(args.picture) as aside:
            draw(aside)
        print(f"picture {args.picture}", file=notices)


def print_measurement(found: Measurement, facts: dict[str, Any], left_out: list[str]) -> None:
    """Figures, the classes (of many the worst ones) and the corruptions, as tables."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from srattn.cli.wide import console_for
    from srattn.engine.progress import figure_text

    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    size = "x".join(str(side) for side in found.details["size"])
    tta = ", with the mirror image" if found.details["tta"] == "flip" else ""
    parameters = found.details["parameters"]
    count = "" if parameters is None else f", {parameters / 1e6:.2f} M"
    table.add_row("model", Text(f"{facts['model']} ({facts['name']}{count})"))
    table.add_row("data", Text(f"{facts['data']}: {facts['split']}, {found.images:,} images, {size} pixels{tta}"))
    for name, value in _figures(found):
        table.add_row(name, value)
    ordered = sorted(found.per_class.items(), key=lambda item: item[1])
    classes = Table(box=box.SIMPLE_HEAD)
    for name in ("class", "images", "accuracy"):
        classes.add_column(name, justify="left" if name == "class" else "right")
    for name, value in ordered[:_CLASSES_SHOWN]:
        classes.add_row(Text(name), str(found.support[name]), figure_text("accuracy", value))
    robust = [_robustness(found, Table(box=box.SIMPLE_HEAD))] if found.corruptions else []
    console = console_for(table, classes, *robust)
    console.print(table)
    console.print(classes)
    if len(ordered) > _CLASSES_SHOWN:
        console.print(f"the {_CLASSES_SHOWN} worst of {len(ordered)} classes; --out has all of them")
    for corrupted in robust:
        console.print(corrupted)
    for line in left_out[:5]:
        console.print(f"left out {line}", highlight=False, markup=False, soft_wrap=True)
    if len(left_out) > 5:
        console.print(f"and {len(left_out) - 5} more that could not be used")


def _figures(found: Measurement) -> list[tuple[str, str]]:
    from srattn.engine.progress import figure_text

    five = [] if found.top5 is None else [("top-5", figure_text("accuracy", found.top5))]
    corrupted = []
    if found.corrupted is not None:
        corrupted = [("under corruptions", f"{figure_text('accuracy', found.corrupted)} on average")]
    speed = found.images_per_second
    return [
        ("top-1", figure_text("accuracy", found.top1)),
        *five,
        *corrupted,
        ("negative log likelihood", f"{found.nll:.4f}"),
        ("calibration error (15 bins)", f"{100 * found.ece:.2f}%, best temperature {found.temperature:.2f}"),
        ("images per second", f"{speed['model']:,.0f} by the model alone, {speed['with_loading']:,.0f} with loading"),
    ]


def _robustness(found: Measurement, table: Any) -> Any:
    from srattn.engine.progress import figure_text

    severities = sorted({s for row in found.corruptions.values() for s in row})
    table.add_column("corruption")
    for severity in severities:
        table.add_column(f"severity {severity}", justify="right")
    for kind, row in found.corruptions.items():
        table.add_row(kind.replace("_", " "), *(figure_text("accuracy", row[s]) for s in severities))
    return table


def _draw(path: Path, found: Measurement, facts: dict[str, Any]) -> None:
    from srattn.explain.measure_figures import measurement_picture

    measurement_picture(path, found, f"{facts['model']} on {facts['data']}, {facts['split']}")


@contextlib.contextmanager
def progress_bar() -> Iterator[Notify]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)

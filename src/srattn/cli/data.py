"""``srattn data``: checks a data set, or previews what the augmentation makes of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from srattn.errors import SrattnError

if TYPE_CHECKING:
    from collections.abc import Callable

    import jsonargparse

    from srattn.data.check import Report
    from srattn.data.columns import Columns
    from srattn.data.dense.kinds import SceneKind
    from srattn.data.dense.survey import SceneReport

_PICTURES = (".png", ".svg", ".pdf")
_DIFFERENCES = "classes that are not the model's"


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        type=Literal["check", "preview"],
        help="check: read everything once and report; exit code 1 if a run would refuse the data. "
        "preview: a picture of some images and what the augmentation makes of them",
    )
    parser.add_argument(
        "data",
        type=str,
        help="digits; a folder of class folders, Parquet files, tar shards or IDX files; a .csv, .jsonl, .parquet or "
        ".tar file; a pattern or URL of tar shards; hf:NAME; a folder of images and masks or depths, Pascal VOC or "
        "COCO",
    )
    parser.add_argument(
        "--task",
        type=Literal["classification", "segment", "detect", "depth", "pose"] | None,
        help="what to read a folder as that has several forms: by default masks go before depths, these before boxes "
        "and joints, and these before class folders",
    )
    parser.add_argument(
        "--classes", type=str, default=None, help="of masks or boxes: names with commas between, or a file of them"
    )
    parser.add_argument("--void", type=list[int], default=[], help="numbers in masks that are no class, beside 255")
    parser.add_argument("--depth_scale", type=float | None, help="metres a unit of depth files (0.001: millimetres)")
    parser.add_argument("--max_depth", type=float | None, help="metres; what is farther is not learnt (10)")
    parser.add_argument(
        "--model",
        type=str | None,
        help="check: a run or checkpoint that the data is for; whether it knows the classes, and by which numbers",
    )
    parser.add_argument("--out", type=str, default=None, help="check: the report as .json; preview: the picture")
    parser.add_argument("--picture", type=str, default=None, help="check: balance, sizes and examples as .png")
    parser.add_argument("--val", type=str | None, help="check: judge as a run with this --val")
    parser.add_argument(
        "--val_fraction", type=float, default=0.2, help="check: judge as a run that holds out this part"
    )
    parser.add_argument(
        "--on_bad_image",
        type=Literal["skip", "error"],
        default="skip",
        help="check: judge as a run that leaves unusable images out, or as one that refuses them",
    )
    parser.add_argument(
        "--on_empty_class",
        type=Literal["skip", "error"] | None,
        help="check: judge as a run that leaves classes without images out, or as one that refuses them",
    )
    parser.add_argument(
        "--augment",
        type=str,
        default=None,
        help="preview: such as shift=4,flip,rand=2x9,erase=0.25,mixup=0.2 (by default crop,flip); of masks, boxes, "
        "depths and joints such as scale=0.5-2,flip,rotate=10,jitter (by default what a run does)",
    )
    parser.add_argument("--size", type=int, default=None, help="preview: side of the images that the model sees")
    parser.add_argument("--channels", type=Literal[1, 3], default=None, help="preview: 1 for grey, 3 for RGB")
    parser.add_argument("--images", type=int, default=8, help="preview: rows")
    parser.add_argument("--draws", type=int, default=7, help="preview: columns")
    parser.add_argument("--seed", type=int, default=0, help="preview: chooses images and draws")
    parser.add_argument("--image_column", type=str, default=None, help="of lists and tables")
    parser.add_argument("--label_column", type=str, default=None, help="of lists and tables")
    parser.add_argument("--split_column", type=str, default=None, help="of lists and tables")
    parser.add_argument("--num_workers", type=int, default=2, help="threads that decode")
    parser.add_argument("--overwrite", action="store_true", help="replace --out and --picture if they exist")


def run(args: jsonargparse.Namespace) -> int:
    from srattn.cli.data_scenes import kind_of
    from srattn.data.columns import Columns

    for name, least in (("images", 1), ("draws", 1), ("num_workers", 0)):
        if args[name] < least:
            raise SrattnError(f"--{name} must be at least {least}, got {args[name]}")
    if args.action == "preview":
        if args.out is None:
            raise SrattnError("preview needs the picture to write: --out preview.png")
        if args.picture is not None:
            raise SrattnError("--picture belongs to check; preview writes its picture to --out")
        if args.model is not None:
            raise SrattnError("--model belongs to check: leave it out")
    kind = kind_of(args)
    columns = Columns(args.image_column, args.label_column, args.split_column)
    if args.action == "check":
        return _check(args, columns) if kind is None else _check_scenes(args, kind)
    out = _target(args.out, _PICTURES, args.overwrite, "--out")
    assert out is not None
    if kind is None:
        _preview(args, columns, out)
    else:
        from srattn.cli.data_scenes import preview_of

        preview_of(args, kind, out)
    print(f"picture {out}")
    return 0


def _check(args: jsonargparse.Namespace, columns: Columns) -> int:
    from srattn.data.check import check
    from srattn.files import atomic_path

    out = _target(args.out, (".json",), args.overwrite, "--out")
    picture = _target(args.picture, _PICTURES, args.overwrite, "--picture")
    with _Bar("reading") as notify:
        report = check(
            args.data,
            columns=columns,
            val=args.val,
            val_fraction=args.val_fraction,
            on_bad_image=args.on_bad_image,
            on_empty_class=args.on_empty_class,
            workers=args.num_workers,
            notify=notify,
        )
    differences = against(args.model, report)
    _print(report)
    _list(_DIFFERENCES, differences)
    _say_verdict(report.refused)
    if out is not None:
        with atomic_path(out, args.overwrite) as aside:
            aside.write_text(json.dumps(report.to_dict(), indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
        print(f"report {out}")
    if picture is not None:
        from srattn.data.pictures import draw_report

        draw_report(report, picture, args.overwrite)
        print(f"picture {picture}")
    return 1 if report.refused else 0


def _check_scenes(args: jsonargparse.Namespace, kind: SceneKind) -> int:
    from srattn.cli.data_scenes import check_of, print_scenes

    out = _target(args.out, (".json",), args.overwrite, "--out")
    picture = _target(args.picture, _PICTURES, args.overwrite, "--picture")
    with _Bar("reading") as notify:
        report, differences = check_of(args, kind, out, picture, notify)
    print_scenes(report, _safe, _list)
    _list(_DIFFERENCES, differences)
    _say_verdict(report.refused)
    for what, path in (("report", out), ("picture", picture)):
        if path is not None:
            print(f"{what} {path}")
    return 1 if report.refused else 0


def against(model: str | None, report: Report | SceneReport) -> list[str]:
    """Where a model's classes are not the data's, as lines; what it does not know at all is a reason to refuse."""
    if model is None or not report.classes:
        return []
    from srattn.engine.exam import class_numbers
    from srattn.engine.open_model import open_model

    ours = open_model(model).classes
    try:
        numbers = class_numbers(report.classes, ours)
    except SrattnError as error:
        report.refused.append(f"{model}: {error}")
        return [f"{name!r} is unknown to the model" for name in report.classes if name not in ours]
    pairs = enumerate(zip(report.classes, numbers, strict=True))
    return [f"{name!r} is {own} here and {theirs} in the model" for own, (name, theirs) in pairs if own != theirs]


def _preview(args: jsonargparse.Namespace, columns: Columns, out: Path) -> None:
    from srattn.data.pictures import draw_preview
    from srattn.data.preview import read_some
    from srattn.data.reader import default_preprocess, is_built_in
    from srattn.data.spec import parse_augment

    digits = is_built_in(args.data)
    channels = args.channels if args.channels is not None else 1 if digits else 3
    size = args.size if args.size is not None else 16 if digits else 128
    augment = parse_augment(
        "crop,flip" if args.augment is None else args.augment, default_preprocess(args.data, size, channels)
    )
    data = read_some(args.data, augment, args.images, args.seed, columns)
    draw_preview(data, augment, out, args.images, args.draws, args.seed, args.overwrite)


def _target(path: str | None, suffixes: tuple[str, ...], overwrite: bool, option: str) -> Path | None:
    """A file to write, refused before any work where it could not be written."""
    if path is None:
        return None
    if not path.endswith(suffixes):
        raise SrattnError(f"{option} must end in {' or '.join(suffixes)}, got {path!r}")
    if not overwrite and Path(path).exists():
        raise SrattnError(f"{path} exists and is not overwritten; choose another path, or give --overwrite")
    return Path(path)


def _print(report: Report) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from srattn.cli.wide import console_for

    table = Table(box=box.SIMPLE_HEAD, title=f"{sum(report.sizes.values()):,} images, {len(report.classes)} classes")
    for name in ("part", "images", "smallest class", "largest class", "repeated"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for part, counts in report.counts.items():
        least, most = (pick(range(len(counts)), key=counts.__getitem__) for pick in (min, max))
        cells = [f"{counts[number]:,} {_safe(report.classes[number])[:24]}" for number in (least, most)]
        table.add_row(part, f"{sum(counts):,}", *map(Text, cells), f"{report.repeated.get(part, 0):,}")
    if report.counts:
        console_for(table).print(table)
    if report.sizes:
        sides = sorted(side for size, count in report.sizes.items() for side in [min(size)] * count)
        low, middle, high = sides[0], sides[len(sides) // 2], sides[-1]
        print(f"sizes: {len(report.sizes):,} different; shorter side {low} to {high} pixels, median {middle}")
    pairs = (
        ("the same picture in two parts", [f"{a}: {b} = {c}: {d}" for a, b, c, d in report.duplicates]),
        ("nearly the same picture in two parts", [f"{a}: {b} ~ {c}: {d}" for a, b, c, d in report.near]),
        ("the same picture with two labels", [f"{a} ({b}) = {c} ({d})" for a, b, c, d in report.conflicts]),
    )
    found = (("unreadable", report.unreadable), ("left out", report.left_out), ("empty", report.empty), *pairs)
    for what, lines in found:
        _list(what, lines)


def _list(what: str, lines: list[str]) -> None:
    """A heading and the first of some lines."""
    if lines:
        print(f"{what}: {len(lines):,}")
        for line in lines[:10]:
            print(f"  {_safe(line)}")
        if len(lines) > 10:
            print(f"  ... and {len(lines) - 10:,} more")


def _say_verdict(refused: list[str]) -> None:
    for reason in refused:
        print(f"a run would refuse this: {_safe(reason)}")
    if not refused:
        print("a run would take this data")


def _safe(text: str) -> str:
    """Names from strangers without control characters and bytes that are no text."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class _Bar:
    """A progress bar on standard error, if that is a terminal."""

    def __init__(self, what: str) -> None:
        self._what, self._bar = what, None

    def __enter__(self) -> Callable[[int, int], None]:
        if not sys.stderr.isatty():
            return lambda done, total: None
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        bar.start()
        task = bar.add_task(self._what)
        return lambda done, total: bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

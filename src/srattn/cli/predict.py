"""``srattn predict``: classifies images or whole data sets, to the screen or into one Parquet file; or segments images
or finds objects in them, into a folder of masks and overlays."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TextIO

import jsonargparse

from srattn.cli.embed import (
    DATA_HELP,
    MODEL_HELP,
    add_pass_arguments,
    check_pass_arguments,
    open_on,
    task_on,
    write_out,
)
from srattn.cli.main import SKIPPED
from srattn.cli.predict_scenes import OWN, SCENES, add_looking_arguments, refuse_other_options
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from srattn.engine.predict import Classes, Prediction
    from srattn.engine.rows import Rows
    from srattn.engine.weights import LoadedRun

MAX_STDIN_BYTES = 256 << 20


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=str, help=f"{DATA_HELP}; or - for one image on standard input")
    parser.add_argument(
        "--model", type=str | None, help=f"{MODEL_HELP}, or a file of srattn export; without it the model in the box"
    )
    parser.add_argument(
        "--out",
        type=str | None,
        help="what to write, instead of the screen: a .parquet file; of masks or boxes, a folder",
    )
    parser.add_argument(
        "--format", type=Literal["table", "json", "csv"], default="table", help="for people, or for programs"
    )
    parser.add_argument(
        "--top", type=int, default=5, help="how many classes to give for each image, the likeliest first"
    )
    add_looking_arguments(parser)
    add_pass_arguments(parser)


def run(args: jsonargparse.Namespace) -> int:
    from srattn.engine.rows.ranks import check_alone

    dense = task_on(args.model) != "classification"
    if dense or args.out is None:
        check_alone("predict", "without --out NAME.parquet" if not dense else "of masks, boxes, depths or joints")
    if dense:
        from srattn.cli.predict_scenes import predict_scenes

        return predict_scenes(args, find_rows(args.images, args.split))
    refuse_other_options(args, OWN, SCENES)
    if args.top < 1:
        raise SrattnError(f"--top must be at least 1, got {args.top}")
    check_pass_arguments(args)
    if args.out is not None and "-" in args.images:
        raise SrattnError("- (standard input) is for the screen: it cannot be read again after a kill; leave out --out")
    rows = find_rows(args.images, args.split)
    if args.out is None:
        return to_screen(args, rows)

    def make(loaded: LoadedRun) -> Classes:
        from srattn.engine.predict import Classes

        _check_classes(loaded)
        return Classes(loaded, args.top)

    return write_out(args, rows, make, skipped=SKIPPED)


def to_screen(args: jsonargparse.Namespace, rows: Rows) -> int:
    from srattn.data.decode import BadImage
    from srattn.engine import classify

    loaded = open_on(args)
    _check_classes(loaded)
    if args.model is None:
        known = ", ".join(loaded.classes)
        print(f"srattn: the model in the box answers; it knows {known}, and --model takes another", file=sys.stderr)
    bad = 0

    def name_it(error: BadImage) -> None:
        nonlocal bad
        if args.on_bad_image == "error":
            raise error
        bad += 1
        print(f"srattn: skipped {error}", file=sys.stderr)

    predictions = classify(loaded, rows.read(0, len(rows)), args.batch_size, args.num_workers, name_it)
    write = {"table": write_table, "json": write_json, "csv": write_csv}[args.format]
    write(predictions, min(args.top, len(loaded.classes)), sys.stdout)
    if bad:
        print(f"srattn: {bad} of {len(rows)} image(s) could not be read", file=sys.stderr)
    if bad == len(rows):
        raise SrattnError("no image could be read")
    return SKIPPED if bad else 0


def find_rows(arguments: Iterable[str], split: str | None = None) -> Rows:
    """The images that the arguments name, in their order, with what "-" stands for.

    Raises:
        SrattnError: as `open_rows`; or "-" twice.
    """
    from srattn.engine.rows import Joined, Source, open_rows
    from srattn.engine.rows.base import Listed

    found: list[Rows] = []
    seen = False
    for argument in arguments:
        if argument != "-":
            found.append(open_rows([argument], split))
            continue
        if seen:
            raise SrattnError("- (standard input) can be given only once")
        seen = True
        data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
        if len(data) > MAX_STDIN_BYTES:
            raise SrattnError(f"standard input is longer than the {MAX_STDIN_BYTES} bytes that are accepted")
        found.append(Listed([Source("-", data)]))
    return Joined(found)


def _check_classes(loaded: LoadedRun) -> None:
    if not loaded.classes:
        raise SrattnError(f"{loaded.path} has no classifier; srattn embed writes its features")


def write_table(predictions: Iterable[Prediction], top: int, file: TextIO) -> None:
    """A line an image: path, then class and probability, the likeliest first."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = list(predictions)
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    for rank in range(top):
        table.add_column("class" if rank == 0 else f"{rank + 1}.", overflow="fold")
    for row in rows:
        answers = zip(row.classes[:top], row.probabilities[:top], strict=True)
        table.add_row(Text(_shown(row.path)), *(Text(f"{_shown(name)} {100 * value:.1f}%") for name, value in answers))
    # Without a terminal the lines are as long as they need to be: somebody will search them.
    width = None if file.isatty() else 10_000
    Console(file=file, width=width, soft_wrap=width is not None).print(table)


def write_json(predictions: Iterable[Prediction], top: int, file: TextIO) -> None:
    """A list of objects, each on a line of its own: path, classes, probabilities."""
    before = "[\n"
    for row in predictions:
        record = {
            "path": _shown(row.path),
            "class": row.classes[0],
            "classes": row.classes[:top],
            "probabilities": [round(value, 6) for value in row.probabilities[:top]],
        }
        file.write(before + json.dumps(record, ensure_ascii=False))
        before = ",\n"
    file.write("[]\n" if before == "[\n" else "\n]\n")


def write_csv(predictions: Iterable[Prediction], top: int, file: TextIO) -> None:
    """path, class, probability, and for further ranks class_2, probability_2, ..."""
    writer = csv.writer(file, lineterminator="\n")
    header = ["path", "class", "probability"]
    for rank in range(2, top + 1):
        header += [f"class_{rank}", f"probability_{rank}"]
    writer.writerow(header)
    for row in predictions:
        answers = zip(row.classes[:top], row.probabilities[:top], strict=True)
        writer.writerow([_shown(row.path), *(cell for name, value in answers for cell in (name, f"{value:.6f}"))])


def _shown(text: str) -> str:
    # A file name may hold bytes that are no UTF-8; they must not break the output half way.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

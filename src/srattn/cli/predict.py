"""``srattn predict``: classifies image files, folders or standard input with a trained run."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import jsonargparse

from srattn.errors import SrattnError

if TYPE_CHECKING:
    from srattn.engine.predict import Prediction, Source

MAX_STDIN_BYTES = 256 << 20


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="+",
        type=str,
        help="image files, folders (searched in depth), or - for one image on standard input",
    )
    parser.add_argument(
        "--model", type=str, required=True, help="a run folder of srattn train, or its model.safetensors"
    )
    parser.add_argument(
        "--format", type=Literal["table", "json", "csv"], default="table", help="for people, or for programs"
    )
    parser.add_argument(
        "--top", type=int, default=5, help="how many classes to give for each image, the likeliest first"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    parser.add_argument("--num_workers", type=int, default=2, help="threads that decode ahead of the model")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, mps; auto takes cuda where there is one")
    parser.add_argument(
        "--on_bad_image",
        type=Literal["skip", "error"],
        default="skip",
        help="unreadable images: name them on standard error and go on, or stop with exit code 2",
    )


def run(args: jsonargparse.Namespace) -> int:
    for name, least in (("top", 1), ("batch_size", 1), ("num_workers", 0)):
        if args[name] < least:
            raise SrattnError(f"--{name} must be at least {least}, got {args[name]}")
    sources = find_sources(args.images)

    from srattn.data.decode import BadImage
    from srattn.engine import classify, load_run
    from srattn.engine.trainer import pick_device

    loaded = load_run(args.model, pick_device(args.device))
    bad = 0

    def name_it(error: BadImage) -> None:
        nonlocal bad
        if args.on_bad_image == "error":
            raise error
        bad += 1
        print(f"srattn: skipped {error}", file=sys.stderr)

    predictions = classify(loaded, sources, args.batch_size, args.num_workers, name_it)
    write = {"table": write_table, "json": write_json, "csv": write_csv}[args.format]
    write(predictions, min(args.top, len(loaded.classes)), sys.stdout)
    if bad:
        print(f"srattn: {bad} of {len(sources)} image(s) could not be read", file=sys.stderr)
    if bad == len(sources):
        raise SrattnError("no image could be read")
    return 0


def find_sources(arguments: Iterable[str]) -> list[Source]:
    """The images that the arguments name, in their order; those of a folder ascending by path.

    Raises:
        SrattnError: a path that does not exist, a folder without images, or "-" twice.
    """
    from srattn.data.folder import find_images
    from srattn.engine.predict import Source

    sources: list[Source] = []
    for argument in arguments:
        path = Path(argument)
        if argument == "-":
            if any(source.name == "-" for source in sources):
                raise SrattnError("- (standard input) can be given only once")
            data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
            if len(data) > MAX_STDIN_BYTES:
                raise SrattnError(f"standard input is longer than the {MAX_STDIN_BYTES} bytes that are accepted")
            sources.append(Source("-", data))
        elif path.is_dir():
            images = find_images(path)
            if not images:
                raise SrattnError(f"{path} has no image files")
            sources += [Source(str(image), image) for image in images]
        elif path.exists():
            sources.append(Source(argument, path))
        else:
            raise SrattnError(f"{path} does not exist")
    return sources


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

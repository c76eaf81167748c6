"""``srattn embed``: pooled vectors or feature maps of a whole data set, into one Parquet file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from srattn.errors import SrattnError

if TYPE_CHECKING:
    import jsonargparse

    from srattn.engine.embed import Maps, Vectors
    from srattn.engine.rows.answer import Output
    from srattn.engine.rows.base import Rows
    from srattn.engine.weights import LoadedRun

DATA_HELP = (
    "image files; folders of images, of Parquet files or of WebDataset shards; .csv and .jsonl lists; "
    ".parquet and .tar files; digits"
)
EXPORTS = (".onnx", ".pt2", ".xml")
"""Suffixes of the files of `srattn export`."""
MODEL_HELP = "a run folder of srattn train or its model.safetensors, a checkpoint, or a name that srattn models lists"


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", type=str, help=DATA_HELP)
    parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
    parser.add_argument("--out", type=str, required=True, help="the .parquet file to write")
    parser.add_argument(
        "--maps", type=str | None, help="feature maps of these stages instead of pooled vectors, as in 1,4"
    )
    parser.add_argument(
        "--dtype", type=Literal["float32", "float16"] | None, help="of the values (float32; float16 for maps)"
    )
    add_pass_arguments(parser)


def add_pass_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """The options of a pass over a data set that predict has as well."""
    parser.add_argument("--split", type=str | None, help="of a data set that has several: train, test, ...")
    parser.add_argument("--size", type=int | None, help="side of the images in pixels, where not the model's own")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    parser.add_argument("--num_workers", type=int, default=2, help="threads that decode ahead of the model")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, mps; auto takes cuda where there is one")
    parser.add_argument(
        "--part_rows", type=int | None, help="rows of a part, which is what a kill can cost (1024, fewer for maps)"
    )
    parser.add_argument(
        "--on_bad_image",
        type=Literal["skip", "error"],
        default="skip",
        help="unreadable images: name them and go on (of predict the exit code is then 3), or stop with exit code 2",
    )


def run(args: jsonargparse.Namespace) -> int:
    check_pass_arguments(args)
    stages = None if args.maps is None else _stages(args.maps)

    from srattn.engine.rows import open_rows

    rows = open_rows(args.data, args.split)

    def make(loaded: LoadedRun) -> Maps | Vectors:
        from srattn.engine.embed import Maps, Vectors

        if stages is None:
            return Vectors(loaded, args.dtype or "float32")
        return Maps(loaded, stages, args.dtype or "float16")

    return write_out(args, rows, make, _body_of)


def _body_of(loaded: LoadedRun) -> LoadedRun:
    """The backbone of a whole model, and a line that says so."""
    from srattn.engine.embed import body_of
    from srattn.engine.rows.ranks import Ranks

    found = body_of(loaded)
    if found is not loaded and Ranks.of_torchrun().rank == 0:
        height, width = found.preprocess.size
        part = "the centre" if found.preprocess.fit != loaded.preprocess.fit else "all"
        print(
            f"srattn: features of the backbone of a model for {loaded.task}, from {part} of each image at "
            f"{height}x{width}",
            file=sys.stderr,
        )
    return found


def check_pass_arguments(args: jsonargparse.Namespace) -> None:
    for name, least in (("batch_size", 1), ("num_workers", 0), ("size", 1), ("part_rows", 1)):
        if args[name] is not None and args[name] < least:
            raise SrattnError(f"--{name} must be at least {least}, got {args[name]}")


def write_out(
    args: jsonargparse.Namespace,
    rows: Rows,
    make: Callable[[LoadedRun], Output],
    ready: Callable[[LoadedRun], LoadedRun] | None = None,
    skipped: int = 0,
) -> int:
    """Answers all `rows` with the output that `make` builds for the model; says what was written, or how to go on.

    Args:
        ready: what becomes of the model before it is asked.
        skipped: the exit code where images could not be read.
    """
    from srattn.data.decode import BadImage
    from srattn.engine.rows.job import answer_all
    from srattn.engine.rows.parts import check_free
    from srattn.engine.rows.ranks import Ranks
    from srattn.engine.rows.watch import make_watch

    def stop(error: BadImage) -> None:
        raise error

    ranks = Ranks.of_torchrun()
    if ranks.world == 1:  # else the first rank may be done before the last one looks
        check_free(Path(args.out))
    loaded = open_on(args, ranks.local if ranks.world > 1 else None)
    loaded = loaded if ready is None else ready(loaded)
    output = make(loaded)
    try:
        written = answer_all(
            args.out,
            rows,
            loaded,
            output,
            batch_size=args.batch_size,
            workers=args.num_workers,
            part_rows=args.part_rows,
            on_bad_image=stop if args.on_bad_image == "error" else None,
            watch=make_watch(first=ranks.rank == 0),
            ranks=ranks,
        )
    except KeyboardInterrupt:
        print(f"srattn: stopped; what is done is in {args.out}.parts, the same command goes on", file=sys.stderr)
        return 130
    if written is not None:
        print(f"{written.path}: {written.rows} rows")
        if written.bad:
            print(f"srattn: {written.bad} image(s) could not be read, see the column error", file=sys.stderr)
            return skipped
    return 0


def open_on(args: jsonargparse.Namespace, local: int | None = None) -> LoadedRun:
    """The model on the device that is asked for; each process of a machine with GPUs takes its own."""
    import torch

    from srattn.engine.device import pick_device
    from srattn.engine.open_model import open_model

    if Path(args.model or "").suffix in EXPORTS:
        from srattn.export.opened import batch_size_for, open_export

        loaded = open_export(args.model, args.size)
        args.batch_size = batch_size_for(loaded, args.batch_size)
        return loaded
    device = args.device
    if device == "auto" and local is not None and torch.cuda.is_available():
        device = f"cuda:{local % torch.cuda.device_count()}"
    return open_model(args.model, pick_device(device), args.size)


def task_on(model: str | None) -> str:
    """The task of a model as `srattn.engine.open_model.task_of` tells it, of an exported file too."""
    if Path(model or "").suffix in EXPORTS:
        from srattn.export.opened import read_facts

        return read_facts(str(model)).task
    from srattn.engine.open_model import task_of

    return task_of(model)


def _stages(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SrattnError(f"--maps takes numbers of stages, as in 1,4, got {text!r}") from None

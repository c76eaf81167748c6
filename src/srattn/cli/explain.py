"""``srattn explain``: what a model looks at in images, as pictures and a page that answers clicks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from srattn.cli.embed import DATA_HELP, EXPORTS, MODEL_HELP
from srattn.errors import SrattnError, nearest

if TYPE_CHECKING:
    import jsonargparse

    from srattn.engine.weights import LoadedRun

PAGE = "index.html"
SOURCE_HELP = (
    "of an exported file, the run or checkpoint that it was made of, which has the attention that the file has not; "
    "by default the run folder that it lies in, or the model in the box"
)


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=str, help=DATA_HELP)
    parser.add_argument(
        "--model", type=str | None, help=f"{MODEL_HELP}, or a file of srattn export; without it the model in the box"
    )
    parser.add_argument("--source", type=str | None, help=SOURCE_HELP)
    parser.add_argument("--out", type=str, default="explained", help="the folder to write; it must not exist")
    parser.add_argument(
        "--point",
        action="append",
        type=str,
        help="X,Y whose attention is drawn, in pixels of the picture (120,80) or fractions (0.5,0.25); may be repeated "
        "(the centre, and where Grad-CAM is strongest)",
    )
    parser.add_argument("--class", type=str | None, help="the class that Grad-CAM is for (the predicted one)")
    parser.add_argument("--split", type=str | None, help="of a data set that has several: train, test, ...")
    parser.add_argument("--size", type=int | None, help="side of the images in pixels, where not the model's own")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, mps; auto takes cuda where there is one")
    parser.add_argument(
        "--on_bad_image",
        type=Literal["skip", "error"],
        default="skip",
        help="unreadable images: name them and go on, or stop with exit code 2",
    )


def run(args: jsonargparse.Namespace) -> int:
    if args.size is not None and args.size < 1:
        raise SrattnError(f"--size must be at least 1, got {args.size}")
    out = Path(args.out)
    if out.exists() or out.is_symlink():
        raise SrattnError(f"{out} exists and is not overwritten; choose another --out")

    from srattn.engine.device import pick_device
    from srattn.engine.open_model import open_model
    from srattn.engine.rows import open_rows
    from srattn.explain.explain import MOST_IMAGES, explain, write_explanation
    from srattn.explain.points import read_point

    asked = [read_point(text) for text in args.point or []]
    rows = open_rows(args.images, args.split)
    if len(rows) > MOST_IMAGES:
        raise SrattnError(f"{len(rows):,} images; a page holds at most {MOST_IMAGES}: name some of them")
    exported = Path(args.model or "").suffix in EXPORTS
    if args.source is not None and not exported:
        raise SrattnError(f"--source goes with an exported file as --model, got --model {args.model}")
    device = pick_device(args.device)
    if exported:
        from srattn.export.source import open_source

        loaded = open_source(args.model, args.source, device, args.size)
    else:
        loaded = open_model(args.model, device, args.size)
    target = _class_number(args["class"], loaded)
    explanation = explain(
        loaded, rows.read(0, len(rows)), asked, target, on_bad_image="raise" if args.on_bad_image == "error" else "skip"
    )
    if exported:
        explanation.facts.append(("exported as", f"{Path(args.model).name}; the maps are its source's"))
    for line in explanation.skipped:
        print(f"srattn: skipped {line}", file=sys.stderr)
    files = write_explanation(out, explanation, PAGE)
    print(f"{out / PAGE}: {len(explanation.studies)} image(s), and {len(files) - 1} pictures beside it")
    return 0


def _class_number(name: str | None, loaded: LoadedRun) -> int | None:
    if name is None:
        return None
    if not loaded.classes or loaded.task != "classification":
        raise SrattnError(
            f"{loaded.path} has no classifier of whole images: Grad-CAM for {name!r} needs one; leave out --class"
        )
    if name not in loaded.classes:
        some = ", ".join(loaded.classes[:12]) + (" ..." if len(loaded.classes) > 12 else "")
        raise SrattnError(f"no class {name!r}{nearest(name, loaded.classes)}; the model knows {some}")
    return loaded.classes.index(name)

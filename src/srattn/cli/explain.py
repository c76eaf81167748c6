"""``srattn explain``: what a model looks at in images, as pictures and a page that answers clicks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from srattn.cli.embed import DATA_HELP, MODEL_HELP
from srattn.errors import SrattnError, nearest

if TYPE_CHECKING:
    import jsonargparse

    from srattn.engine.weights import LoadedRun

PAGE = "index.html"


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=str, help=DATA_HELP)
    parser.add_argument("--model", type=str | None, help=f"{MODEL_HELP}; without it the model in the box")
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
    _refuse_exported(args.model)
    loaded = open_model(args.model, pick_device(args.device), args.size)
    target = _class_number(args["class"], loaded)
    explanation = explain(
        loaded, rows.read(0, len(rows)), asked, target, on_bad_image="raise" if args.on_bad_image == "error" else "skip"
    )
    for line in explanation.skipped:
        print(f"srattn: skipped {line}", file=sys.stderr)
    files = write_explanation(out, explanation, PAGE)
    print(f"{out / PAGE}: {len(explanation.studies)} image(s), and {len(files) - 1} pictures beside it")
    return 0


def _refuse_exported(model: str | None) -> None:
    """An exported file answers with its outputs alone: what is inside it cannot be asked."""
    path = Path(model or "")
    if path.suffix not in (".onnx", ".pt2", ".xml"):
        return
    if not path.is_file():
        raise SrattnError(f"{path} does not exist")
    from srattn.export.opened import read_facts

    try:
        of = f"an export of {read_facts(path).model['name']}"
    except (SrattnError, KeyError):  # none of ours, or a package that would read it is missing
        of = "an exported model"
    raise SrattnError(
        f"{path} is {of}, which answers with its outputs alone: its attention and its gradients are not in it; give "
        "--model the run or the checkpoint that it was exported from"
    )


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

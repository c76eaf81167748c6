"""``srattn predict`` with a model of masks, boxes, depths or joints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from srattn.cli.embed import check_pass_arguments, open_on
from srattn.cli.main import SKIPPED
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from torch import Tensor

    from srattn.data.decode import BadImage
    from srattn.engine.people_boxes import People
    from srattn.engine.rows import Rows
    from srattn.engine.scene_predict import Looking
    from srattn.engine.weights import LoadedRun


def add_looking_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """How images are looked at whose answer is a mask or boxes."""
    parser.add_argument(
        "--native",
        action="store_true",
        help="masks, depths: look at images at their own size, in windows that overlap, not whole at the model's size",
    )
    parser.add_argument(
        "--overlap", type=float, default=0.25, help="masks, depths: of the windows of --native, a part of their side"
    )
    parser.add_argument(
        "--scales", type=list[float], default=[1.0], help="masks: average over sizes, as in [0.75,1,1.25]"
    )
    parser.add_argument("--flip", action="store_true", help="masks, depths: average with the mirror image's answer")
    parser.add_argument("--threshold", type=float, default=0.3, help="boxes: the least score that is given")
    parser.add_argument(
        "--people",
        type=str | None,
        help="joints: predictions.json of srattn predict with boxes of the people; without it an image is one person",
    )
    parser.add_argument("--no_overlays", action="store_true", help="draw no pictures of the answers")


_FILES = (".csv", ".jpeg", ".jpg", ".json", ".jsonl", ".npy", ".parquet", ".png", ".tif", ".tiff", ".zip")
SCENES = "masks, boxes, depths or joints"
"""What this module is for, in messages."""


def refuse_other_options(args: jsonargparse.Namespace, defaults: dict[str, Any], of: str) -> None:
    """Raises SrattnError for an option that belongs to models `of` another kind and was given a value."""
    for name, default in defaults.items():
        if args[name] != default:
            raise SrattnError(f"--{name} is for models of {of}, and {args.model or 'the model in the box'} is not one")


OWN: dict[str, Any] = {
    "native": False, "overlap": 0.25, "scales": [1.0], "flip": False, "threshold": 0.3, "people": None,
    "no_overlays": False,
}  # fmt: skip
"""What `add_looking_arguments` adds, with the defaults."""


def looking_of(args: jsonargparse.Namespace) -> Looking:
    from srattn.engine.scene_predict import Looking

    return Looking(args.native, args.overlap, tuple(args.scales), args.flip, args.threshold)


def predict_scenes(args: jsonargparse.Namespace, rows: Rows) -> int:
    """Answers all rows, on the screen a line each, or into the folder `--out`."""
    from srattn.engine.scene_folder import write_folder

    check_pass_arguments(args)
    refuse_other_options(args, {"top": 5, "part_rows": None}, "classes")
    looking = looking_of(args)
    if args.out is not None and Path(args.out).suffix.lower() in _FILES and not Path(args.out).is_dir():
        raise SrattnError(
            f"masks and boxes are written into a folder, and {args.out} looks like a file; give --out NAME"
        )
    loaded = open_on(args)
    looking.check(loaded.task)
    _check_scales(loaded, looking)
    people = _people(args.people, loaded)
    bad: list[str] = []

    def name_it(error: BadImage) -> None:
        if args.on_bad_image == "error":
            raise error
        bad.append(str(error))
        print(f"srattn: skipped {error}", file=sys.stderr)

    if args.out is None:
        done = _to_screen(args, loaded, rows, looking, name_it, people)
    else:
        draw = None if args.no_overlays else draw_scene
        try:
            done = write_folder(Path(args.out), loaded, rows, looking, draw, name_it, _progress(len(rows)), people)
        except KeyboardInterrupt:
            print(f"srattn: stopped; what is done is in {args.out}, the same command goes on", file=sys.stderr)
            return 130
        print(f"{args.out}: {done} image(s)")
    if bad:
        print(f"srattn: {len(bad)} of {len(rows)} image(s) could not be read", file=sys.stderr)
    if not done:
        raise SrattnError("no image could be read")
    return SKIPPED if bad else 0


def _check_scales(loaded: LoadedRun, looking: Looking) -> None:
    """A file that resizes pictures itself would see each of them at one size, whatever was asked for."""
    options = getattr(getattr(loaded.model, "facts", None), "options", None)
    if options is not None and options.preprocess and looking.scales != (1.0,) and not looking.native:
        raise SrattnError(f"{loaded.path} resizes pictures itself, to one size: leave out --scales")


def _people(path: str | None, loaded: LoadedRun) -> People | None:
    from srattn.engine.people_boxes import read_people

    if path is None:
        return None
    if loaded.task != "pose":
        raise SrattnError(f"--people is for models of joints, and {loaded.path} is one for {loaded.task}")
    return read_people(Path(path))


def draw_scene(pixels: Tensor, answer: Tensor, run: LoadedRun, path: Path) -> None:
    """The overlay of an answer, as PNG."""
    from srattn.data.palette import standard_palette
    from srattn.explain.box_pictures import draw_boxes
    from srattn.explain.depth_pictures import colour_depth
    from srattn.explain.joint_pictures import draw_joints
    from srattn.explain.overlay import overlay
    from srattn.files import atomic_path
    from srattn.tasks.pose.joints import skeleton_of

    palette = run.palette or standard_palette(run.classes)
    if run.task == "depth":
        picture = colour_depth(answer)
    elif run.task == "pose":
        picture = draw_joints(pixels, answer, skeleton_of(run.classes))
    elif run.task == "detection":
        picture = draw_boxes(pixels, answer, run.classes, palette)
    else:
        picture = overlay(pixels, answer, palette)
    with atomic_path(path, overwrite=True) as aside:
        picture.save(aside, "PNG")


def _to_screen(
    args: jsonargparse.Namespace, loaded: LoadedRun, rows: Rows, looking: Looking, name_it: Any, people: People | None
) -> int:
    import json

    from srattn.engine.scene_folder import answers

    if args.format == "csv":
        raise SrattnError("masks and boxes have no single row for an image: give --format json, or --out FOLDER")
    records = []
    for scene in answers(loaded, rows.read(0, len(rows)), looking, name_it, people=people):
        records.append(scene.record)
        if args.format == "table":
            print(f"{scene.name}: {_line(scene.record)}")
    if args.format == "json":
        print(json.dumps(records, ensure_ascii=False, indent=1))
    return len(records)


def _line(record: dict[str, Any]) -> str:
    if "metres" in record:
        return ", ".join(f"{name} {value:.2f} m" for name, value in record["metres"].items())
    if "people" in record:
        return f"{len(record['people'])} people"
    if "boxes" in record:
        found: dict[str, int] = {}
        for box in record["boxes"]:
            found[box["class"]] = found.get(box["class"], 0) + 1
        return ", ".join(f"{count} {name}" for name, count in found.items()) or "nothing found"
    return ", ".join(f"{name} {100 * part:.1f}%" for name, part in record["shares"].items())


def _progress(total: int) -> Any:
    """A bar with the time left on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty() or total < 2:
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("predicting"), BarColumn(24), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=total)
    bar.start()

    def notify(done: int, of: int) -> None:
        bar.update(task, completed=done)
        if done == of:
            bar.stop()

    return notify

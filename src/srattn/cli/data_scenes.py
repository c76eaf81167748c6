"""``srattn data`` of images with masks, boxes, depths or joints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from srattn.errors import SrattnError

if TYPE_CHECKING:
    from collections.abc import Callable

    import jsonargparse

    from srattn.data.dense.kinds import SceneKind
    from srattn.data.dense.survey import SceneReport

_MOST_CLASSES = 40  # lines on the screen; --out has all
_WRONG = {
    "masks": "numbers that are no class", "boxes": "wrong boxes", "depths": "without a depth that is learnt",
    "joints": "people that cannot be used",
}  # fmt: skip
_OF_TASK: dict[str, SceneKind | None] = {
    "classification": None, "segment": "masks", "detect": "boxes", "depth": "depths", "pose": "joints",
}  # fmt: skip


def kind_of(args: jsonargparse.Namespace) -> SceneKind | None:
    """What the images come with; None for labels alone.

    Raises:
        SrattnError: options that the data has no use for.
    """
    from srattn.data.dense.kinds import scene_kind

    kind = scene_kind(args.data) if args.task is None else _OF_TASK[args.task]
    what = "labels" if kind is None else kind
    for name, given, belongs in (
        ("classes", args.classes is not None, kind in ("masks", "boxes")),
        ("void", bool(args.void), kind == "masks"),
        ("depth_scale", args.depth_scale is not None, kind == "depths"),
        ("max_depth", args.max_depth is not None, kind == "depths"),
        ("model", args.model is not None, kind != "depths"),
        ("on_empty_class", args.on_empty_class is not None, kind is None),
        ("image_column", args.image_column is not None, kind is None),
        ("label_column", args.label_column is not None, kind is None),
        ("split_column", args.split_column is not None, kind is None),
    ):
        if given and not belongs:
            raise SrattnError(
                f"--{name} has no meaning for images with {what}, as which {args.data} is read; leave it out, or give "
                "another --task"
            )
    if args.max_depth is not None and not args.max_depth > 0:
        raise SrattnError(f"--max_depth must be above 0 metres, got {args.max_depth:g}")
    return kind


def _metres(args: jsonargparse.Namespace) -> dict[str, float]:
    """What is given of depths."""
    return {name: args[name] for name in ("depth_scale", "max_depth") if args[name] is not None}


def check_of(
    args: jsonargparse.Namespace, kind: SceneKind, out: Path | None, picture: Path | None, notify: Callable
) -> tuple[SceneReport, list[str]]:
    """Reads everything, and writes what is asked for; and where classes are not those of `--model`."""
    from srattn.cli.data import against
    from srattn.data.dense.check import Learnt, check_scenes
    from srattn.files import atomic_path

    learnt: Learnt | None = None
    if kind == "masks" and args.model is not None:
        from srattn.data.palette import standard_palette
        from srattn.engine.open_model import open_model

        model = open_model(args.model)
        if model.of_255 == "void":  # else masks are read as they say themselves
            learnt = model.palette or standard_palette(model.classes), model.of_255
    report = check_scenes(
        args.data,
        kind,
        classes=args.classes,
        void=args.void,
        learnt=learnt,
        **_metres(args),
        val=args.val,
        val_fraction=args.val_fraction,
        on_bad_image=args.on_bad_image,
        workers=args.num_workers,
        notify=notify,
    )
    differences = against(args.model, report)
    if out is not None:
        with atomic_path(out, args.overwrite) as aside:
            aside.write_text(json.dumps(report.to_dict(), indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    if picture is not None:
        from srattn.data.dense.pictures import draw_scene_report

        draw_scene_report(report, picture, args.overwrite)
    return report, differences


def preview_of(args: jsonargparse.Namespace, kind: SceneKind, out: Path) -> None:
    """Draws some images and what the augmentation makes of them."""
    from srattn.data.dense.joint import JointAugment, parse_joint
    from srattn.data.dense.person import PersonAugment
    from srattn.data.dense.pictures import draw_scene_preview
    from srattn.data.dense.preview import read_some_scenes
    from srattn.data.reader import default_preprocess
    from srattn.engine.defaults import OF_TARGETS

    usual = OF_TARGETS[kind]
    size = args.size if args.size is not None else usual["size"]
    plain = default_preprocess(args.data, size, args.channels if args.channels is not None else 3)
    preprocess = dataclasses.replace(plain, fit="shorter" if kind in ("masks", "depths") else "inside")
    spec = args.augment if args.augment is not None else usual["augment"]
    augment = parse_joint(spec, preprocess, PersonAugment if kind == "joints" else JointAugment)
    given = args.data, kind, augment, args.images, args.seed, args.classes, args.void
    data = read_some_scenes(*given, **_metres(args))
    draw_scene_preview(data, augment, out, args.images, args.draws, args.seed, args.overwrite)


def print_scenes(report: SceneReport, safe: Callable[[str], str], listed: Callable[[str, list[str]], None]) -> None:
    """The report for a person.

    Args:
        safe: makes names from strangers printable.
        listed: prints a heading and the first of some lines.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from srattn.cli.data_tables import classes_of, parts_of
    from srattn.cli.wide import console_for

    def table(heads: list[str], rows: list[list[str]], title: str | None = None) -> None:
        made = Table(box=box.SIMPLE_HEAD, title=title)
        for place, head in enumerate(heads):
            made.add_column(head, justify="right" if place else "left")
        for row in rows:
            made.add_row(*(Text(safe(cell)) for cell in row))
        console_for(made).print(made)

    if report.images:
        table(*parts_of(report), report.heading)
    if report.classes and report.kind != "depths":
        heads, rows = classes_of(report)
        table(heads, rows[:_MOST_CLASSES])
        if len(rows) > _MOST_CLASSES:
            print(f"... and {len(rows) - _MOST_CLASSES:,} more classes; --out REPORT.json has all")
    if report.sizes:
        sides = sorted(min(size) for size in report.sizes.elements())
        print(
            f"sizes: {len(report.sizes):,} different; shorter side {sides[0]} to {sides[-1]} pixels, median "
            f"{sides[len(sides) // 2]}"
        )
    if report.of_255 is not None:
        print(f"255 in the masks is {'the object' if report.of_255 == 'object' else 'no class'}")
    listed("cannot be read", report.unreadable)
    listed("without a partner", report.alone)
    listed("of another size than their images", report.mismatched)
    listed(_WRONG[report.kind], report.wrong)
    listed("joints outside of their image", report.outside)
    if report.unlabelled:
        print(f"people without a labelled joint, or crowds: {report.unlabelled:,}, left out")
    joints = report.kind == "joints"
    listed("joints that a part never has" if joints else "nothing of a class in a part", report.empty)
    without = [f"{part}: {name}" for part, name in report.without]
    listed("people without a visible joint" if joints else "images without objects", without)
    listed("the same picture in two parts", [f"{a}: {b} = {c}: {d}" for a, b, c, d in report.duplicates])
    listed("nearly the same picture in two parts", [f"{a}: {b} ~ {c}: {d}" for a, b, c, d in report.near])

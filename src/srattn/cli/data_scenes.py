"""``srattn data`` of images with masks or boxes."""

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


def kind_of(args: jsonargparse.Namespace) -> SceneKind | None:
    """What the images come with; None for labels alone.

    Raises:
        SrattnError: options that the data has no use for.
    """
    from srattn.data.dense.kinds import scene_kind

    kinds: dict[str, SceneKind | None] = {"classification": None, "segment": "masks", "detect": "boxes"}
    kind = scene_kind(args.data) if args.task is None else kinds[args.task]
    what = {None: "labels", "masks": "masks", "boxes": "boxes"}[kind]
    for name, given, belongs in (
        ("classes", args.classes is not None, kind is not None),
        ("void", bool(args.void), kind == "masks"),
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
    return kind


def check_of(
    args: jsonargparse.Namespace, kind: SceneKind, out: Path | None, picture: Path | None, notify: Callable
) -> SceneReport:
    """Reads everything, and writes what is asked for."""
    from srattn.data.dense.check import check_scenes
    from srattn.files import atomic_path

    report = check_scenes(
        args.data,
        kind,
        classes=args.classes,
        void=args.void,
        strict=args.on_bad_image == "error",
        workers=args.num_workers,
        notify=notify,
    )
    if out is not None:
        with atomic_path(out, args.overwrite) as aside:
            aside.write_text(json.dumps(report.to_dict(), indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    if picture is not None:
        from srattn.data.dense.pictures import draw_scene_report

        draw_scene_report(report, picture, args.overwrite)
    return report


def preview_of(args: jsonargparse.Namespace, kind: SceneKind, out: Path) -> None:
    """Draws some images and what the augmentation makes of them."""
    from srattn.data.dense.joint import parse_joint
    from srattn.data.dense.pictures import draw_scene_preview
    from srattn.data.dense.preview import read_some_scenes
    from srattn.data.reader import default_preprocess
    from srattn.engine.defaults import BOXES, MASKS

    usual = MASKS if kind == "masks" else BOXES
    size = args.size if args.size is not None else usual["size"]
    plain = default_preprocess(args.data, size, args.channels if args.channels is not None else 3)
    preprocess = dataclasses.replace(plain, fit="shorter" if kind == "masks" else "inside")
    augment = parse_joint(args.augment if args.augment is not None else usual["augment"], preprocess)
    data = read_some_scenes(args.data, kind, augment, args.images, args.seed, args.classes, args.void)
    draw_scene_preview(data, augment, out, args.images, args.draws, args.seed, args.overwrite)


def print_scenes(report: SceneReport, safe: Callable[[str], str], listed: Callable[[str, list[str]], None]) -> None:
    """The report for a person.

    Args:
        safe: makes names from strangers printable.
        listed: prints a heading and the first of some lines.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    title = f"{sum(report.images.values()):,} images with {report.kind}, {len(report.classes)} classes"
    if report.images:
        parts = Table(box=box.SIMPLE_HEAD, title=title)
        for name in (
            "part",
            "images",
            "without objects",
            "repeated",
            report.unit,
            *(["of no class"] * bool(report.void)),
        ):
            parts.add_column(name, justify="left" if name == "part" else "right")
        for part, count in report.images.items():
            without = sum(one == part for one, _ in report.without)
            amount, void = sum(report.amounts[part]), report.void.get(part, 0)
            share = [f"{100 * void / max(1, amount + void):.1f} %"] * bool(report.void)
            parts.add_row(
                part, f"{count:,}", f"{without:,}", f"{report.repeated.get(part, 0):,}", f"{amount:,}", *share
            )
        console.print(parts)
    if report.classes:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("class")
        for part in report.images:
            table.add_column(f"{part}: {report.unit}", justify="right")
            table.add_column("images", justify="right")
        if report.kind == "boxes":
            table.add_column("sides: least, median, most", justify="right")
        for number, name in list(enumerate(report.classes))[:_MOST_CLASSES]:
            cells = []
            for part, amounts in report.amounts.items():
                share = 100 * amounts[number] / max(1, sum(amounts))
                cells += [f"{share:.2f} %" if report.kind == "masks" else f"{amounts[number]:,}"]
                cells += [f"{report.present[part][number]:,}"]
            if report.kind == "boxes":
                sides = sorted(report.box_sides[number])
                cells.append(f"{sides[0]:.0f}  {sides[len(sides) // 2]:.0f}  {sides[-1]:.0f}" if sides else "")
            table.add_row(Text(safe(name)[:32]), *cells)
        console.print(table)
        if len(report.classes) > _MOST_CLASSES:
            print(f"... and {len(report.classes) - _MOST_CLASSES:,} more classes; --out REPORT.json has all")
    if report.sizes:
        sides = sorted(min(size) for size in report.sizes.elements())
        print(
            f"sizes: {len(report.sizes):,} different; shorter side {sides[0]} to {sides[-1]} pixels, median "
            f"{sides[len(sides) // 2]}"
        )
    listed("cannot be read", report.unreadable)
    listed("without a partner", report.alone)
    listed("of another size than their images", report.mismatched)
    listed("numbers that are no class" if report.kind == "masks" else "wrong boxes", report.wrong)
    listed("nothing of a class in a part", report.empty)
    listed("images without objects", [f"{part}: {name}" for part, name in report.without])
    listed("the same picture in two parts", [f"{a}: {b} = {c}: {d}" for a, b, c, d in report.duplicates])
    listed("nearly the same picture in two parts", [f"{a}: {b} ~ {c}: {d}" for a, b, c, d in report.near])

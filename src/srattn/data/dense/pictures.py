"""Pictures of images with masks, boxes, depths or joints: what a check found, and what augmentation makes of some."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from srattn.data.dense import measured_pictures as measured
from srattn.data.dense.joint import DRAWS, JointAugment
from srattn.data.dense.scenes import SceneData, Scenes
from srattn.data.dense.shown import Look, colour_of, has_ignored, legend_of, show_scene
from srattn.data.dense.survey import SceneReport
from srattn.data.dense.target import Target
from srattn.data.keyed import hashed, uniform
from srattn.data.loader import AUGMENT_KEY
from srattn.data.palette import standard_palette
from srattn.data.pictures import _figure, _short
from srattn.files import atomic_path

_MOST_CLASSES = 30  # bars with names; more become a curve
_OTHERS = {"val": "o", "test": "x"}


def draw_scene_report(report: SceneReport, path: Path, overwrite: bool = False) -> None:
    """Class balance, sizes and some examples with their targets, written to `path` (.png, .svg or .pdf).

    Raises:
        SrattnError: matplotlib is missing, or `path` exists.
    """
    named = len(report.classes) <= _MOST_CLASSES and report.kind != "depths"
    tall = 2.0 + (0.2 * len(report.classes) if named else 2.0) + 1.5 * (report.kind == "boxes")
    low = 3.6 * _shape(report) + 0.7
    figure = _figure((11, tall + low))
    above, below = figure.subfigures(2, 1, height_ratios=(tall, low), squeeze=False).flat
    left, right = above.subfigures(1, 2, width_ratios=(2, 1), squeeze=False).flat
    balance = {"depths": measured.draw_depths, "joints": measured.draw_joints}.get(report.kind, _draw_balance)
    balance(left.subplots(), report)
    sizes = right.subplots(2, 1, squeeze=False)[:, 0] if report.kind == "boxes" else [right.subplots()]
    _draw_sizes(sizes[0], "Shorter side of images in pixels", "images", [min(s) for s in report.sizes.elements()])
    if report.kind == "boxes":
        sides = [side for some in report.box_sides for side in some]
        _draw_sizes(sizes[1], "Side of boxes in pixels (root of the area)", "boxes", sides)
    bad = sum(map(len, (report.unreadable, report.alone, report.mismatched, report.wrong)))
    figure.suptitle(
        f"{_short(Path(report.data).name or report.data, 60)}: {report.heading}"
        f"{f', {bad:,} found wrong' if bad else ''}",
        fontsize=13,
    )
    _draw_examples(below, report)
    with atomic_path(path, overwrite) as aside:
        figure.savefig(aside, dpi=110)


def draw_scene_preview(
    data: SceneData,
    augment: JointAugment,
    path: Path,
    images: int = 8,
    draws: int = 7,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Some training images in rows, each with its target: as it is measured, then as the first epochs see it.

    Args:
        data: of `srattn.data.dense.preview.read_some_scenes`.

    Raises:
        SrattnError: matplotlib is missing, or `path` exists.
    """
    rows = min(images, len(data.train))
    palette = data.palette or standard_palette(data.classes)
    figure = _figure((1.75 * (draws + 1) + 0.3, 1.85 * rows + 0.9))
    axes = figure.subplots(rows, draws + 1, squeeze=False)
    drawn: list[Target] = []
    scenes = [cast(Scenes, data.val).scene(row) for row in range(rows)]
    look = Look(palette, data.classes, data.bones, measured.depths_shown(target for _, target in scenes))
    for row, (pixels, target) in enumerate(scenes):
        shown = [(pixels, _as_large(target, pixels))]
        scene = cast(Scenes, data.train).scene(row)
        for epoch in range(draws):
            window, moved = augment.scene(*scene, uniform(DRAWS, hashed(seed, AUGMENT_KEY, epoch, torch.tensor(row))))
            shown.append(((255 * window.clamp(0, 1)).round().to(torch.uint8), moved))
        for column, (image, found) in enumerate(shown):
            show_scene(axes[row][column], image, found, look)
            drawn.append(found)
        axes[row][0].set_title(_short(Path(data.train.names[row]).name, 26), fontsize=7, pad=2)
        axes[row][0].set_anchor("N")
    for column, words in ((0, "as measured"), (1, "epochs 1, 2, 3, ...")):
        if column <= draws:
            axes[0][column].annotate(
                words, (0, 1), (0, 13), xycoords="axes fraction", textcoords="offset points", fontsize=9, weight="bold"
            )
    legend_of(figure, drawn, look)
    with atomic_path(path, overwrite) as aside:
        figure.savefig(aside, dpi=110)


def _draw_balance(axes: Any, report: SceneReport) -> None:
    """Bars of the training part in the colours of the classes, other parts as marks."""
    shares = {part: [100 * n / max(1, sum(amounts)) for n in amounts] for part, amounts in report.amounts.items()}
    first = "train" if "train" in shares else next(iter(shares), None)
    axes.set_title(f"Part of all {report.unit} in %", fontsize=10, loc="left")
    if first is None:
        return
    if len(report.classes) > _MOST_CLASSES:
        for part, values in shares.items():
            axes.plot(sorted(values, reverse=True), label=part)
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_xlabel("classes, the largest first")
        axes.legend(frameon=False, fontsize=8)
        return
    places = range(len(report.classes))
    colours = [colour_of(report.palette, number) for number in places]
    axes.barh(places, shares[first], 0.7, color=colours, edgecolor="#5d6468", linewidth=0.5)
    for part, mark in _OTHERS.items():
        if part in shares and part != first:
            axes.plot(shares[part], places, mark, color="#1d2022", markeredgecolor="white", markersize=6, label=part)
    names = [
        f"{_short(name, 20)}: {_percent(shares[first][number])}, {report.present[first][number]:,} images"
        for number, name in enumerate(report.classes)
    ]
    axes.set_yticks(list(places), names, fontsize=8)
    axes.invert_yaxis()
    if len(shares) > 1:
        axes.barh([0], [0], color="#bbbbbb", label=first)
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def _percent(value: float) -> str:
    return f"{value:.1f} %" if value >= 0.1 or not value else f"{value:.2g} %"


def _draw_sizes(axes: Any, title: str, unit: str, sides: list[float]) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(unit)
    if not sides:
        return
    if len(set(sides)) == 1:
        axes.bar([0], [len(sides)], 0.5, color="#888888")
        axes.set_xticks([0], [f"all {sides[0]:g}"])
        axes.set_xlim(-1, 1)
        return
    low, high = min(sides), max(sides)
    count = min(40, max(5, len(set(sides))))
    if high > 8 * low > 0:
        step = (math.log(high) - math.log(low)) / count
        axes.hist(sides, bins=[low * math.exp(step * n) for n in range(count + 1)], color="#888888")
        axes.set_xscale("log")
        ticks = [part * 10**power for power in range(6) for part in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
    else:
        axes.hist(sides, bins=count, color="#888888")


def _shape(report: SceneReport) -> float:
    """Height by width of most examples."""
    shapes = sorted(example.pixels.shape[1] / example.pixels.shape[2] for example in report.examples)
    return min(1.5, max(0.4, shapes[len(shapes) // 2])) if shapes else 0.4


def _draw_examples(figure: Any, report: SceneReport) -> None:
    if not report.examples:
        return
    axes = figure.subplots(2, math.ceil(len(report.examples) / 2), squeeze=False)
    look = Look(report.palette, report.classes, report.bones, measured.depth_range(report))
    for number, one in enumerate(axes.flat):
        one.axis("off")
        if number < len(report.examples):
            example = report.examples[number]
            show_scene(one, example.pixels, example.target, look)
            one.set_title(_short(Path(example.name).name, 24), fontsize=7, pad=2)
    targets = [example.target for example in report.examples]
    named = report.kind in ("depths", "joints") or len(report.classes) > _MOST_CLASSES  # else the bars are the legend
    if named or any(map(has_ignored, targets)):
        legend_of(figure, targets, look, named)


def _as_large(target: Target, pixels: Tensor) -> Target:
    """A measured target whose mask or depths have the size of the pixels."""
    if not target.grid:
        return target
    size = int(pixels.shape[1]), int(pixels.shape[2])
    down, across = (new / old for new, old in zip(size, target.grid, strict=True))
    return target.moved(torch.tensor([[across, 0, 0], [0, down, 0]], dtype=torch.float64), size)

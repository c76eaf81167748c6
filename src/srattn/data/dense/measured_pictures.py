"""Depths and joints in the pictures of a data set: over their images, and how they are spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srattn.data.dense.joints import SIDES, Joints, sides_of
from srattn.data.dense.survey import SceneReport
from srattn.data.dense.target import Target
from srattn.data.pictures import _short

_COVER = 0.65  # how much of an image the colours of its depths cover
_INK, _PALE = "#5d6468", "#c9cdd0"
_OTHER_LINES = ("-", "--", ":")
_FAR = 0.98  # the part of the pixels that colours tell apart


def over_depth(image: Image.Image, depth: Tensor, low: float, high: float) -> Image.Image:
    """An image of mode "RGB", grey under the colours of its depths (H, W); pixels without one are left as they are."""
    from srattn.data.depth_colours import colour_depth

    coloured = np.asarray(colour_depth(depth.float(), low, high), np.float32)
    image = image.resize((depth.shape[1], depth.shape[0]))
    grey = np.asarray(image.convert("L"), np.float32)[..., None]  # whose own hues would change those that are read
    mixed = (grey + _COVER * (coloured - grey)).round().astype(np.uint8)
    return Image.fromarray(np.where((depth > 0).numpy()[..., None], mixed, np.asarray(image)))


def show_joints(axes: Any, joints: Joints, names: Sequence[str], bones: Sequence[tuple[int, int]]) -> None:
    """Labelled joints in the colours of their sides, hidden ones hollow, over an image that is shown already."""
    colours = [hexadecimal(SIDES[side]) for side in sides_of(names)]
    place = joints.place.tolist()
    width, height = joints.size[1], joints.size[0]
    # Edges count from 0, and matplotlib's pixels from their centres.
    for a, b in bones:
        if place[a][2] > 0 and place[b][2] > 0:
            x, y = zip(*((place[end][0] - 0.5, place[end][1] - 0.5) for end in (a, b)), strict=True)
            colour = colours[a] if colours[a] == colours[b] else hexadecimal(SIDES["neither"])
            axes.plot(x, y, color="#1d2022", lw=2.2, solid_capstyle="round")
            axes.plot(x, y, color=colour, lw=1.2, solid_capstyle="round")
    for colour, (x, y, seen) in zip(colours, place, strict=True):
        if seen > 0:
            fill = colour if seen >= 2 else "#1d2022"
            axes.plot(x - 0.5, y - 0.5, "o", ms=4.4, mfc=fill, mec="#1d2022" if seen >= 2 else colour, mew=0.7)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def draw_depths(axes: Any, report: SceneReport) -> None:
    """How far the known pixels of each part are."""
    axes.set_title("Part of the known pixels in %, by distance in metres", fontsize=10, loc="left")
    limit = max((count.max_depth for count in report.depths.values()), default=1.0)
    for (part, count), line in zip(report.depths.items(), _OTHER_LINES, strict=False):
        bins = count.bins.view(50, -1).sum(1).double()
        edges = torch.linspace(0, count.max_depth, len(bins) + 1).tolist()
        values = (100 * bins / max(1, int(bins.sum()))).tolist()
        first = line == _OTHER_LINES[0]
        axes.stairs(values, edges, fill=first, color=_PALE if first else _INK, ls=line, label=part)
        if first:
            axes.stairs(values, edges, color=_INK, lw=0.8)
    axes.set_xlim(0, limit)
    axes.set_ylim(bottom=0)
    if len(report.depths) > 1:
        axes.legend(frameon=False, fontsize=8)


def draw_joints(axes: Any, report: SceneReport) -> None:
    """Of the people of the training part, how many have each joint labelled, and visible."""
    first = "train" if "train" in report.images else next(iter(report.images), None)
    if first is None:
        return
    axes.set_title(f"People of {first} whose joint is labelled, in %; pale: hidden", fontsize=10, loc="left")
    total, places = max(1, report.images[first]), range(len(report.classes))
    labelled, visible = ([100 * n / total for n in rows[first]] for rows in (report.amounts, report.present))
    colours = [hexadecimal(SIDES[side]) for side in sides_of(report.classes)]
    axes.barh(places, labelled, 0.7, color=colours, alpha=0.35)
    axes.barh(places, visible, 0.7, color=colours, edgecolor=_INK, linewidth=0.5)
    names = [
        f"{_short(name, 20)}: {report.amounts[first][number]:,}, {report.present[first][number]:,} visible"
        for number, name in enumerate(report.classes)
    ]
    axes.set_yticks(list(places), names, fontsize=8)
    axes.set_xlim(0, 100)
    axes.invert_yaxis()


def depth_range(report: SceneReport) -> tuple[float, float]:
    """From the nearest to far enough for nearly all pixels, metres."""
    counts = [count for count in report.depths.values() if count.known]
    low = min((count.nearest for count in counts), default=0.0)
    return low, max((count.at(_FAR) or low for count in counts), default=1.0) if counts else 1.0


def depths_shown(targets: Iterable[Target]) -> tuple[float, float]:
    """The same of a few targets."""
    known = [target.depth[target.depth > 0] for target in targets if target.depth is not None]
    values = torch.cat(known) if known else torch.zeros(0)
    if not len(values):
        return 0.0, 1.0
    # Of an even choice, since quantiles of millions are refused.
    chosen = values[:: max(1, len(values) // 100_000)]
    return float(values.min()), float(chosen.quantile(_FAR))


def scale_legend(figure: Any, low: float, high: float) -> None:
    """What the colours of depths mean, at the lower edge."""
    from matplotlib.patches import Patch

    from srattn.data.depth_colours import depth_table

    steps = 6
    metres = [low + (high - low) * step / (steps - 1) for step in range(steps)]
    patches = [
        Patch(facecolor=hexadecimal(colour), edgecolor=_INK, linewidth=0.5, label=f"{value:.3g} m")
        for colour, value in zip(depth_table(steps).tolist(), metres, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower left", ncols=8, frameon=False, fontsize=8)


def side_legend(figure: Any) -> None:
    """What the colours of joints mean, at the lower edge."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], ls="", marker="o", mfc=hexadecimal(colour), mec="#1d2022", label=side)
        for side, colour in SIDES.items()
    ]
    marks.append(Line2D([], [], ls="", marker="o", mfc="#1d2022", mec=_PALE, label="hidden"))
    figure.legend(handles=marks, loc="outside lower left", ncols=8, frameon=False, fontsize=8)


def hexadecimal(colour: Sequence[int]) -> str:
    """As matplotlib has it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)

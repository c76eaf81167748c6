"""An image with what is known of it, on axes of matplotlib, and a legend for its colours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from srattn.data.dense import measured_pictures as measured
from srattn.data.dense.target import VOID, Target
from srattn.data.palette import UNCOUNTED, Palette
from srattn.data.pictures import _short

_MOST_NAMES = 20  # in a legend
_DASHES = (0, (3, 2))


@dataclasses.dataclass(frozen=True)
class Look:
    """How targets are drawn.

    Attributes:
        palette: of the classes.
        names, bones: of joints.
        metres: distances of the first and of the last colour of depths.
    """

    palette: Palette
    names: Sequence[str] = ()
    bones: Sequence[tuple[int, int]] = ()
    metres: tuple[float, float] = (0.0, 1.0)


def show_scene(axes: Any, image: Tensor, target: Target, look: Look) -> None:
    """An image, uint8 (C, H, W), under what is known of it; pixels of no class or depth are left as they are."""
    from srattn.data.overlay import overlay, rgb_of

    palette = look.palette
    image = _with_objects(image, target, palette)
    picture = rgb_of(image) if target.mask is None else overlay(image, target.mask, palette)
    if target.depth is not None:
        picture = measured.over_depth(picture, target.depth, *look.metres)
    axes.axis("off")
    axes.imshow(picture, interpolation="nearest" if max(picture.size) < 64 else None)
    if target.joints is not None:
        measured.show_joints(axes, target.joints, look.names, look.bones)
        return
    if target.boxes is None:
        return
    from matplotlib.patches import Rectangle

    ignored = [False] * len(target.boxes) if target.ignored is None else target.ignored.tolist()
    for (x1, y1, x2, y2, label), uncounted in zip(target.boxes.tolist(), ignored, strict=True):
        # Edges count from 0, and matplotlib's pixels from their centres.
        place = (x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1
        axes.add_patch(Rectangle(*place, fill=False, edgecolor="white", linewidth=1.8))
        colour = measured.hexadecimal(UNCOUNTED) if uncounted else colour_of(palette, int(label))
        line = _DASHES if uncounted else "-"
        axes.add_patch(Rectangle(*place, fill=False, edgecolor=colour, linewidth=1.0, linestyle=line))


def _with_objects(image: Tensor, target: Target, palette: Palette) -> Tensor:
    """The image under the masks of its objects, uint8 (C, H, W)."""
    if target.masks is None or target.boxes is None:
        return image
    from srattn.data.object_overlay import tinted

    labels = target.boxes[:, 4].int().tolist()
    colours = [palette.colours[label] for label in labels]
    for place in [] if target.ignored is None else target.ignored.nonzero().squeeze(1).tolist():
        colours[place] = UNCOUNTED
    known = [(runs, colour) for runs, colour in zip(target.masks.runs, colours, strict=True) if len(runs)]
    return tinted(image, [runs for runs, _ in known], [colour for _, colour in known])


def legend_of(figure: Any, targets: Sequence[Target], look: Look, named: bool = True) -> None:
    """For what occurs in these targets, which are of one kind.

    Args:
        named: of classes too, where nothing else says their colours.
    """
    if targets[0].depth is not None:
        measured.scale_legend(figure, *look.metres)
    elif targets[0].joints is not None:
        measured.side_legend(figure)
    else:
        numbers = sorted({number for target in targets for number in classes_of(target)}) if named else []
        _legend(figure, look.palette, numbers, any(has_ignored(target) for target in targets))


def _legend(figure: Any, palette: Palette, numbers: Iterable[int], ignored: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    chosen = list(numbers)
    patches = [
        Patch(facecolor=colour_of(palette, n), edgecolor="#5d6468", linewidth=0.5, label=_short(palette.names[n], 24))
        for n in chosen[:_MOST_NAMES]
    ]
    if len(chosen) > _MOST_NAMES:
        patches.append(Patch(fill=False, linewidth=0, label=f"and {len(chosen) - _MOST_NAMES} more"))
    line = Line2D([], [], color=measured.hexadecimal(UNCOUNTED), linewidth=1.0, linestyle=_DASHES, label="ignored")
    handles = [*patches, *([line] if ignored else [])]
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=8, frameon=False, fontsize=8)


def has_ignored(target: Target) -> bool:
    """Whether any of its boxes is neither learnt nor counted."""
    return target.ignored is not None and bool(target.ignored.any())


def classes_of(target: Target) -> set[int]:
    """Numbers of the classes that occur and count; of depths and joints none."""
    found = torch.zeros(0)
    if target.boxes is not None and target.joints is None:
        found = target.boxes[:, 4] if target.ignored is None else target.boxes[~target.ignored, 4]
    found = found if target.mask is None else target.mask
    return {int(number) for number in found.unique().tolist()} - {VOID}


def colour_of(palette: Palette, number: int) -> str:
    """Of a class, as matplotlib has it."""
    return measured.hexadecimal(palette.colours[number])

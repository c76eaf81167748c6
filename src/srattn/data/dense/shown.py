"""An image with what is known of it, on axes of matplotlib, and a legend for its colours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from srattn.data.dense import measured_pictures as measured
from srattn.data.dense.target import VOID, Target
from srattn.data.palette import Palette
from srattn.data.pictures import _short

_MOST_NAMES = 20  # in a legend


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

    for x1, y1, x2, y2, label in target.boxes.tolist():
        colour = colour_of(palette, int(label))
        # Edges count from 0, and matplotlib's pixels from their centres.
        place = (x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1
        axes.add_patch(Rectangle(*place, fill=False, edgecolor="white", linewidth=1.8))
        axes.add_patch(Rectangle(*place, fill=False, edgecolor=colour, linewidth=1.0))


def legend_of(figure: Any, target: Target, look: Look, numbers: Iterable[int]) -> None:
    """For targets like this one."""
    if target.depth is not None:
        measured.scale_legend(figure, *look.metres)
    elif target.joints is not None:
        measured.side_legend(figure)
    else:
        _legend(figure, look.palette, numbers)


def _legend(figure: Any, palette: Palette, numbers: Iterable[int]) -> None:
    from matplotlib.patches import Patch

    chosen = list(numbers)
    patches = [
        Patch(facecolor=colour_of(palette, n), edgecolor="#5d6468", linewidth=0.5, label=_short(palette.names[n], 24))
        for n in chosen[:_MOST_NAMES]
    ]
    if len(chosen) > _MOST_NAMES:
        patches.append(Patch(fill=False, linewidth=0, label=f"and {len(chosen) - _MOST_NAMES} more"))
    if patches:
        figure.legend(handles=patches, loc="outside lower left", ncols=8, frameon=False, fontsize=8)


def classes_of(target: Target) -> set[int]:
    """Numbers of the classes that occur; of depths and joints none."""
    boxed = target.boxes is not None and target.joints is None
    found = target.boxes[:, 4] if boxed and target.boxes is not None else torch.zeros(0)
    found = found if target.mask is None else target.mask
    return {int(number) for number in found.unique().tolist()} - {VOID}


def colour_of(palette: Palette, number: int) -> str:
    """Of a class, as matplotlib has it."""
    return measured.hexadecimal(palette.colours[number])

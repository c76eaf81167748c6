"""Where windows lie on an image, what each of them weighs at every pixel, and what lies beyond the border."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from srattn.engine.sliding.options import Sliding


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """The windows along one side of the image, at one scale.

    Attributes:
        window: pixels of the model's input.
        source: pixels of the image that are resized to those; as many at scale 1.
        starts: first pixel of each window, rising from 0. The last window may end beyond the image.
        weights: (windows, source) float32. For every pixel the weights of all windows that cover it sum to one.
    """

    window: int
    source: int
    starts: tuple[int, ...]
    weights: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The windows of one scale: all pairs of a row and a column."""

    rows: Axis
    columns: Axis


def grids(size: tuple[int, int], training: tuple[int, int] | None, options: Sliding) -> list[Grid]:
    """A grid for each scale.

    Args:
        size: (H, W) of the image.
        training: the window to take where the options name none.
    """
    found = []
    for scale in options.scales:
        window = options.window or _chosen(size, training, scale, options.multiple)
        rows, columns = (_axis(s, w, scale, options) for s, w in zip(size, window, strict=True))
        found.append(Grid(rows, columns))
    return found


def _chosen(size: tuple[int, int], training: tuple[int, int] | None, scale: float, multiple: int) -> tuple[int, int]:
    """The whole image where that is hardly more work than a window, or else the window."""
    assert training is not None
    height, width = (_up(math.ceil(side * scale), multiple) for side in size)
    return (height, width) if height * width <= 2 * training[0] * training[1] else training


def _axis(size: int, window: int, scale: float, options: Sliding) -> Axis:
    source = max(1, round(window / scale))
    free = max(1, math.floor(source * (1 - options.overlap)))  # pixels from one window to the next, at most
    unit = options.multiple if scale == 1 else 1
    while unit > free:
        unit = (unit + 1) // 2
    last = math.ceil(max(0, size - source) / unit)  # in units, like the steps: all starts are multiples of the unit
    gaps = math.ceil(last / (free // unit))
    starts = tuple(unit * (last * n // gaps) for n in range(gaps + 1)) if gaps else (0,)
    return Axis(window, source, starts, _weights(starts, source, options.weighting))


def _weights(starts: tuple[int, ...], source: int, weighting: str) -> Tensor:
    place = (torch.arange(source, dtype=torch.float64) + 0.5) / source
    if weighting == "cosine":
        profile = torch.sin(math.pi * place) ** 2
    elif weighting == "linear":
        profile = torch.minimum(place, 1 - place)
    else:
        profile = torch.ones_like(place)
    total = torch.zeros(starts[-1] + source, dtype=torch.float64)
    for start in starts:
        total[start : start + source] += profile
    return torch.stack([profile / total[start : start + source] for start in starts]).float()


def continued(start: int, stop: int, size: int, padding: str) -> Tensor:
    """The pixels of a side of `size` that stand at the places from `start` to before `stop`, also beyond its end."""
    places = torch.arange(start, stop)
    if padding == "edge" or size == 1:
        return places.clamp(max=size - 1)
    period = 2 * (size - 1)
    places = places % period
    return torch.minimum(places, period - places)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

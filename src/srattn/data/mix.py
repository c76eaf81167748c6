"""Random erasing, mixup and cutmix by each image's own draws."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_TABLE = 4096


def erase(images: Tensor, draws: Tensor, probability: float, fill: Sequence[float]) -> Tensor:
    """A rectangle of 2 to 33 % of the area, of a shape from 3:10 to 10:3, filled with the colour `fill`.

    `draws` (B, 5): whether, area, shape, top, left. Zhong et al.: Random Erasing Data Augmentation, AAAI 2020; the
    colour is the mean of the data and not noise, which costs nothing and becomes 0 for the model.
    """
    height, width = images.shape[-2:]
    area = (0.02 + (0.33 - 0.02) * draws[:, 1]) * height * width
    shape = torch.exp((2 * draws[:, 2] - 1) * math.log(10 / 3))
    heights, widths = (area * shape).sqrt().round().clamp(1, height), (area / shape).sqrt().round().clamp(1, width)
    tops, lefts = (draws[:, 3] * (height - heights + 1)).floor(), (draws[:, 4] * (width - widths + 1)).floor()
    heights = torch.where(draws[:, 0] < probability, heights, 0)
    inside = _rectangles(tops, lefts, heights, widths, height, width)
    colour = torch.tensor(fill, dtype=images.dtype).view(1, -1, 1, 1)
    return torch.where(inside, colour, images)


def mix(
    images: Tensor, labels: Tensor, draws: Tensor, classes: int, mixup: float, cutmix: float, part: float
) -> tuple[Tensor, Tensor]:
    """Each of (B, C, H, W) mixed with its neighbour in the batch (0 with 1, 2 with 3, ...), and so its label.

    A part `part` of the images is mixed; where both kinds are on, each has half. An odd last one stays as it is.
    `draws` (B, 5): whether, which kind, share, top, left. Zhang et al.: mixup, ICLR 2018; Yun et al.: CutMix, ICCV
    2019, whose rectangle lies inside the picture here, so that the share of the label is exactly that of the area.

    Returns:
        images, and shares of the classes, float32 (B, `classes`), each row adding up to 1.
    """
    count, _, height, width = images.shape
    partner = torch.arange(count) ^ 1
    partner[partner >= count] = count - 1
    cuts = draws[:, 1] < (0.5 if mixup > 0 else 1.0) if cutmix > 0 else torch.zeros(count, dtype=torch.bool)
    own = torch.ones(count, dtype=torch.float64)  # each image's share in itself
    if mixup > 0:
        own = torch.where(cuts, own, beta(draws[:, 2], mixup))
    inside = torch.zeros(count, 1, 1, 1, dtype=torch.bool)
    mixed = draws[:, 0] < part
    if cutmix > 0:
        side = (1 - beta(draws[:, 2], cutmix)).sqrt()
        heights, widths = (side * height).round(), (side * width).round()
        heights = torch.where(cuts & mixed, heights, 0)
        tops, lefts = (draws[:, 3] * (height - heights + 1)).floor(), (draws[:, 4] * (width - widths + 1)).floor()
        inside = _rectangles(tops, lefts, heights, widths, height, width)
        own = torch.where(cuts, 1 - heights * widths / (height * width), own)
    own = torch.where(mixed, own, 1.0)
    others = images[partner]
    blend = torch.where(cuts, 1.0, own).to(images.dtype).view(-1, 1, 1, 1)
    images = torch.where(inside, others, others.lerp(images, blend))
    shares = torch.zeros(count, classes)
    rows = torch.arange(count)
    shares[rows, labels] = own.float()
    shares[rows, labels[partner]] += 1 - own.float()
    return images, shares


def beta(draws: Tensor, alpha: float) -> Tensor:
    """Uniform numbers in [0, 1) to Beta(`alpha`, `alpha`), float64, by the inverse of its distribution function."""
    if alpha == 1:
        return draws
    cumulative, ends = _beta_table(alpha)
    lower = torch.minimum(draws, 1 - draws) * 2 * cumulative[-1]
    right = torch.searchsorted(cumulative, lower.contiguous()).clamp(1, _TABLE - 1)
    step = (lower - cumulative[right - 1]) / (cumulative[right] - cumulative[right - 1])
    half = torch.lerp(ends[right - 1], ends[right], step) ** (1 / alpha)
    return torch.where(draws < 0.5, half, 1 - half)


@functools.cache
def _beta_table(alpha: float) -> tuple[Tensor, Tensor]:
    """The integral of the density up to 1/2, over t = x**alpha, where it is smooth: s**(alpha-1) ds = dt / alpha."""
    ends = torch.linspace(0, 0.5**alpha, _TABLE, dtype=torch.float64)
    density = (1 - ends ** (1 / alpha)) ** (alpha - 1)
    areas = (density[1:] + density[:-1]) / 2
    return torch.cat([torch.zeros(1, dtype=torch.float64), areas.cumsum(0)]), ends


def _rectangles(tops: Tensor, lefts: Tensor, heights: Tensor, widths: Tensor, height: int, width: int) -> Tensor:
    """Where each rectangle lies: bool (B, 1, height, width)."""
    rows, columns = torch.arange(height), torch.arange(width)
    down = (rows >= tops[:, None]) & (rows < (tops + heights)[:, None])  # (B, height)
    across = (columns >= lefts[:, None]) & (columns < (lefts + widths)[:, None])  # (B, width)
    return (down[:, :, None] & across[:, None, :]).unsqueeze(1)

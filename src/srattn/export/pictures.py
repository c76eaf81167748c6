"""The preprocessing of `srattn.data.preprocess` as a graph of torch: uint8 pictures in, what a model takes out.

A picture is resized by two products with matrices of the antialiased filter that Pillow applies, columns first, and
rounded to whole levels after each, as there; the matrices are made in the graph from the picture's size. So every
runtime computes the same, with no resize operator of its own. Where a sum ends in a half, a level can differ from
Pillow's, which computes in whole numbers.

All pictures come out in one size: "inside" fills up what is left of it, and "shorter", which has no one size, is none
of these.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from srattn.data.preprocess import Preprocess


class Axis(NamedTuple):
    """Where `box` values of a side of a picture, from `begin` on, come to lie: in `cells` cells from `start` on.

    Sizes of a picture are symbols while it is exported, so these are numbers of the graph.
    """

    begin: Tensor
    box: Tensor
    start: Tensor
    cells: Tensor


class Pictures(nn.Module):
    """uint8 (B, H, W, C) of any size to float32 (B, C, height, width)."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess, nudge: float = 0.0) -> None:
        super().__init__()
        self.preprocess = preprocess
        # Sums of few levels often end in a half to the bit: a little more makes all runtimes round them alike.
        self.midpoint = 0.5 + 2**-10 + nudge
        self.register_buffer("mean", 255 * torch.tensor(preprocess.mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(preprocess.std).view(1, -1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        p = self.preprocess
        levels = self._inverted(pictures.to(self.mean.dtype))  # (B, H, W, C)
        height, width = levels.shape[1], levels.shape[2]
        rows, columns = p.size
        y, x = axes(p, height, width, levels)
        across = resampling(width, columns, x, p.interpolation, levels)  # (columns, W)
        down = resampling(height, rows, y, p.interpolation, levels)  # (rows, H)
        levels = levels.permute(0, 3, 1, 2)  # (B, C, H, W)
        levels = self._whole(levels @ across.transpose(0, 1))
        levels = self._whole(down @ levels)
        if p.fit == "inside":
            # Outside the picture the matrices are zero, and with them the levels.
            there = (down.sum(1, keepdim=True) > 0.5) & (across.sum(1) > 0.5)  # (rows, columns)
            levels = torch.where(there, levels, self.mean.round())
        return (levels - self.mean) / self.std

    def _whole(self, levels: Tensor) -> Tensor:
        return (levels + self.midpoint).floor().clamp(0.0, 255.0)

    def _inverted(self, levels: Tensor) -> Tensor:
        if self.preprocess.invert == "never":
            return levels
        if self.preprocess.invert == "always":
            return 255 - levels
        grey = _grey(levels)
        border = torch.cat([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], 1)
        # The lower median is above 127 where no more than the half below it are at most 127.
        dark = (border <= 127).to(levels.dtype).sum(1)
        count = (border.shape[1] - 1) // 2
        light = (dark <= count).to(levels.dtype)[:, None, None, None]
        return levels + light * (255 - 2 * levels)


def axes(preprocess: Preprocess, height: int, width: int, like: Tensor) -> tuple[Axis, Axis]:
    """Vertically and horizontally, for a picture of that size."""
    rows, columns = preprocess.size
    high, wide, zero = _real(height, like), _real(width, like), torch.zeros((), dtype=like.dtype, device=like.device)
    if preprocess.fit == "inside":
        factor = torch.minimum(rows / high, columns / wide)
        counts = [(side * factor).round().clamp(min=1.0) for side in (high, wide)]
        starts = [((size - count) / 2).floor() for size, count in zip((rows, columns), counts, strict=True)]
        return Axis(zero, high, starts[0], counts[0]), Axis(zero, wide, starts[1], counts[1])
    if preprocess.fit not in ("crop", "centre"):
        return Axis(zero, high, zero, zero + rows), Axis(zero, wide, zero, zero + columns)
    room = torch.minimum(wide / columns, high / rows)
    scale = preprocess.crop_fraction * room
    if preprocess.fit == "centre":
        scale = torch.maximum(scale, room.clamp(max=1.0))
    found = []
    for side, cells in ((high, rows), (wide, columns)):
        begin = (side - scale * cells) / 2
        if preprocess.fit == "centre":
            begin = torch.where(scale == 1, begin.floor(), begin)
        found.append(Axis(begin, scale * cells, zero, zero + cells))
    return found[0], found[1]


def resampling(length: int, cells: int, axis: Axis, filter_: str, like: Tensor) -> Tensor:
    """(cells, length): the weights with which Pillow makes `axis.cells` of the cells; those of the others are zero."""
    scale = axis.box / axis.cells
    stretch = scale.clamp(min=1.0)
    place = torch.arange(cells, device=like.device).to(like.dtype) - axis.start
    centre = axis.begin + (place + 0.5) * scale
    source = torch.arange(length, device=like.device).to(like.dtype) + 0.5
    distance = ((source - centre[:, None]) / stretch).abs()
    weights = _cubic(distance) if filter_ == "bicubic" else (1 - distance).clamp(min=0.0)
    there = ((place >= 0) & (place < axis.cells)).to(like.dtype)[:, None]
    weights = weights * there
    return weights / (weights.sum(1, keepdim=True) + (1 - there))


def _cubic(d: Tensor, a: float = -0.5) -> Tensor:
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = (((d - 5) * d + 8) * d - 4) * a
    return torch.where(d < 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _grey(levels: Tensor) -> Tensor:
    """(B, H, W, C) to Pillow's grey (B, H, W)."""
    if levels.shape[3] == 1:
        return levels[..., 0]
    parts = torch.tensor([19595.0, 38470.0, 7471.0], device=levels.device, dtype=levels.dtype)
    return ((levels * parts).sum(3) / 65536 + 0.5).floor()


def _real(size: int, like: Tensor) -> Tensor:
    """A size, which may be a symbol, as a number of the graph."""
    return torch.ones(size, device=like.device, dtype=like.dtype).sum()

"""Made-up objects with masks, for what reads, trains and measures them."""

from __future__ import annotations

import torch
from torch import Tensor

from srattn.ops.run_lengths import encode_runs


def disc(height: int, width: int, x: float, y: float, radius: float) -> Tensor:
    """bool (height, width), the pixels whose middles are within `radius` of (x, y)."""
    ys, xs = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    return (xs - x) ** 2 + (ys.unsqueeze(1) - y) ** 2 <= radius**2


def box_of(mask: Tensor) -> list[float]:
    """x1, y1, x2, y2 around what is inside."""
    y, x = mask.nonzero().unbind(1)
    return [float(x.min()), float(y.min()), float(x.max()) + 1, float(y.max()) + 1]


def rows_of(mask: Tensor, label: int, *, masks: bool = True) -> Tensor:
    """A row of the targets of two stages: (5,) or (6 + L,)."""
    row = torch.tensor([*box_of(mask), float(label)])
    if not masks:
        return row
    return torch.cat([row, torch.tensor([float(len(mask))]), encode_runs(mask).float()])


def scenes(count: int, side: int = 64) -> tuple[Tensor, Tensor]:
    """Images (count, 3, side, side), each with a disc and a square of its own colour, and their targets."""
    generator = torch.Generator().manual_seed(0)
    images, rows = torch.zeros(count, 3, side, side), []
    for n in range(count):
        x, y, radius = (torch.rand(3, generator=generator) * torch.tensor([10, 34, 4]) + 12).tolist()
        round_one = disc(side, side, x, y + 4, min(radius, 12))
        left, top, size = (torch.rand(3, generator=generator) * torch.tensor([6, 34, 6])).long().tolist()
        square = torch.zeros(side, side, dtype=torch.bool)
        square[top + 2 : top + 18 + size, left + 36 : left + 52 + size] = True
        for label, mask in ((0, round_one), (2, square)):
            images[n, :, mask] = -1
            images[n, label, mask] = 2
            rows.append(rows_of(mask, label))
    length = max(len(row) for row in rows)
    targets = torch.stack([torch.nn.functional.pad(row, (0, length - len(row))) for row in rows])
    return images, targets.unflatten(0, (count, 2))

"""Position schemes: what tells a token where it lies."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.ops.tracing import is_exporting


def resize_grid(weight: Tensor, height: int, width: int) -> Tensor:
    """Resizes a position grid (1, H, W, C) bilinearly (align_corners=False), in float32 where the type is narrower.

    While exporting, sizes may be symbols: it then resizes always, which at the grid's own size changes nothing.
    """
    if not is_exporting() and weight.shape[1:3] == (height, width):
        return weight
    wide = weight if weight.dtype == torch.float64 else weight.float()
    grid = F.interpolate(wide.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False)
    return grid.permute(0, 2, 3, 1).to(weight.dtype)


class LearnedPosition(nn.Module):
    """One learned vector a cell, resized from its own grid to that of the input (PVT, arXiv:2102.12122).

    The published code decides by the first stage's token count whether to resize, for every stage: it crashes where
    another stage happens to have that count, and adds the wrong raster where only the count agrees.
    """

    def __init__(self, height: int, width: int, dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, height, width, dim, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the positions to x (B, H, W, dim)."""
        return x + resize_grid(self.weight, x.shape[1], x.shape[2])

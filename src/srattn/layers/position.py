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


def place_grid(weight: Tensor, mask: Tensor) -> Tensor:
    """A position grid (1, H, W, C) resized to each image as `resize_grid` does: to the rectangle of valid tokens in the
    mask (B, H', W'). Returns (B, H', W', C); what lies outside of the rectangle is of no meaning."""
    wide = weight if weight.dtype == torch.float64 else weight.float()
    rows, columns = _places(mask.any(2), wide), _places(mask.any(1), wide)  # (B, H'), (B, W')
    shape = mask.shape
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], -1)
    source = wide.permute(0, 3, 1, 2).expand(shape[0], -1, -1, -1)
    placed = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return placed.permute(0, 2, 3, 1).to(weight.dtype)


def _places(inside: Tensor, like: Tensor) -> Tensor:
    """Where each token's centre lies between the first and the last valid one (B, L), from -1 to 1."""
    first = inside.int().argmax(1, keepdim=True)
    size = inside.sum(1, keepdim=True).clamp(min=1)
    token = torch.arange(inside.shape[1], device=inside.device)
    return ((token - first).to(like.dtype) + 0.5) / size * 2 - 1


class LearnedPosition(nn.Module):
    """One learned vector a cell, resized from its own grid to that of the input (PVT, arXiv:2102.12122).

    The published code decides by the first stage's token count whether to resize, for every stage: it crashes where
    another stage happens to have that count, and adds the wrong raster where only the count agrees.
    """

    def __init__(self, height: int, width: int, dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, height, width, dim, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Adds the positions to x (B, H, W, dim); with a mask (B, H, W) those of each image's own valid rectangle."""
        if mask is not None:
            return x + place_grid(self.weight, mask)
        return x + resize_grid(self.weight, x.shape[1], x.shape[2])

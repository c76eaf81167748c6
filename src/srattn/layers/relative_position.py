"""A learned bias of the attention's logits for each pair of query cell and key cell."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.ops.tracing import is_exporting

Grid = tuple[int, int]


def resize_pairs(weight: Tensor, grid: Grid, key_grid: Grid) -> Tensor:
    """Resizes biases (heads, H, W, M_h, M_w) to other grids, returned as (heads, N, M) with tokens in raster order.

    Bilinear over the queries' grid, then over the keys' (align_corners=False), in float32 where the type is narrower.
    While exporting, sizes may be symbols: it then resizes always, which at the grids' own size changes nothing.
    """
    exporting = is_exporting()
    own_grid, own_keys = weight.shape[1:3], weight.shape[3:5]
    if not exporting and own_grid == grid and own_keys == key_grid:
        return weight.flatten(1, 2).flatten(2)
    bias = weight if weight.dtype == torch.float64 else weight.float()
    bias = bias.flatten(3).permute(0, 3, 1, 2)  # (heads, M, H, W)
    if exporting or own_grid != grid:
        bias = F.interpolate(bias, grid, mode="bilinear", align_corners=False)
    bias = bias.flatten(2).transpose(1, 2)  # (heads, N, M)
    if exporting or own_keys != key_grid:
        bias = F.interpolate(bias.unflatten(2, own_keys), key_grid, mode="bilinear", align_corners=False).flatten(2)
    return bias.to(weight.dtype)


class RelativePositionBias(nn.Module):
    """One learned number a head, query cell and key cell, added to the logits (CMT, arXiv:2107.06263, eq. 2).

    Published models refuse any image size but the one that they were built for; this one is resized, queries and keys
    each over their own grid, so that a pair keeps the bias of its place in the image.
    """

    def __init__(self, num_heads: int, grid: Grid, key_grid: Grid, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, *grid, *key_grid, device=device, dtype=dtype))
        nn.init.normal_(self.weight)

    def forward(self, grid: Grid, key_grid: Grid) -> Tensor:
        """Biases for queries on `grid` and keys on `key_grid`, (heads, H W, M_h M_w)."""
        return resize_pairs(self.weight, grid, key_grid)

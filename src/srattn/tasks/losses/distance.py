"""Exact Euclidean distances on a grid of pixels, in torch alone and on any device."""

from __future__ import annotations

import torch
from torch import Tensor

_SIDE = 2**15
FAR = _SIDE**2
"""What `squared_distance` says where there is nothing to be far from; with a square added to it still within int32."""
_LOOK = 8  # offsets between two looks at whether more of them can help


def squared_distance(mask: Tensor) -> Tensor:
    """From every pixel the squared distance to the nearest one that is set, in pixels.

    First along columns, then over the columns (the split of Felzenszwalb and Huttenlocher, Theory of Computing 8,
    2012): d2(y, x) is the least of g(y, x') ** 2 + (x - x') ** 2. The second pass tries offsets from the least on, all
    rows at once, and ends when the square of the next alone is no better than the worst found: as many as the largest
    distance, at most the width.

    Args:
        mask: (B, H, W), bool; sides below 32,768.

    Returns:
        (B, H, W), int32, exact; `FAR` in images without a set pixel.
    """
    found = mask.flatten(1).any(1).view(-1, 1, 1)
    best = torch.where(found, _along_columns(mask), 0)  # an empty image is not to keep the others searching
    columns, sums = best.clone(), torch.empty_like(best)
    for offset in range(1, mask.shape[2]):
        step = offset * offset
        if offset % _LOOK == 1 and not (best > step).any():
            break
        left, right = slice(None, -offset), slice(offset, None)
        for here, there in ((right, left), (left, right)):
            moved = torch.add(columns[..., there], step, out=sums[..., here])
            torch.minimum(best[..., here], moved, out=best[..., here])
    return torch.where(found, best, FAR)


def _along_columns(mask: Tensor) -> Tensor:
    """Squared distance to the nearest set pixel of the same column."""
    rows = torch.arange(mask.shape[1], dtype=torch.int32, device=mask.device).view(1, -1, 1)
    above = torch.where(mask, rows, -FAR).cummax(1).values
    below = torch.where(mask, rows, FAR).flip(1).cummin(1).values.flip(1)
    gap = torch.minimum(rows - above, below - rows)
    return gap.clamp(max=_SIDE) ** 2

"""Exact Euclidean distances on a grid of pixels, in torch alone and on any device."""

from __future__ import annotations

import torch
from torch import Tensor

_SIDE = 2**15
_FAR = _SIDE**2  # with the square of an offset added to it, still within int32


def squared_distance(mask: Tensor) -> Tensor:
    """From every pixel the squared distance to the nearest one that is set, in pixels.

    First along columns, then over the columns (the split of Felzenszwalb and Huttenlocher, Theory of Computing 8,
    2012): d2(y, x) is the least of g(y, x') ** 2 + (x - x') ** 2. The second pass tries offsets from the least on and
    ends when the square of the next alone is no better than the worst found.

    Args:
        mask: (B, H, W), bool; sides below 32,768.

    Returns:
        (B, H, W), int32, exact; 2 ** 30 in images without a set pixel.
    """
    found = mask.flatten(1).any(1).view(-1, 1, 1)
    best = torch.where(found, _along_columns(mask), 0)  # an empty image is not to keep the others searching
    columns = best.clone()
    for offset in range(1, mask.shape[2]):
        step = offset * offset
        if not (best > step).any():
            break
        best[..., offset:] = torch.minimum(best[..., offset:], columns[..., :-offset] + step)
        best[..., :-offset] = torch.minimum(best[..., :-offset], columns[..., offset:] + step)
    return torch.where(found, best, _FAR)


def _along_columns(mask: Tensor) -> Tensor:
    """Squared distance to the nearest set pixel of the same column."""
    rows = torch.arange(mask.shape[1], dtype=torch.int32, device=mask.device).view(1, -1, 1)
    above = torch.where(mask, rows, -_FAR).cummax(1).values
    below = torch.where(mask, rows, _FAR).flip(1).cummin(1).values.flip(1)
    gap = torch.minimum(rows - above, below - rows)
    return gap.clamp(max=_SIDE) ** 2


def signed_distance(inside: Tensor, outside: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """How far each pixel's centre is from the contour of a region: negative inside, positive outside, in pixels.

    The contour runs between pixels, half a pixel from the centres on either side of it.

    Args:
        inside, outside: (B, H, W), bool, disjoint; what is neither is no part of the region and bounds nothing.

    Returns:
        (B, H, W); 0 throughout an image in which one of them is empty: it has no contour.
    """
    to_inside, to_outside = (squared_distance(mask).to(dtype).sqrt() - 0.5 for mask in (inside, outside))
    both = (inside.flatten(1).any(1) & outside.flatten(1).any(1)).view(-1, 1, 1)
    return torch.where(both, torch.where(inside, -to_outside, to_inside), 0)

"""Depths in colours."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from srattn.errors import SrattnError

NOTHING = (128, 128, 128)
"""The colour of pixels without a depth."""


def colour_depth(depth: Tensor, low: float | None = None, high: float | None = None) -> Image.Image:
    """Depths (H, W) in colours, from bright for `low` and nearer to dark for `high` and farther.

    Pixels without a depth, not above 0 or not finite, are `NOTHING`. By default `low` and `high` are the least and the
    greatest depth that occur; give them to make pictures comparable.
    """
    values = _values(depth)
    valid = np.isfinite(values) & (values > 0)
    least, most = (float(values[valid].min()), float(values[valid].max())) if valid.any() else (0.0, 1.0)
    low, high = least if low is None else low, most if high is None else high
    if not np.isfinite([low, high]).all() or low > high:
        raise SrattnError(f"depths are coloured from low to high, got {low=} and {high=}")
    scaled = (np.where(valid, values, low) - low) / max(high - low, 1e-12)
    table = colormaps["magma_r"](np.arange(256), bytes=True)[:, :3]
    picture = table[(scaled.clip(0, 1) * 255).round().astype(np.uint8)]
    picture[~valid] = NOTHING
    return Image.fromarray(picture)


def _values(depth: Tensor) -> np.ndarray:
    if depth.ndim != 2 or not depth.is_floating_point() or not depth.numel():
        raise SrattnError(f"depths must be floating-point numbers (H, W), got {depth.dtype} {tuple(depth.shape)}")
    return depth.detach().float().cpu().numpy()

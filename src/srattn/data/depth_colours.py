"""Depths, and how wrong they are, in colours."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from srattn.errors import SrattnError

NOTHING = (128, 128, 128)
"""The colour of pixels without a depth."""
ERROR_LIMIT = 0.5
"""The relative error from which on colours of errors are the fullest."""


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
    return _coloured(depth_table(), scaled, valid)


def colour_error(depth: Tensor, truth: Tensor, limit: float = ERROR_LIMIT) -> Image.Image:
    """How far off depths (H, W) are, as a part of the truth (H, W): blue is too near, white right, red too far.

    Pixels whose truth is not known, not above 0 or not finite, are `NOTHING`.
    """
    values, true = _values(depth), _values(truth)
    if values.shape != true.shape:
        raise SrattnError(f"depths and their truth must be of one size, got {values.shape} and {true.shape}")
    valid = np.isfinite(true) & (true > 0) & np.isfinite(values)
    error = np.divide(values - true, true, out=np.zeros_like(values), where=valid)
    return _coloured(error_table(), (error / limit + 1) / 2, valid)


def depth_table(count: int = 256) -> np.ndarray:
    """uint8 (count, 3): the colours from near to far."""
    return _table("magma_r", count)


def error_table(count: int = 256) -> np.ndarray:
    """uint8 (count, 3): the colours from too near to too far."""
    return _table("RdBu_r", count)


def _table(name: str, count: int) -> np.ndarray:
    return colormaps[name](np.linspace(0, 1, count), bytes=True)[:, :3]


def _coloured(table: np.ndarray, scaled: np.ndarray, valid: np.ndarray) -> Image.Image:
    picture = table[(scaled.clip(0, 1) * (len(table) - 1)).round().astype(np.uint8)]
    picture[~valid] = NOTHING
    return Image.fromarray(picture)


def _values(depth: Tensor) -> np.ndarray:
    if depth.ndim != 2 or not depth.is_floating_point() or not depth.numel():
        raise SrattnError(f"depths must be floating-point numbers (H, W), got {depth.dtype} {tuple(depth.shape)}")
    return depth.detach().float().cpu().numpy()

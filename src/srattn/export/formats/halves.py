"""Which constants of a graph are stored in float16."""

from __future__ import annotations

from typing import Any

_LEAST, _LARGEST = 16, 16.0


def in_half(values: Any) -> Any | None:
    """An array of float32 in float16; None where it stays what it is.

    Rounded are weights. Constants of a few numbers, as the mean of pixels, are none; nor are numbers beyond 16: those
    are places in pixels, as anchors are, and float16 knows places of some hundred pixels to a quarter of one.
    """
    import numpy as np

    if values.dtype != np.float32 or values.size < _LEAST or not np.abs(values).max() <= _LARGEST:
        return None
    return values.astype(np.float16)

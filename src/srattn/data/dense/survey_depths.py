"""Depths, counted image by image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BINS = 200


class DepthCount:
    """What the depths of many images are.

    Attributes:
        max_depth: metres; what is farther counts as unknown in training.
        pixels, known, beyond: how many there are, how many have a depth, and how many of these are beyond `max_depth`.
        nearest, farthest: metres, of all that are known.
        bins: int64 (200,), pixels in equal steps from 0 to `max_depth`.
    """

    def __init__(self, max_depth: float) -> None:
        self.max_depth = max_depth
        self.pixels = self.known = self.beyond = 0
        self.nearest, self.farthest = float("inf"), 0.0
        self.bins = torch.zeros(_BINS, dtype=torch.int64)

    def add(self, depth: Tensor) -> None:
        """Counts depths (H, W) in metres, 0 where there is none."""
        values = depth[depth > 0]
        self.pixels += depth.numel()
        self.known += len(values)
        if not len(values):
            return
        self.nearest, self.farthest = (
            min(self.nearest, float(values.min())),
            max(self.farthest, float(values.max())),
        )
        near = values[values <= self.max_depth]
        self.beyond += len(values) - len(near)
        place = (near.double() * (_BINS / self.max_depth)).long().clamp(max=_BINS - 1)
        self.bins += torch.bincount(place, minlength=_BINS)

    def at(self, part: float) -> float | None:
        """The distance that this part of the pixels up to `max_depth` is nearer than, to half a bin; None of none."""
        total = int(self.bins.sum())
        if not total:
            return None
        place = int((self.bins.cumsum(0) < part * total).sum())
        return (min(place, _BINS - 1) + 0.5) * self.max_depth / _BINS

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; "histogram" has pixels in 20 equal steps from 0 to `max_depth`."""
        none = not self.known
        return {
            "pixels": self.pixels,
            "known": self.known,
            "beyond": self.beyond,
            "max_depth": self.max_depth,
            "nearest": None if none else round(self.nearest, 4),
            "median": self.at(0.5),
            "farthest": None if none else round(self.farthest, 4),
            "histogram": self.bins.view(20, -1).sum(1).tolist(),
        }

"""How the error of depths grows with distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_MOST = 10  # steps of distance
_ROUND = (1, 2, 5, 10)


class ByDistance:
    """Errors of pixels by how far these truly are; over the pixels of all images together, unlike the figures of a run.

    Attributes:
        edges: float64 (K + 1,), metres, ascending from 0 to the largest depth, by default in round steps. A step has
            its upper edge and not its lower one.
    """

    def __init__(self, max_depth: float, edges: Sequence[float] | None = None) -> None:
        self.edges = torch.tensor(edges_of(max_depth) if edges is None else edges, dtype=torch.float64)
        # Pixels, and sums of: within 25 %, relative errors, squared errors.
        self._sums = torch.zeros(4, len(self.edges) - 1, dtype=torch.float64)

    def update(self, depth: Tensor, truth: Tensor) -> None:
        """Adds pixels: what was said and what is true, (N,) each, in metres, above 0 and up to the largest depth."""
        depth, truth = depth.cpu().double(), truth.cpu().double()
        place = torch.bucketize(truth, self.edges[1:-1])
        error = (depth - truth).abs()
        near = (torch.maximum(depth / truth, truth / depth) < 1.25).double()
        for row, values in zip(self._sums, (torch.ones_like(truth), near, error / truth, error.square()), strict=True):
            row += torch.bincount(place, values, minlength=len(row))

    def reduce(self, add: Callable[[Tensor], Tensor]) -> None:
        self._sums = add(self._sums)

    def details(self) -> dict[str, list[Any]]:
        """Plain values for JSON, one a step: "pixels", "delta1", "abs_rel" and "rmse" in metres, None where there is no
        pixel; and the "edges"."""
        pixels, *sums = self._sums.tolist()
        means = [[value / count if count else None for value, count in zip(row, pixels, strict=True)] for row in sums]
        roots = [None if value is None else math.sqrt(value) for value in means[2]]
        return {
            "edges": self.edges.tolist(),
            "pixels": [int(count) for count in pixels],
            "delta1": means[0],
            "abs_rel": means[1],
            "rmse": roots,
        }


def edges_of(max_depth: float) -> list[float]:
    """0, and up to ten round steps to `max_depth`: metres for rooms of 10, tens of metres for streets of 80."""
    least = max_depth / _MOST
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in _ROUND if factor * power >= least * (1 - 1e-9))
    count = math.ceil(max_depth / step - 1e-9)
    return [*(round(step * number, 12) for number in range(count)), max_depth]

"""Masks of objects as COCO's files say them: polygons, or lengths of runs as a list or a text."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from srattn.data.boxes.values import is_number, short
from srattn.errors import SrattnError
from srattn.ops.run_lengths import check_runs, encode_runs, read_runs

MOST_POINTS = 100_000
"""Of one object; people draw some hundred."""
_FARTHEST = 1e6  # pixels: no image has such a place
_EDGES = 1024  # of a polygon that are followed at once


@dataclasses.dataclass(frozen=True)
class Outline:
    """A mask that is read and not yet drawn.

    Attributes:
        size: (height, width) of the image.
        polygons: x, y, x, y, ... of each, in pixels, the image from 0 to its width and height. The mask is what at
            least one of them holds.
        runs: in place of polygons, the lengths of the mask's runs, see `srattn.ops.run_lengths`.
    """

    size: tuple[int, int]
    polygons: tuple[array[float], ...] = ()
    runs: array[int] | None = None

    def stamp(self) -> bytes:
        """What tells it from others."""
        parts = self.polygons if self.runs is None else (self.runs,)
        return b"|".join(part.tobytes() for part in parts)

    def drawn(self) -> Tensor:
        """The lengths of the mask's runs, int64 (L,)."""
        if self.runs is not None:
            return torch.tensor(self.runs, dtype=torch.int64)
        mask = torch.zeros(self.size, dtype=torch.bool)
        for polygon in self.polygons:
            mask |= filled(torch.tensor(polygon, dtype=torch.float64).view(-1, 2), self.size)
        return encode_runs(mask)


def read_outline(value: Any, size: tuple[int, int]) -> Outline | None:
    """The "segmentation" of an annotation of an image of `size` (height, width); None where it is absent or empty.

    Raises:
        SrattnError: it is none, or one of another image.
    """
    if value is None or value == [] or value == {}:
        return None
    if isinstance(value, dict):
        return _of_runs(value, size)
    if not isinstance(value, list):
        raise SrattnError(f"a mask is a list of polygons or an object with size and counts, got {short(value, 60)}")
    if sum(len(polygon) if isinstance(polygon, list) else 0 for polygon in value) > 2 * MOST_POINTS:
        raise SrattnError(f"polygons of more than the {MOST_POINTS:,} points that are accepted")
    return Outline(size, tuple(_polygon(polygon) for polygon in value))


def filled(points: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels whose middles a polygon holds: those with an odd number of its edges to their left.

    Args:
        points: float64 (P, 2), x and y of its corners in pixels; the last is joined to the first.
        size: (height, width) of the image.

    Returns:
        bool (height, width).
    """
    height, width = size
    # For each row how often the edges cross it left of the pixel's middle, as steps that add up along the row.
    steps = torch.zeros(height, width + 1, dtype=torch.int32)
    middles = torch.arange(height, dtype=torch.float64) + 0.5
    for start, end in zip(points.split(_EDGES), points.roll(-1, 0).split(_EDGES), strict=True):
        (x1, y1), (x2, y2) = start.unbind(1), end.unbind(1)
        crossed = (y1.unsqueeze(1) <= middles) != (y2.unsqueeze(1) <= middles)  # (edges, rows)
        edge, row = crossed.nonzero().unbind(1)
        way = (middles[row] - y1[edge]) / (y2[edge] - y1[edge])
        x = x1[edge] + way * (x2[edge] - x1[edge])
        column = (x - 0.5).ceil().clamp(0, width).long()  # the first pixel whose middle lies to the right
        steps.view(-1).index_add_(0, row * (width + 1) + column, torch.ones_like(row, dtype=torch.int32))
    return steps.cumsum(1)[:, :width] % 2 == 1


def _polygon(value: Any) -> array[float]:
    if not isinstance(value, list) or len(value) < 6 or len(value) % 2:
        raise SrattnError(f"a polygon is x, y of at least three corners, got {short(value, 60)}")
    for number in value:
        if not is_number(number) or abs(number) > _FARTHEST:
            raise SrattnError(f"a polygon's corner is at {short(number, 60)}, which is no place of an image")
    return array("d", value)


def _of_runs(value: dict[str, Any], size: tuple[int, int]) -> Outline:
    counts, declared = value.get("counts"), value.get("size")
    if declared != list(size):
        raise SrattnError(f"a mask of size {short(declared, 60)} (height, width) in an image of {list(size)}")
    pixels = size[0] * size[1]
    if isinstance(counts, str):
        found: Sequence[int] = read_runs(counts, pixels)
    elif isinstance(counts, list):
        found = check_runs(counts, pixels)
    else:
        raise SrattnError(f"the counts of a mask are a list or a text, got {short(counts, 60)}")
    return Outline(size, runs=array("q", found))

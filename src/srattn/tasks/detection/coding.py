"""From a detector's regression to boxes and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MOST = math.log(1000 / 16)  # an anchor grows at most so often, as is usual: exp stays finite


def boxes_of_distances(cells: Tensor, distances: Tensor) -> Tensor:
    """Boxes (..., 4) from the distances left, top, right, bottom (..., 4) of the cells' middles, in cells."""
    size = cells[..., 2:] - cells[..., :2]
    middle = (cells[..., :2] + cells[..., 2:]) / 2
    return torch.cat([middle - distances[..., :2] * size, middle + distances[..., 2:] * size], -1)


def distances_of_boxes(cells: Tensor, boxes: Tensor) -> Tensor:
    """The reverse of `boxes_of_distances`."""
    size = cells[..., 2:] - cells[..., :2]
    middle = (cells[..., :2] + cells[..., 2:]) / 2
    return torch.cat([(middle - boxes[..., :2]) / size, (boxes[..., 2:] - middle) / size], -1)


def centreness(distances: Tensor) -> Tensor:
    """How near to the middle of its box a place is, from 0 to 1 (arXiv:1904.01355, equation 3): (..., 4) to (...)."""
    low, high = distances[..., :2].clamp(min=0), distances[..., 2:].clamp(min=0)
    shares = torch.minimum(low, high) / torch.maximum(low, high).clamp(min=1e-12)
    return shares.prod(-1).sqrt()


def boxes_of_steps(anchors: Tensor, steps: Tensor) -> Tensor:
    """Boxes (..., 4) from anchors and steps (..., 4): the middle's way in anchor sizes, the logarithms of factors."""
    size = anchors[..., 2:] - anchors[..., :2]
    middle = (anchors[..., :2] + anchors[..., 2:]) / 2 + steps[..., :2] * size
    half = size * steps[..., 2:].clamp(max=_MOST).exp() / 2
    return torch.cat([middle - half, middle + half], -1)


def steps_of_boxes(anchors: Tensor, boxes: Tensor) -> Tensor:
    """The reverse of `boxes_of_steps`, for boxes with an area."""
    size, wanted = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    way = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return torch.cat([way / size, (wanted / size).log()], -1)

"""How well the contours of two maps of classes meet: the boundary F-measure.

After Csurka et al. (BMVC 2013) and DAVIS (Perazzi et al., CVPR 2016): of a class in an image, precision is the part of
the predicted contour that lies within a tolerance of the true one, recall the part of the true contour that lies within
it of the predicted one, and F = 2 P R / (P + R), 0 where either is 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 0.0075
"""Of the image's diagonal, rounded up to whole pixels."""


def boundary_f(
    predicted: Tensor, target: Tensor, valid: Tensor, classes: int, tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor]:
    """F of every class in every image, and which of them there are.

    A pixel is on the contour of its class if one of its four neighbours has another class. The frame is no contour,
    nor is the edge of what is void.

    Args:
        predicted, target: (B, H, W), class numbers.
        valid: (B, H, W), bool; the other pixels are on no contour.
        tolerance: part of the diagonal; rounded up, so that it is at least one pixel unless it is 0.

    Returns:
        (B, K) float64, and (B, K) bool: whether the class has a contour in either map.
    """
    radius = math.ceil(tolerance * math.hypot(*target.shape[1:]))
    said, true = _contours(predicted, valid), _contours(target, valid)
    met_said, all_said = _met(said, true, radius, classes)
    met_true, all_true = _met(true, said, radius, classes)
    precision, recall = met_said / all_said.clamp(min=1), met_true / all_true.clamp(min=1)
    both = precision + recall
    return 2 * precision * recall / torch.where(both > 0, both, 1), all_said + all_true > 0


def _contours(numbers: Tensor, valid: Tensor) -> Tensor:
    """(B, H, W): the class of pixels on a contour, -1 elsewhere."""
    edge = torch.zeros_like(valid)
    for axis in (1, 2):
        rest = numbers.shape[axis] - 1
        near, far = (slice(None),) * axis + (slice(0, rest),), (slice(None),) * axis + (slice(1, None),)
        differ = (numbers[near] != numbers[far]) & valid[near] & valid[far]
        edge[near] |= differ
        edge[far] |= differ
    return torch.where(edge, numbers, -1)


def _met(contours: Tensor, others: Tensor, radius: int, classes: int) -> tuple[Tensor, Tensor]:
    """(B, K) each, float64: pixels of `contours` with one of the same class in `others` within `radius`, and all.

    Looks from the few pixels on contours in all directions, all classes at once.
    """
    image, row, column = (contours >= 0).nonzero(as_tuple=True)
    number = contours[image, row, column]
    padded = F.pad(others, (radius, radius, radius, radius), value=-1)
    height, width = padded.shape[1:]
    places = (image * height + row + radius) * width + column + radius
    flat, met = padded.flatten(), torch.zeros_like(number, dtype=torch.bool)
    for down in range(-radius, radius + 1):
        reach = math.isqrt(radius**2 - down**2)
        for right in range(-reach, reach + 1):
            met |= flat[places + (down * width + right)] == number
    cells, shape = image * classes + number, (len(contours), classes)
    found = torch.bincount(cells[met], minlength=math.prod(shape)).view(shape)
    return found.double(), torch.bincount(cells, minlength=math.prod(shape)).view(shape).double()

"""RoIAlign against loops over boxes, cells and samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from srattn import SrattnError
from srattn.ops.roi_align import roi_align


def sample(plane: Tensor, y: float, x: float) -> Tensor:
    """Bilinear at (y, x) in units of the map's samples; plane is (C, H, W)."""
    _, height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return plane.new_zeros(len(plane))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(math.floor(y), height - 1), min(math.floor(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[:, top, left] * (1 - dx) + plane[:, top, right] * dx
    lower = plane[:, bottom, left] * (1 - dx) + plane[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def loops(features: Tensor, boxes: Tensor, size: tuple[int, int], scale: float, samples: int) -> Tensor:
    out = features.new_zeros(*boxes.shape[:2], features.shape[1], *size)
    for b in range(len(boxes)):
        for r, box in enumerate(boxes[b].tolist()):
            x1, y1, x2, y2 = (edge * scale - 0.5 for edge in box)
            cell = ((y2 - y1) / size[0], (x2 - x1) / size[1])
            for i in range(size[0]):
                for j in range(size[1]):
                    for m in range(samples):
                        for n in range(samples):
                            y = y1 + (i + (m + 0.5) / samples) * cell[0]
                            x = x1 + (j + (n + 0.5) / samples) * cell[1]
                            out[b, r, :, i, j] += sample(features[b], y, x) / samples**2
    return out


BOXES = torch.tensor(
    [
        [[0, 0, 36, 28], [3.3, 5.1, 17.9, 20.2], [-20, -9, 10, 12], [30, 20, 90, 70]],
        [[8, 8, 8, 8], [100, 100, 120, 130], [5.5, 0, 6.5, 28], [0, 0, 0, 0]],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4)])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_is_the_definition(size: tuple[int, int], samples: int) -> None:
    features = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    expected = loops(features, BOXES, size, 0.25, samples)
    assert torch.allclose(roi_align(features, BOXES, size, 0.25, samples), expected, atol=1e-12)
    view = features.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.allclose(roi_align(view, BOXES, size, 0.25, samples), expected, atol=1e-12)


def test_of_a_plane_it_is_the_middle_of_each_cell() -> None:
    # Pixel (i, j) stands for the image at its middle, so a map of its own x must answer with x.
    columns = torch.arange(16.0, dtype=torch.float64) + 0.5
    features = columns.expand(1, 1, 16, 16)
    box = torch.tensor([[[2.0, 3.0, 14.0, 9.0]]], dtype=torch.float64)
    assert torch.allclose(roi_align(features, box, 3)[0, 0, 0, 0], torch.tensor([4.0, 8.0, 12.0], dtype=torch.float64))


def test_gradients_of_features_and_boxes() -> None:
    features = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[[1.13, 0.71, 4.37, 4.19], [0.83, 1.91, 5.21, 3.17]]], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, b: roi_align(f, b, 2), (features, boxes))


def test_half_precision_keeps_its_type_and_place() -> None:
    features = torch.randn(1, 2, 60, 80)
    boxes = torch.tensor([[[101.3, 55.7, 303.1, 222.9]]])
    expected = roi_align(features.bfloat16().float(), boxes, 7, 0.25)
    found = roi_align(features.bfloat16(), boxes, 7, 0.25)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


def test_nothing_in_nothing_out() -> None:
    features = torch.randn(2, 3, 7, 9)
    assert roi_align(features, torch.zeros(2, 0, 4), 7).shape == (2, 0, 3, 7, 7)
    assert roi_align(features[:0], torch.zeros(0, 5, 4), 7).shape == (0, 5, 3, 7, 7)


def test_what_is_refused() -> None:
    features = torch.randn(2, 3, 7, 9)
    with pytest.raises(SrattnError, match=r"got \(2, 3, 7, 9\) and \(3, 5, 4\)"):
        roi_align(features, torch.zeros(3, 5, 4), 7)
    with pytest.raises(SrattnError, match="samples=0"):
        roi_align(features, torch.zeros(2, 5, 4), 7, samples=0)

"""Boxes against the formulas of one pair, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srattn import SrattnError
from srattn.ops.boxes import FORMS, box_area, box_giou, box_ioa, box_iou, clip_boxes, convert_boxes, paired_giou


def some(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 50
    return torch.cat([corner, corner + torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 30], -1)


def one_pair(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU and generalised IoU."""
    area = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum(area) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = shared / union if union else 0.0
    return iou, iou - ((hull - union) / hull if hull else 0.0)


def test_every_pair_is_the_formula() -> None:
    a, b = some(7), some(5, seed=1)
    b[0] = a[0]
    b[1] = torch.tensor([200, 200, 210, 220])
    b[2] = torch.tensor([10, 10, 10, 30])  # no width
    expected = torch.tensor([[one_pair(p, q) for q in b.tolist()] for p in a.tolist()], dtype=torch.float64)
    assert torch.allclose(box_iou(a, b), expected[..., 0], atol=1e-12)
    assert torch.allclose(box_giou(a, b), expected[..., 1], atol=1e-12)
    assert box_iou(a, b)[0, 0] == 1 and not box_iou(a, b)[:, 1].any()
    assert (box_giou(a, b)[:, 1] < -0.9).all()
    paired = paired_giou(a[:5], b)
    assert torch.equal(paired, box_giou(a, b).diagonal())


def test_the_part_of_a_box_within_another() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 2], [1, 1, 1, 5]])
    areas = torch.tensor([[1.0, 1, 9, 9], [-1, -1, 9, 9], [4, 0, 8, 2]])
    assert box_ioa(boxes, areas).tolist() == [[3 / 8, 1, 0], [0, 0, 0]]
    assert box_ioa(boxes, areas[:0]).shape == (2, 0)


def test_batches_empty_ones_and_views() -> None:
    a, b = some(2, 7), some(2, 5, seed=1)
    assert torch.equal(box_iou(a, b)[1], box_iou(a[1], b[1]))
    assert box_iou(a[:, :0], b).shape == (2, 0, 5)
    assert box_giou(a, b[:, :0]).shape == (2, 7, 0)
    apart = a.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not apart.is_contiguous() and torch.equal(box_iou(apart, b), box_iou(a, b))


def test_half_precision_has_large_areas() -> None:
    boxes = torch.tensor([[0, 0, 1000, 1000], [0, 0, 1000, 500]], dtype=torch.float16)
    assert box_iou(boxes, boxes).tolist() == [[1.0, 0.5], [0.5, 1.0]]
    assert box_iou(boxes.long(), boxes.long())[0, 1] == 0.5


def test_boxes_without_area_have_finite_gradients() -> None:
    nothing = torch.zeros(1, 4, requires_grad=True)
    (box_iou(nothing, nothing) + box_giou(nothing, nothing)).sum().backward()
    assert nothing.grad is not None and torch.isfinite(nothing.grad).all()
    assert box_iou(nothing, nothing).item() == 0


def test_gradients() -> None:
    a, b = some(4).requires_grad_(), some(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(paired_giou, (a, b))
    assert torch.autograd.gradcheck(box_giou, (a, b))


@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
def test_conversions_go_round(source: str, target: str) -> None:
    boxes = some(3, 2)
    there = convert_boxes(convert_boxes(boxes, "xyxy", source), source, target)
    assert torch.allclose(there, convert_boxes(boxes, "xyxy", target), atol=1e-12)
    assert torch.allclose(convert_boxes(there, target, "xyxy"), boxes, atol=1e-12)


def test_what_the_forms_mean() -> None:
    box = torch.tensor([10.0, 20.0, 14.0, 30.0])
    assert convert_boxes(box, "xyxy", "xywh").tolist() == [10, 20, 4, 10]
    assert convert_boxes(box, "xyxy", "cxcywh").tolist() == [12, 25, 4, 10]
    assert box_area(box) == 40
    assert box_area(torch.tensor([5.0, 5.0, 1.0, 9.0])) == 0  # turned inside out


def test_clipping() -> None:
    boxes = torch.tensor([[-5.0, 2.0, 50.0, 60.0], [70.0, 70.0, 80.0, 80.0]])
    assert clip_boxes(boxes, 40, 30).tolist() == [[0, 2, 30, 40], [30, 40, 30, 40]]
    sizes = torch.tensor([[40.0], [100.0]])
    assert clip_boxes(boxes.expand(2, 2, 4), sizes, sizes)[:, 0].tolist() == [[0, 2, 40, 40], [0, 2, 50, 60]]


def test_what_is_refused() -> None:
    with pytest.raises(SrattnError, match=r"boxes are \(\.\.\., 4\), got \(3, 5\)"):
        box_area(torch.zeros(3, 5))
    with pytest.raises(SrattnError, match="no form of boxes 'xyhw'; did you mean 'xywh'"):
        convert_boxes(torch.zeros(4), "xyhw", "xyxy")

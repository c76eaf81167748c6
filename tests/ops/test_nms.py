"""Suppression against the greedy rule written as loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srattn import SrattnError
from srattn.ops.boxes import box_iou
from srattn.ops.nms import nms


def crowd(count: int, seed: int = 0, levels: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes that overlap in long chains, scores with ties, classes."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 25], 1)
    scores = torch.randint(levels, (count,), generator=generator) / levels
    return boxes, scores, torch.randint(3, (count,), generator=generator)


def greedy(boxes: Tensor, scores: Tensor, threshold: float, classes: Tensor | None = None) -> list[int]:
    overlap = box_iou(boxes, boxes)
    left = sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [
            i
            for i in left
            if float(overlap[best, i]) <= threshold or (classes is not None and classes[i] != classes[best])
        ]
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("block", [1, 7, 64, 512])
def test_is_the_greedy_rule(threshold: float, block: int) -> None:
    boxes, scores, classes = crowd(150)
    assert nms(boxes, scores, threshold, block=block).tolist() == greedy(boxes, scores, threshold)
    expected = greedy(boxes, scores, threshold, classes)
    assert nms(boxes, scores, threshold, classes, block=block).tolist() == expected
    assert nms(boxes, scores, threshold, classes, 10, block=block).tolist() == expected[:10]


@pytest.mark.parametrize("levels", [1, 4])
def test_of_equal_scores_the_first_is_best(levels: int) -> None:
    boxes, scores, _ = crowd(120, seed=1, levels=levels)
    assert nms(boxes, scores, 0.4, block=32).tolist() == greedy(boxes, scores, 0.4)


def test_a_chain_drops_every_other_box() -> None:
    # Each box overlaps its neighbours alone, so whether one is kept depends on all before it.
    left = torch.arange(40.0) * 4
    boxes = torch.stack([left, torch.zeros(40), left + 10, torch.ones(40)], 1)
    assert nms(boxes, -torch.arange(40.0), 0.4, block=16).tolist() == list(range(0, 40, 2))


def test_far_away_classes_do_not_blur_boxes() -> None:
    # An offset of classes would round these coordinates away.
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0.5001]], dtype=torch.float32)
    classes = torch.full((2,), 10_000_000)
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.5, classes).tolist() == [0]
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.51, classes).tolist() == [0, 1]


def test_empty_and_not_contiguous() -> None:
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    boxes, scores, _ = crowd(60)
    apart = boxes.t().contiguous().t()
    assert not apart.is_contiguous()
    assert torch.equal(nms(apart, scores, 0.5), nms(boxes, scores, 0.5))
    assert nms(boxes, scores, 0.5, limit=0).tolist() == []


def test_what_is_refused() -> None:
    boxes, scores, classes = crowd(3)
    with pytest.raises(SrattnError, match=r"got \(3, 4\) and \(2,\)"):
        nms(boxes, scores[:2], 0.5)
    with pytest.raises(SrattnError, match=r"classes are \(N,\)"):
        nms(boxes, scores, 0.5, classes[:2])
    with pytest.raises(SrattnError, match=r"got 1\.5"):
        nms(boxes, scores, 1.5)

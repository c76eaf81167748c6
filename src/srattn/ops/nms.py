"""Non-maximum suppression: of boxes that overlap, the best alone."""

from __future__ import annotations

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.ops.boxes import box_iou

BLOCK = 512
"""Boxes that are compared with each other at once, so that memory grows with their number and not with its square."""


def nms(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    classes: Tensor | None = None,
    limit: int | None = None,
    *,
    block: int = BLOCK,
) -> Tensor:
    """The greedy rule, exactly: take the best box that is left, and drop all that overlap it by more than `threshold`.

    Computed for a block of boxes at a time: what the boxes taken before drop, and then, among the rest, the one set in
    which a box is kept if and only if no better kept one overlaps it, which is approached from all of them and
    reached after as many steps as the longest chain of boxes that drop each other.

    Args:
        boxes: (N, 4), x1, y1, x2, y2.
        scores: (N,); of equal ones the first comes first.
        threshold: of intersection over union, from 0 to 1.
        classes: (N,) class numbers; boxes of different classes leave each other alone.
        limit: the most boxes that are wanted.
        block: see `BLOCK`.

    Returns:
        Numbers of the boxes that are kept (K,), int64, best first.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise SrattnError(f"boxes are (N, 4) and scores (N,), got {tuple(boxes.shape)} and {tuple(scores.shape)}")
    if classes is not None and classes.shape != scores.shape:
        raise SrattnError(f"classes are (N,) as scores are, got {tuple(classes.shape)} and {tuple(scores.shape)}")
    if not 0 <= threshold <= 1:
        raise SrattnError(f"the threshold is an intersection over union from 0 to 1, got {threshold}")
    with torch.no_grad():
        order = scores.argsort(descending=True, stable=True)
        kept = order[:0]
        for numbers in order.split(block):
            if limit is not None and len(kept) >= limit:
                break
            for earlier in kept.split(block):
                numbers = numbers[~_overlaps(boxes, earlier, numbers, threshold, classes).any(0)]
            kept = torch.cat([kept, numbers[_best(_overlaps(boxes, numbers, numbers, threshold, classes))]])
        return kept if limit is None else kept[:limit]


def _overlaps(boxes: Tensor, better: Tensor, worse: Tensor, threshold: float, classes: Tensor | None) -> Tensor:
    """(len(better), len(worse)): whether the one box drops the other."""
    over = box_iou(boxes[better], boxes[worse]) > threshold
    # Compared, not moved apart by an offset for each class as is usual: that would cost the coordinates digits.
    return over if classes is None else over & (classes[better].unsqueeze(1) == classes[worse])


def _best(over: Tensor) -> Tensor:
    """Which of n boxes, best first, the greedy rule keeps; `over` (n, n) says who drops whom."""
    drops = over.triu(1)
    kept = torch.ones(len(drops), dtype=torch.bool, device=over.device)
    while True:
        now = ~(drops & kept.unsqueeze(1)).any(0)
        if torch.equal(now, kept):
            return kept
        kept = now

"""What a model of two stages answers: boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.heads.mask_rcnn import FasterRCNNHead, MaskRCNNHead
from srattn.ops.boxes import clip_boxes
from srattn.tasks.detection.coding import boxes_of_steps
from srattn.tasks.detection.decode import Choice, best_of, surest

SCORE, OVERLAP = 0.05, 0.5
"""The least score of an answer, and the overlap from which the better one alone is given (arXiv:1703.06870, 3.1)."""
BEFORE_MASK = 8
"""Columns of an answer: x1, y1, x2, y2, score, class, height and width of the image; then its mask."""


def answer(
    head: FasterRCNNHead, maps: Sequence[Tensor], proposals: Tensor, there: Tensor, size: Sequence[int]
) -> Tensor:
    """Answers float32 (B, D, 8) or (B, D, 8 + S * S), best first; class -1 is padding.

    The mask is the class's own probabilities (S, S), row by row, over the answered box.

    Args:
        maps: of the pyramid.
        proposals, there: as `propose` gives them.
        size: (height, width) of the images.
    """
    logits, steps = head.classify(maps, proposals)
    scores = logits.softmax(2)[..., :-1] * there.unsqueeze(2)
    choice = Choice(SCORE, OVERLAP, max(1000, head.answers), head.answers)
    best, row, label = surest(scores, choice.candidates)
    image = torch.arange(len(best), device=best.device).unsqueeze(1)
    boxes = boxes_of_steps(proposals[image, row], steps[image, row, label])
    found = best_of(clip_boxes(boxes, int(size[0]), int(size[1])), best, label, choice)
    sides = found.new_tensor([float(size[0]), float(size[1])]).expand(*found.shape[:2], 2)
    found = torch.cat([found, sides], 2)
    return torch.cat([found, _masks(head, maps, found)], 2) if isinstance(head, MaskRCNNHead) else found


def _masks(head: MaskRCNNHead, maps: Sequence[Tensor], found: Tensor) -> Tensor:
    """(B, D, S * S); of padding zeros."""
    batch, count = found.shape[:2]
    most = max(1, int((found[..., 5] >= 0).sum(1).amax())) if batch else 1  # padding stands behind
    logits = head.masks(maps, found[:, :most, :4])  # (B, most, K, S, S)
    label = found[:, :most, 5].long().clamp(min=0).view(batch, most, 1, 1, 1).expand(-1, -1, 1, *logits.shape[3:])
    own = logits.gather(2, label).squeeze(2).sigmoid().flatten(2) * (found[:, :most, 5:6] >= 0)
    return torch.cat([own, own.new_zeros(batch, count - most, own.shape[2])], 1)


def paste(mask: Tensor, box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Probabilities (S, S) over a box x1, y1, x2, y2 to a mask bool of an image of `size` (height, width).

    Bilinear between the middles of the cells, inside from 0.5 on, for the pixels whose middle the box holds.
    """
    whole = torch.zeros(size, dtype=torch.bool, device=mask.device)
    rows, low_y, high_y, share_y = _between(box[1], box[3], size[0], mask)
    columns, low_x, high_x, share_x = _between(box[0], box[2], size[1], mask)
    down = torch.lerp(mask[low_y], mask[high_y], share_y.unsqueeze(1))
    whole[rows, columns] = torch.lerp(down[:, low_x], down[:, high_x], share_x) >= 0.5
    return whole


def _between(low: float, high: float, length: int, mask: Tensor) -> tuple[slice, Tensor, Tensor, Tensor]:
    """The pixels of a side whose middles lie between two edges; for each the cells around it and its way from the first
    to the second."""
    cells = mask.shape[0]
    first = min(max(0, round(low)), length)
    last = max(first, min(round(high), length))
    middles = torch.arange(first, last, device=mask.device, dtype=mask.dtype) + 0.5
    at = ((middles - low) / max(high - low, 1e-6) * cells - 0.5).clamp(0, cells - 1)
    below = at.floor().long()
    return slice(first, last), below, (below + 1).clamp(max=cells - 1), at - below

"""Which place or anchor of a detector answers for which object. One image at a time, so that memory stays bounded."""

from __future__ import annotations

import torch
from torch import Tensor

from srattn.ops.boxes import box_area, box_ioa, box_iou

NONE, IGNORED = -1, -2
RADIUS = 1.5
"""Of centre sampling, in strides (arXiv:2006.09214, section 3.1)."""
POSITIVE, NEGATIVE = 0.5, 0.4
"""Overlaps of an anchor from which, and below which, it answers for an object or for none (arXiv:1708.02002)."""
CROWD = 0.5
"""The part of an anchor or a proposal within an ignored area from which it is not taken for background: the overlap
that COCO's tools ask for where they forgive a detection in a crowd."""


def valid_targets(targets: Tensor) -> Tensor:
    """Which rows of targets (..., 5) are objects: padding has the class -1, what is ignored one below, and what has no
    area is no object."""
    return (targets[..., 4] >= 0) & (targets[..., 2] > targets[..., 0]) & (targets[..., 3] > targets[..., 1])


def ignored_targets(targets: Tensor) -> Tensor:
    """Which rows of targets (..., 5) are there and not objects, see `srattn.ops.boxes.ignored_class`."""
    return (targets[..., 4] < -1) & (targets[..., 2] > targets[..., 0]) & (targets[..., 3] > targets[..., 1])


def assign_places(cells: Tensor, boxes: Tensor, radius: float = RADIUS) -> Tensor:
    """FCOS (arXiv:1904.01355, section 3.1 and 3.2): each cell's object, or `NONE`.

    A cell answers for a box if its middle lies in the box and within `radius` strides of the box's middle, and if the
    furthest edge of the box is at a distance that is its map's: up to 8 strides, and over what the finer map takes;
    the finest map takes all below, the coarsest all above. Of several boxes it is the smallest, of equals the first.

    Args:
        cells: (N, 4), squares of one stride for each map, whose strides double.
        boxes: (M, 4), each with an area.

    Returns:
        int64 (N,), numbers of boxes.
    """
    if not len(boxes):
        return torch.full((len(cells),), NONE, device=cells.device)
    stride = cells[:, 2] - cells[:, 0]
    middle = (cells[:, :2] + cells[:, 2:]) / 2
    low, high = boxes[:, :2], boxes[:, 2:]
    centre, reach = (low + high) / 2, (radius * stride).view(-1, 1, 1)
    at = middle.unsqueeze(1)  # (N, 1, 2) against (M, 2)
    near = (at - torch.maximum(low, centre - reach) > 0) & (torch.minimum(high, centre + reach) - at > 0)
    furthest = torch.maximum(at - low, high - at).amax(2)  # (N, M)
    least = torch.where(stride > stride.min(), 4 * stride, 0).unsqueeze(1)
    most = torch.where(stride < stride.max(), 8 * stride, torch.inf).unsqueeze(1)
    fits = near.all(2) & (furthest > least) & (furthest <= most)
    area, best = torch.where(fits, box_area(boxes), torch.inf).min(1)
    return torch.where(area < torch.inf, best, NONE)


def assign_anchors(anchors: Tensor, boxes: Tensor, positive: float = POSITIVE, negative: float = NEGATIVE) -> Tensor:
    """RetinaNet (arXiv:1708.02002, section 4): each anchor's object, `NONE`, or `IGNORED`.

    An anchor answers for the box that it overlaps most, from an overlap of `positive` on, for none below `negative`,
    and is ignored in between. A box's best anchors answer for it whatever the overlap, so that no box has none, as
    in the common implementations; an anchor that is the best of several boxes, for the one it overlaps most.

    Args:
        anchors: (N, 4).
        boxes: (M, 4), each with an area.

    Returns:
        int64 (N,), numbers of boxes.
    """
    if not len(boxes):
        return torch.full((len(anchors),), NONE, device=anchors.device)
    overlap = box_iou(anchors, boxes)
    most, best = overlap.max(1)
    found = torch.where(most >= positive, best, torch.where(most < negative, NONE, IGNORED))
    claims = torch.where((overlap == overlap.amax(0)) & (overlap > 0), overlap, -1.0)
    claim, claimed = claims.max(1)
    return torch.where(claim > 0, claimed, found)


def spare_places(assign: Tensor, cells: Tensor, areas: Tensor) -> Tensor:
    """What `assign_places` says (N,), with `IGNORED` for those cells (N, 4) of no object whose middle lies in one of
    the ignored areas (M, 4)."""
    at = ((cells[:, :2] + cells[:, 2:]) / 2).unsqueeze(1)
    within = ((at > areas[:, :2]) & (at < areas[:, 2:])).all(2).any(1)
    return torch.where(within & (assign == NONE), IGNORED, assign)


def spare_boxes(assign: Tensor, boxes: Tensor, areas: Tensor) -> Tensor:
    """As `spare_places`, of boxes (N, 4) that lie by `CROWD` or more in one ignored area."""
    within = (box_ioa(boxes, areas) >= CROWD).any(1)
    return torch.where(within & (assign == NONE), IGNORED, assign)


def matched(assign: Tensor, boxes: Tensor) -> Tensor:
    """The box (N, 4) of each place; of those without one anything."""
    return boxes[assign.clamp(min=0)] if len(boxes) else boxes.new_zeros(len(assign), 4)

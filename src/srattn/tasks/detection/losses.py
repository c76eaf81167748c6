"""What a detector's training minimises, as sums that add up over images, steps and processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.heads.rows import Rows
from srattn.ops.boxes import paired_giou
from srattn.tasks.detection.assign import (
    IGNORED,
    assign_anchors,
    assign_places,
    ignored_targets,
    matched,
    spare_boxes,
    spare_places,
    valid_targets,
)
from srattn.tasks.detection.coding import boxes_of_distances, centreness, distances_of_boxes, steps_of_boxes

BETA = 1 / 9
"""Where the smooth L1 loss of anchors turns from a parabola to a line, as RetinaNet's authors have it."""
PARTS = ("class", "box", "centre")
Number = TypeVar("Number", float, Tensor)


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Of each logit for itself (arXiv:1708.02002, equation 5); targets 0 or 1 in the same shape, which is returned."""
    probability = logits.sigmoid()
    right = probability * targets + (1 - probability) * (1 - targets)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * (1 - right) ** gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def loss_sums(rows: Rows, targets: Tensor) -> dict[str, Tensor]:
    """Sums over a batch: the parts of the loss (see `combine`), and what they are divided by.

    Args:
        rows: of FCOS where they have a centreness, else of RetinaNet.
        targets: (B, M, 5): x1, y1, x2, y2, class; class -1 is padding, one below is ignored: what lies there and is no
            object's is not taught.
    """
    of_image = _anchors if rows.centreness is None else _places
    total = {name: rows.logits.new_zeros(()) for name in (*PARTS, "positives", "centreness")}
    valid, ignored = valid_targets(targets), ignored_targets(targets)
    for number in range(len(targets)):
        row = Rows(*(None if column is None else column[number] for column in rows))  # type: ignore[arg-type]
        objects, areas = targets[number][valid[number]], targets[number][ignored[number], :4]
        for name, value in of_image(row, objects.float(), areas.float()).items():
            total[name] = total[name] + value
    return total


def combine(sums: Mapping[str, Number]) -> dict[str, Number]:
    """The parts of the loss and the "loss", their sum.

    Classes and centreness are divided by the number of places that answer for an object, distances (weighted by it) by
    the sum of their centreness; a batch without an object is divided by 1.
    """
    positives, weight = (_at_least(sums[name], low) for name, low in (("positives", 1.0), ("centreness", 1e-6)))
    found = {
        "class": sums["class"] / positives,
        "box": sums["box"] / weight,
        "centre": sums["centre"] / positives,
    }
    return {"loss": found["class"] + found["box"] + found["centre"], **found}


def _at_least(value: Number, least: float) -> Number:
    return value.clamp(min=least) if isinstance(value, Tensor) else max(value, least)


def _class_loss(logits: Tensor, assigned: Tensor, labels: Tensor) -> Tensor:
    """Focal loss over all places (N, K) but those that are ignored."""
    wanted = torch.zeros_like(logits)
    answers = (assigned >= 0).nonzero().squeeze(1)
    wanted[answers, labels[assigned[answers]]] = 1
    return (focal_loss(logits, wanted) * (assigned != IGNORED).unsqueeze(1)).sum()


def _places(rows: Rows, objects: Tensor, areas: Tensor) -> dict[str, Tensor]:
    """FCOS (arXiv:1904.01355, equation 2, with the GIoU loss of arXiv:2006.09214) for one image."""
    boxes, labels = objects[:, :4], objects[:, 4].long()
    assigned = spare_places(assign_places(rows.reference, boxes), rows.reference, areas)
    some = assigned >= 0
    wanted = matched(assigned[some], boxes)
    near = centreness(distances_of_boxes(rows.reference[some], wanted))
    found = boxes_of_distances(rows.reference[some], rows.regression[some])
    assert rows.centreness is not None
    return {
        "class": _class_loss(rows.logits, assigned, labels),
        "box": ((1 - paired_giou(found, wanted)) * near).sum(),
        "centre": F.binary_cross_entropy_with_logits(rows.centreness[some], near, reduction="sum"),
        "positives": some.sum(),
        "centreness": near.sum(),
    }


def _anchors(rows: Rows, objects: Tensor, areas: Tensor) -> dict[str, Tensor]:
    """RetinaNet (arXiv:1708.02002, section 4) for one image; every anchor of an object has the weight 1."""
    boxes, labels = objects[:, :4], objects[:, 4].long()
    assigned = spare_boxes(assign_anchors(rows.reference, boxes), rows.reference, areas)
    some = assigned >= 0
    wanted = steps_of_boxes(rows.reference[some], matched(assigned[some], boxes))
    return {
        "class": _class_loss(rows.logits, assigned, labels),
        "box": F.smooth_l1_loss(rows.regression[some], wanted, beta=BETA, reduction="sum"),
        "positives": some.sum(),
        "centreness": some.sum(),
    }

"""What of an image both stages learn from: a random sample, drawn from torch's generator, which the engine seeds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from srattn.ops.boxes import box_iou
from srattn.tasks.detection.assign import IGNORED, NONE, assign_anchors, ignored_targets, spare_boxes, valid_targets

POSITIVE, NEGATIVE = 0.7, 0.3
"""Overlaps of an anchor from which, and below which, it is an object's or none's (arXiv:1506.01497, section 3.1.2)."""
ANCHORS = 256
"""Of an image, at most half of them an object's."""
OVERLAP, PART = 0.5, 0.25
"""Of a proposal: from which it is an object's; and how many at most are (arXiv:1703.06870, section 3.1)."""


class Sample(NamedTuple):
    """Boxes of the second stage.

    Attributes:
        boxes: float32 (B, R, 4); those of objects first, filled up with boxes of zeros.
        rows: int64 (B, R), the row of the targets that a box is of, `NONE` for background, `IGNORED` for what fills up.
    """

    boxes: Tensor
    rows: Tensor

    @property
    def positives(self) -> int:
        """How many boxes at the beginning hold all those of objects; at least 1, if only to fill up."""
        return max(1, int((self.rows >= 0).sum(1).amax())) if len(self.rows) else 1


def pick(chosen: Tensor, most: int) -> Tensor:
    """At most so many of the places where `chosen` (N,) is true, each as likely as the others: int64."""
    places = chosen.nonzero().squeeze(1)
    return places[torch.randperm(len(places), device=places.device)[:most]]


def sample_anchors(anchors: Tensor, boxes: Tensor, areas: Tensor, count: int = ANCHORS) -> tuple[Tensor, Tensor]:
    """Anchors (N, 4), an image's objects (M, 4) and its ignored areas (I, 4) to those that are learnt from, int64 (at
    most `count`,), those of objects first, and for each the object's number or `NONE`."""
    assigned = spare_boxes(assign_anchors(anchors, boxes, POSITIVE, NEGATIVE), anchors, areas)
    positive = pick(assigned >= 0, count // 2)
    places = torch.cat([positive, pick(assigned == NONE, count - len(positive))])
    return places, assigned[places]


@torch.no_grad()
def sample_regions(proposals: Tensor, there: Tensor, targets: Tensor, count: int) -> Sample:
    """A sample of the proposals and the true boxes.

    Args:
        proposals, there: as `propose` gives them.
        targets: (B, M, 5 or more), see `TwoStage`.
        count: boxes of an image, at most a quarter of them of objects.
    """
    valid, ignored, chosen = valid_targets(targets), ignored_targets(targets), []
    for number in range(len(targets)):
        rows = valid[number].nonzero().squeeze(1)
        true = targets[number, rows, :4].float()
        boxes = torch.cat([proposals[number, there[number]], true])
        if len(rows):
            overlap, best = box_iou(boxes, true).max(1)
            own = torch.where(overlap >= OVERLAP, rows[best], NONE)
        else:
            own = torch.full((len(boxes),), NONE, device=boxes.device)
        own = spare_boxes(own, boxes, targets[number, ignored[number], :4].float())
        positive = pick(own >= 0, max(1, round(PART * count)))
        places = torch.cat([positive, pick(own == NONE, count - len(positive))])
        chosen.append((boxes[places], own[places]))
    most = max([1, *(len(boxes) for boxes, _ in chosen)])
    found = proposals.new_zeros(len(targets), most, 4)
    owners = torch.full((len(targets), most), IGNORED, device=proposals.device)
    for number, (boxes, own) in enumerate(chosen):
        found[number, : len(boxes)], owners[number, : len(boxes)] = boxes, own
    return Sample(found, owners)

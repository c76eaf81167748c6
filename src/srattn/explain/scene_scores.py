"""How good the answers for single images are, and which images are worth a look."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.ops.boxes import box_area, box_iou

OVERLAP = 0.5
"""Intersection over union from which on a box counts as found."""


@dataclasses.dataclass(frozen=True)
class Matches:
    """Detections of one image against its objects, the surest first.

    Attributes:
        scores: float64 (D,), falling.
        hits: bool (D,): whether it is of an object's class, overlaps it by at least `OVERLAP`, and is the first to.
        objects: how many there are.
    """

    scores: Tensor
    hits: Tensor
    objects: int

    def precision(self) -> float | None:
        """Average precision over all classes together: the area under the highest precision at each recall or beyond.

        None of an image without objects, where there is no recall.
        """
        if not self.objects:
            return None
        found = self.hits.double().cumsum(0)
        highest = (found / torch.arange(1, len(found) + 1)).flip(0).cummax(0)[0].flip(0) if len(found) else found
        return float((highest * self.hits).sum() / self.objects)

    def above(self, score: float) -> tuple[int, int]:
        """Detections from `score` on: right ones and wrong ones."""
        chosen = self.scores >= score
        right = int((self.hits & chosen).sum())
        return right, int(chosen.sum()) - right


def match(boxes: Tensor, found: Tensor, ignored: Tensor | None = None) -> Matches:
    """Takes detections in the order of their scores; each may have the object of its class that it overlaps most.

    Args:
        boxes: objects (N, 5): x1, y1, x2, y2, class; those of class -1 are padding.
        found: detections (D, 6): x1, y1, x2, y2, score, class; likewise.
        ignored: bool (N,), which of the objects count nowhere. A detection that has no other object, and of which such
            a one of its class covers `OVERLAP`, is left out, as COCO's measure has it.
    """
    counted = boxes[:, -1] >= 0 if ignored is None else (boxes[:, -1] >= 0) & ~ignored
    aside = boxes[:0] if ignored is None else boxes[(boxes[:, -1] >= 0) & ignored]
    boxes, aside, found = (rows.detach().double().cpu() for rows in (boxes[counted], aside, found[found[:, -1] >= 0]))
    found = found[found[:, 4].argsort(descending=True, stable=True)]
    overlap = box_iou(found[:, :4], boxes[:, :4])  # (D, N)
    overlap = torch.where(found[:, 5:] == boxes[:, 4], overlap, 0.0)
    hits, free = torch.zeros(len(found), dtype=torch.bool), torch.ones(len(boxes), dtype=torch.bool)
    for number, row in enumerate(overlap if len(boxes) else ()):
        best, place = torch.where(free, row, 0.0).max(0)
        if best >= OVERLAP:
            hits[number], free[place] = True, False
    kept = hits | ~_covered(found, aside)
    return Matches(found[kept, 4], hits[kept], len(boxes))


def _covered(found: Tensor, aside: Tensor) -> Tensor:
    """bool (D,): of which detections an object of their class covers at least `OVERLAP`."""
    low = torch.maximum(found[:, None, :2], aside[:, :2])
    high = torch.minimum(found[:, None, 2:4], aside[:, 2:4])
    shared = (high - low).clamp(min=0).prod(2)
    enough = (shared >= OVERLAP * box_area(found[:, :4]).unsqueeze(1)) & (shared > 0)
    return (enough & (found[:, 5:] == aside[:, 4])).any(1)


def best_score(matches: Sequence[Matches]) -> float | None:
    """From which score on precision and recall over all these images are in best balance (the highest F1).

    None where nothing was found.
    """
    if not matches or not any(bool(each.hits.any()) for each in matches):
        return None
    scores, order = torch.cat([each.scores for each in matches]).sort(descending=True, stable=True)
    found = torch.cat([each.hits for each in matches])[order].double().cumsum(0)
    taken = torch.arange(1, len(scores) + 1)
    balance = 2 * found / (taken + sum(each.objects for each in matches))
    ends = torch.ones(len(scores), dtype=torch.bool)
    ends[:-1] = scores[1:] < scores[:-1]  # equal scores are taken together
    return float(scores[torch.where(ends, balance, -1.0).argmax()])


def extremes(scores: Sequence[float | None], most: int) -> tuple[list[int], list[int]]:
    """Indices of the `most` worst, the worst first, and of the `most` best, the best first; none is in both."""
    known = sorted((score, index) for index, score in enumerate(scores) if score is not None)
    worst = known[: min(most, (len(known) + 1) // 2)]
    best = known[len(worst) :][::-1][:most]
    return [index for _, index in worst], [index for _, index in best]


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread, the ends among them."""
    if count <= most:
        return list(range(count))
    return torch.linspace(0, count - 1, most).round().long().tolist()

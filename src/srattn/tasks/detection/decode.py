"""From a detector's rows to the boxes that a person can read."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.heads.rows import Rows
from srattn.ops.boxes import clip_boxes
from srattn.ops.nms import nms
from srattn.tasks.detection.coding import boxes_of_distances, boxes_of_steps


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which of a detector's answers are given.

    Attributes:
        score: answers below are left out.
        overlap: of two boxes of a class that overlap by more (as IoU), the better alone.
        candidates: the best answers of an image that are looked at.
        most: boxes of an image.
    """

    score: float = 0.05
    overlap: float = 0.6
    candidates: int = 1000
    most: int = 100

    def __post_init__(self) -> None:
        if not (0 <= self.score <= 1 and 0 <= self.overlap <= 1) or min(self.candidates, self.most) < 1:
            raise SrattnError(
                "score and overlap are from 0 to 1, candidates and most at least 1, got "
                f"score={self.score}, overlap={self.overlap}, candidates={self.candidates}, most={self.most}"
            )


@torch.no_grad()
def decode(rows: Rows, choice: Choice) -> Tensor:
    """Detections float32 (B, most, 6), best first: x1, y1, x2, y2 within the image, score, class; class -1 is padding.

    The score is the class's probability; with a centreness the root of their product (arXiv:2006.09214, section 3.2).
    """
    scores = rows.logits.float().sigmoid()
    if rows.centreness is not None:
        scores = (scores * rows.centreness.float().sigmoid().unsqueeze(2)).sqrt()
    best, row, label = surest(scores, choice.candidates)

    def at(column: Tensor) -> Tensor:
        return column.gather(1, row.unsqueeze(2).expand(-1, -1, column.shape[2]))

    coding = boxes_of_steps if rows.centreness is None else boxes_of_distances
    height, width = at(rows.size).unbind(2)
    return best_of(clip_boxes(coding(at(rows.reference), at(rows.regression)), height, width), best, label, choice)


def surest(scores: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best `most` of scores (B, N, K), or all: scores, places from 0 to N and classes, each (B, C), best first."""
    best, places = scores.flatten(1).topk(min(most, scores.shape[1] * scores.shape[2]), 1)
    return best, places // scores.shape[2], places % scores.shape[2]


def best_of(boxes: Tensor, scores: Tensor, labels: Tensor, choice: Choice) -> Tensor:
    """Detections (B, most, 6), as of `decode`, of boxes (B, C, 4) within the image, their scores and classes (B, C)."""
    out = scores.new_zeros(len(boxes), choice.most, 6)
    out[..., 5] = -1
    whole = (boxes[..., 2:] > boxes[..., :2]).all(2) & (scores >= choice.score)
    for number in range(len(boxes)):
        some = whole[number].nonzero().squeeze(1)
        mine, score, kind = boxes[number, some], scores[number, some], labels[number, some]
        kept = nms(mine, score, choice.overlap, kind, choice.most)
        out[number, : len(kept)] = torch.cat(
            [mine[kept], score[kept].unsqueeze(1), kind[kept].unsqueeze(1).to(mine.dtype)], 1
        )
    return out

"""What a file answers of a scene, as steps of its graph, and the way back to what the model itself answers.

- "logits" (B, K, h, w) on the model's grid; "classes" uint8 (B, H, W), the likeliest of every pixel of the input;
- "rows" as `srattn.heads.rows` says; "boxes" and "scores" (B, N, 4) and (B, N, K) of all places; "detections" (B, M, 6)
  after non-maximum suppression, as `srattn.tasks.detection.decode` gives them;
- "depths" (B, H, W), metres for every pixel of the input;
- "joints" (B, K, 3): x and y in pixels of the input, and a score, as `srattn.tasks.pose.decode` has it, and beside them
  "maps", what they were read from: heatmaps (B, K, h, w), or SimCC's logits (B, K, columns + rows).

Boxes are in pixels of the input: of the picture, where a graph takes pictures. There they may reach beyond its edges,
into what it was filled up with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.data.preprocess import Preprocess
from srattn.export.pictures import axes
from srattn.heads.rows import BEFORE_LOGITS, split_rows
from srattn.ops.boxes import clip_boxes
from srattn.tasks.detection.coding import boxes_of_distances, boxes_of_steps
from srattn.tasks.pose.decode import decode

NAMES: dict[str, list[str]] = {
    "logits": ["logits"],
    "classes": ["classes"],
    "rows": ["rows"],
    "boxes": ["boxes", "scores"],
    "detections": ["detections"],
    "depths": ["depths"],
    "joints": ["joints", "maps"],
}
SURE = 30.0
"""A logit of what a file says without a probability: that of all others together is below 1e-10."""


def classes_of(logits: Tensor, height: int, width: int) -> Tensor:
    """Logits (B, K, h, w), or (B, 1, h, w) of the second of two classes, to classes uint8 (B, height, width)."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    whole = F.interpolate(logits, size=[height, width], mode="bilinear", align_corners=False)
    return whole.argmax(1).to(torch.uint8)


def boxes_of(rows: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Rows (B, N, columns) to boxes (B, N, 4) within the model's input and scores (B, N, K).

    The same numbers as `srattn.tasks.detection.decode` chooses from.
    """
    parts = split_rows(rows, num_classes)
    if parts.centreness is None:
        scores = parts.logits.sigmoid()
    else:
        # The root of a product of sigmoids, in the form whose smallest values do not hang on a runtime's sigmoid: the
        # root would make of an error of 1e-10 one of 1e-5.
        scores = (-(F.softplus(-parts.logits) + F.softplus(-parts.centreness).unsqueeze(2)) / 2).exp()
    coding = boxes_of_steps if parts.centreness is None else boxes_of_distances
    height, width = parts.size.unbind(2)
    return clip_boxes(coding(parts.reference, parts.regression), height, width), scores


def joints_of(maps: Tensor, columns: int | None, height: int, width: int) -> Tensor:
    """Heatmaps or SimCC's logits to joints (B, K, 3) in pixels of an input of that size."""
    return decode(maps, columns) * torch.tensor([width, height, 1.0], device=maps.device)


def in_picture(boxes: Tensor, preprocess: Preprocess, height: int, width: int) -> Tensor:
    """Boxes (B, N, 4) of the model's input in pixels of a picture of that size.

    They are not cut at its edges: suppression, which may follow, compares boxes as the model gave them.
    """
    scale, shift = _onto(preprocess, height, width, boxes)
    return boxes * scale + shift


def of_picture(boxes: Tensor, preprocess: Preprocess, height: int, width: int) -> Tensor:
    """The reverse of `in_picture`."""
    scale, shift = _onto(preprocess, height, width, boxes)
    return (boxes - shift) / scale


def _onto(preprocess: Preprocess, height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Times which (4,), plus which (4,), coordinates of the model's input are those of the picture."""
    y, x = axes(preprocess, height, width, like)
    scale = [axis.box / axis.cells for axis in (x, y)]
    before = [(side - axis.box) / 2 for side, axis in ((width, x), (height, y))]
    shift = [b - axis.start * s for b, axis, s in zip(before, (x, y), scale, strict=True)]
    return torch.stack(scale * 2), torch.stack(shift * 2)


def logits_of_classes(classes: Tensor, count: int) -> Tensor:
    """Classes (B, H, W) as logits (B, K, H, W) of a model that is sure of them."""
    return SURE * F.one_hot(classes.long(), count).movedim(-1, 1).float()


def rows_of_boxes(boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (B, N, 4) and scores (B, N, K) as rows (B, N, 10 + K) whose reference is the box itself."""
    sides = torch.tensor(size, dtype=boxes.dtype).expand(*boxes.shape[:2], 2)
    return torch.cat([torch.zeros_like(boxes), boxes, sides, scores.clamp(1e-13, 1 - 1e-7).logit()], 2)


def rows_of_detections(detections: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """Detections (B, M, 6) as rows: a place for each, of its class alone; padding is of none."""
    label, score = detections[..., 5].long(), detections[..., 4]
    scores = torch.zeros(*label.shape, count)
    scores.scatter_(2, label.clamp(min=0).unsqueeze(2), score.unsqueeze(2) * (label >= 0).unsqueeze(2))
    return rows_of_boxes(detections[..., :4], scores, size)


def parts_of(answers: list[Tensor], answer: str) -> list[Tensor]:
    """Outputs in parts whose numbers are of one kind, so that an error is held against its own: the columns of rows.

    Of joints it is what they were read from: a place jumps where two cells are nearly as high.
    """
    if answer == "joints":
        return answers[1:]
    if answer != "rows":
        return answers
    return list(answers[0].split([4, BEFORE_LOGITS - 4, answers[0].shape[2] - BEFORE_LOGITS], 2))

"""Batches of noise with targets to learn from, for what is timed before any data is read."""

from __future__ import annotations

import torch
from torch import Tensor

from srattn.data.dense.object_masks import ObjectMasks
from srattn.data.dense.target import Target, stacked
from srattn.data.loader import Batch
from srattn.engine.config import ResolvedConfig
from srattn.ops.run_lengths import encode_runs
from srattn.tasks.depth import MAX_DEPTH
from srattn.tasks.models import MASK_HEADS, targets_of
from srattn.tasks.pose.rows import join_target

OBJECTS = 8
"""Of an image with boxes; COCO has 7 in the mean."""


def made_up(config: ResolvedConfig, classes: int, batch: int) -> Batch:
    """Images of the size that a run trains with, and targets of the kind and amount that its task learns from."""
    side, kind = config.size, targets_of(config.task)
    images = torch.randn(batch, config.channels, side, side)
    if kind == "masks":
        labels = torch.randint(0, classes, (batch, side, side))
    elif kind == "depths":
        labels = (1 - torch.rand(batch, side, side)) * float(config.head_options.get("max_depth", MAX_DEPTH))
    elif kind == "joints":
        labels = join_target(_joints(batch, classes, side), (side, side))
    elif kind == "boxes":
        masks = config.head in MASK_HEADS
        labels = stacked([_objects(classes, side, masks) for _ in range(batch)])
    else:
        labels = torch.randint(0, classes, (batch,))
    return Batch(images, labels, torch.arange(batch))


def _joints(batch: int, classes: int, side: int) -> Tensor:
    """(B, K, 3), all of them visible."""
    return torch.cat([side * torch.rand(batch, classes, 2), torch.full((batch, classes, 1), 2.0)], 2)


def _objects(classes: int, side: int, masks: bool) -> Target:
    """Boxes from a sixteenth to a quarter of the image's side, of which the masks fill all."""
    sides = side * (1 / 16 + torch.rand(OBJECTS, 2) * 3 / 16)
    corner = torch.rand(OBJECTS, 2) * (side - sides)
    labels = torch.randint(0, classes, (OBJECTS, 1)).float()
    boxes = torch.cat([corner, corner + sides, labels], 1)
    if not masks:
        return Target(boxes=boxes)
    runs = []
    for x1, y1, x2, y2 in boxes[:, :4].round().int().tolist():
        mask = torch.zeros(side, side, dtype=torch.bool)
        mask[y1:y2, x1:x2] = True
        runs.append(encode_runs(mask))
    return Target(boxes=boxes, masks=ObjectMasks.of((side, side), runs))

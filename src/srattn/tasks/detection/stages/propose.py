"""From what the first stage says of anchors to the boxes that the second looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.heads.rpn import Regions
from srattn.ops.boxes import clip_boxes
from srattn.ops.nms import nms
from srattn.tasks.detection.coding import boxes_of_steps

OVERLAP = 0.7
"""Of two proposals of a map that overlap by more (as IoU), the better alone (arXiv:1506.01497, section 3.3)."""


@torch.no_grad()
def propose(regions: Regions, size: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """The best boxes of each image, without gradients: the second stage does not teach the first by them.

    Each map's best `count` anchors stand for election; those of a map that overlap a better one drop out.

    Args:
        size: (height, width) of the images.
        count: boxes of an image.

    Returns:
        Boxes float32 (B, P, 4) within the image, best first, P at most `count`, filled up with boxes of zeros; and
        bool (B, P), which are none of these.
    """
    places, levels, start = [], [], 0
    for level, length in enumerate(regions.counts):
        best = regions.logits[:, start : start + length].topk(min(count, length), 1).indices + start
        places.append(best)
        levels.append(torch.full_like(best[0], level))
        start += length
    place, level = torch.cat(places, 1), torch.cat(levels)
    steps = regions.steps.gather(1, place.unsqueeze(2).expand(-1, -1, 4)).float()
    boxes = clip_boxes(boxes_of_steps(regions.anchors[place], steps), int(size[0]), int(size[1]))
    scores = regions.logits.gather(1, place).float()
    out = boxes.new_zeros(len(boxes), min(count, place.shape[1]), 4)
    there = torch.zeros(out.shape[:2], dtype=torch.bool, device=out.device)
    for number, whole in enumerate((boxes[..., 2:] > boxes[..., :2]).all(2)):
        some = whole.nonzero().squeeze(1)
        kept = some[nms(boxes[number, some], scores[number, some], OVERLAP, level[some], count)]
        out[number, : len(kept)], there[number, : len(kept)] = boxes[number, kept], True
    return out, there

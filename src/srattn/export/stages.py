"""Faster and Mask R-CNN as a graph: what `propose` and `answer` of `srattn.tasks.detection.stages` do, at one size.

How many boxes suppression leaves, and which map each is read from, depends on the picture: these two steps are
operators of their own (`srattn.export.operators`), all others are torch's.

A file is written with the outputs of all steps, each of which `srattn.export.verify_stages` holds against the model,
given the file's own answer to the step before; of these the last alone stay in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.export.operators import align_regions, unsuppressed
from srattn.export.options import WITH_NMS, Options
from srattn.heads.mask_rcnn import FasterRCNNHead, MaskRCNNHead
from srattn.heads.roi import map_of_boxes
from srattn.heads.rpn import Regions
from srattn.ops.boxes import box_area, clip_boxes
from srattn.tasks.detection.coding import boxes_of_steps
from srattn.tasks.detection.decode import Choice, surest
from srattn.tasks.detection.stages.answers import OVERLAP, SCORE
from srattn.tasks.detection.stages.model import TwoStageModel
from srattn.tasks.detection.stages.propose import OVERLAP as PROPOSAL_OVERLAP

STEPS = ("places", "objectness", "proposals", "sources", "scores", "boxes")
"""What a file says on the way, in this order, before `outputs_of`: `First`, proposals and their anchors, and of each
proposal the score and the box of every class."""
FOUND = "found"
"""Where detections are in pixels of the picture, the same in pixels of the model's input."""
PRECISIONS = ("float32", "float16")


class First(NamedTuple):
    """What the first stage says of every anchor: boxes (B, N, 4) within the image, logits (B, N)."""

    places: Tensor
    objectness: Tensor


def settled(options: Options) -> Options:
    """Options for a model of two stages, whose only answer are detections.

    Raises:
        SrattnError: what such a file cannot be.
    """
    if options.outputs not in ("", "detections"):
        raise SrattnError(
            "a detector of two stages chooses boxes twice, the first time to know what its second stage looks at: its "
            f"file answers with detections alone; leave out --outputs and --nms out, got {options.outputs}"
        )
    if options.format not in WITH_NMS:
        raise SrattnError(
            f"a detector of two stages can be exported to {' and '.join(WITH_NMS)}: {options.format} has no step that "
            "suppresses boxes; of its backbone --task features exports the maps"
        )
    if options.dynamic:
        raise SrattnError(
            "a detector of two stages is exported at one size, for which its proposals are counted: leave out "
            f"--dynamic, got {','.join(options.dynamic)}"
        )
    if options.precision not in PRECISIONS:
        raise SrattnError(
            f"--precision of a detector of two stages is {' or '.join(PRECISIONS)}, got {options.precision!r}: rounded "
            "more coarsely its first stage proposes other boxes, of which nothing could be held against the model"
        )
    return dataclasses.replace(options, outputs="detections")


def outputs_of(model: TwoStageModel) -> list[str]:
    """What stays in a file: detections (B, D, 6), and the masks (B, D, S, S) of a model that has them."""
    return ["detections", *(["masks"] if model.has_masks else [])]


def all_outputs_of(model: TwoStageModel, pictured: bool) -> list[str]:
    """What a file answers while it is verified."""
    return [*STEPS, *([FOUND] if pictured else []), *outputs_of(model)]


def stages_of(model: TwoStageModel, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Images to `STEPS`, and to `outputs_of` in pixels of the images."""
    head, size = cast(FasterRCNNHead, model.head), (images.shape[2], images.shape[3])
    maps = model.features(images)
    regions = head.rpn(maps)
    first = first_stage(regions, size)
    proposals, sources = proposals_of(first, regions.counts, head.proposals)
    scores, boxes = second_stage(head, maps, proposals, sources >= 0, size)
    found = detections_of(scores, boxes, choice_of(head))
    masks = [masks_of(head, maps, found)] if isinstance(head, MaskRCNNHead) else []
    return [*first, proposals, sources, scores, boxes], [found, *masks]


def choice_of(head: FasterRCNNHead) -> Choice:
    """As `answer` chooses."""
    return Choice(SCORE, OVERLAP, max(1000, head.answers), head.answers)


def first_stage(regions: Regions, size: tuple[int, int]) -> First:
    boxes = boxes_of_steps(regions.anchors.to(regions.steps.dtype), regions.steps)
    return First(clip_boxes(boxes, *size), regions.logits)


def proposals_of(first: First, counts: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
    """Proposals (B, P, 4), best first, and the anchor of each, int64 (B, P); boxes of zeros fill up, of anchor -1.

    Args:
        counts: anchors of each map.
        most: proposals; of each map as many stand for election.
    """
    anchors, levels, start = [], [], 0
    for level, length in enumerate(counts):
        best = first.objectness[:, start : start + length].topk(min(most, length), 1).indices + start
        anchors.append(best)
        levels.append(torch.full_like(best, level))
        start += length
    anchor, level = torch.cat(anchors, 1), torch.cat(levels, 1)
    order = first.objectness.gather(1, anchor).topk(anchor.shape[1], 1).indices
    anchor, level = anchor.gather(1, order), level.gather(1, order)
    boxes = _at(first.places, anchor)
    kept = unsuppressed(boxes, level, _whole(boxes), PROPOSAL_OVERLAP, len(counts), most)
    row, there = first_of(kept, min(most, anchor.shape[1]))
    return _at(boxes, row) * there.unsqueeze(2), torch.where(there, anchor.gather(1, row), -1)


def second_stage(
    head: FasterRCNNHead, maps: Sequence[Tensor], proposals: Tensor, there: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Scores (B, P, K) and boxes (B, P, K, 4) within the image of proposals (B, P, 4)."""
    batch, count = proposals.shape[:2]
    flat = align(head, maps, proposals.flatten(0, 1), _images(proposals).flatten(), head.box.size)
    logits, steps = head.box(flat.unflatten(0, (batch, count)))
    boxes = boxes_of_steps(proposals.unsqueeze(2).to(steps.dtype), steps)
    return logits.softmax(2)[..., :-1] * there.unsqueeze(2), clip_boxes(boxes, *size)


def detections_of(scores: Tensor, boxes: Tensor, choice: Choice) -> Tensor:
    """Detections (B, most, 6), best first, class -1 fills up."""
    best, row, label = surest(scores, choice.candidates)
    boxes = _at(boxes.flatten(1, 2), row * scores.shape[2] + label)
    able = _whole(boxes) & (best >= choice.score)
    kept = unsuppressed(boxes, label, able, choice.overlap, scores.shape[2], choice.most)
    most = min(choice.most, best.shape[1])
    row, there = first_of(kept, most)
    kind = torch.where(there, label.gather(1, row), -1).to(best.dtype)
    found = torch.cat([_at(boxes, row), best.gather(1, row).unsqueeze(2)], 2) * there.unsqueeze(2)
    found = torch.cat([found, kind.unsqueeze(2)], 2)
    if most == choice.most:
        return found
    filling = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -1.0], device=found.device, dtype=found.dtype)
    return torch.cat([found, filling.expand(found.shape[0], choice.most - most, 6)], 1)


def masks_of(head: MaskRCNNHead, maps: Sequence[Tensor], detections: Tensor) -> Tensor:
    """Probabilities (B, D, S, S) of the class of each detection, over its box; zeros for what fills up."""
    batch, count = detections.shape[:2]
    there = detections[..., 5].flatten() >= 0
    row = there.nonzero().squeeze(1)
    flat = detections.flatten(0, 1)[row]
    found = head.mask(align(head, maps, flat[:, :4], _images(detections).flatten()[row], head.mask_size).unsqueeze(0))[
        0
    ]
    label = flat[:, 5].long().view(-1, 1, 1, 1).expand(-1, 1, found.shape[2], found.shape[3])
    own = found.gather(1, label).squeeze(1).sigmoid()
    whole = own.new_zeros(batch * count, own.shape[1], own.shape[2]).index_put((row,), own)
    return whole.unflatten(0, (batch, count))


def align(head: FasterRCNNHead, maps: Sequence[Tensor], boxes: Tensor, image: Tensor, size: int) -> Tensor:
    """`srattn.heads.roi.pyramid_align` of boxes (N, 4), of the images of those numbers."""
    strides = head.strides[: head.read]
    own = torch.where(box_area(boxes) > 0, map_of_boxes(boxes, strides), -1)
    return align_regions(list(maps[: head.read]), boxes, image, own, strides, size)


def first_of(kept: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The first `most` places of each row where bool (B, C) is true: int64 (B, most), and which are there."""
    count = kept.shape[1]
    ranks = torch.arange(count, 0, -1, device=kept.device, dtype=torch.float32)
    rank, place = (ranks * kept).topk(most, 1)
    return place, rank > 0


def _images(boxes: Tensor) -> Tensor:
    """The number of its image for each of (B, R, 4): int64 (B, R)."""
    return torch.arange(boxes.shape[0], device=boxes.device).unsqueeze(1).expand(-1, boxes.shape[1])


def _whole(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] > boxes[..., :2]).all(2)


def _at(values: Tensor, places: Tensor) -> Tensor:
    """(B, N, 4) at int64 (B, C): (B, C, 4)."""
    return values.gather(1, places.unsqueeze(2).expand(-1, -1, values.shape[2]))

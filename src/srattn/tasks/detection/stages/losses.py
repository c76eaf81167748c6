"""What both stages minimise, image by image, as sums that add up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.heads.roi import BoxHead
from srattn.heads.rpn import Regions
from srattn.ops.run_lengths import runs_at
from srattn.tasks.detection.assign import IGNORED, ignored_targets, valid_targets
from srattn.tasks.detection.coding import steps_of_boxes
from srattn.tasks.detection.losses import BETA, Number
from srattn.tasks.detection.stages.sample import Sample, sample_anchors

SUMS = ("objectness", "proposal", "anchors", "class", "box", "regions", "mask", "masks")
"""The columns of what a model of two stages gives in training: parts of the loss, and what they are divided by."""
_SAMPLES = 2  # of a true mask for each side of a cell
_HEIGHT = 5  # the column of targets from which masks begin: the height of the image, then lengths of runs


def region_sums(regions: Regions, targets: Tensor) -> Tensor:
    """The first stage (arXiv:1506.01497, section 3.1.2): (B, 3), cross-entropy of whether there is an object, smooth
    L1 of the steps to it, and the anchors that were sampled."""
    valid, ignored, found = valid_targets(targets), ignored_targets(targets), []
    for number in range(len(targets)):
        boxes = targets[number, valid[number], :4].float()
        areas = targets[number, ignored[number], :4].float()
        places, own = sample_anchors(regions.anchors, boxes, areas)
        logits, there = regions.logits[number, places].float(), own >= 0
        some = places[there]
        wanted = steps_of_boxes(regions.anchors[some], boxes[own[there]])
        steps = regions.steps[number, some].float()
        found.append(
            torch.stack(
                [
                    F.binary_cross_entropy_with_logits(logits, there.to(logits), reduction="sum"),
                    F.smooth_l1_loss(steps, wanted, beta=BETA, reduction="sum"),
                    logits.new_tensor(float(len(places))),
                ]
            )
        )
    return torch.stack(found)


def box_sums(logits: Tensor, steps: Tensor, sample: Sample, targets: Tensor) -> Tensor:
    """The second stage's boxes (arXiv:1504.08083, section 2.3): (B, 3), cross-entropy over classes and background,
    smooth L1 of the steps from the box to the object in units of `BoxHead.scales`, and the boxes.

    Args:
        logits, steps: (B, R, K + 1) and (B, R, K, 4), as `BoxHead` gives them for the sample.
    """
    there, used = sample.rows >= 0, sample.rows != IGNORED
    true = _own(targets, sample)
    labels = torch.where(there, true[..., 4].long(), logits.shape[2] - 1)
    entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none") * used
    image, place = there.nonzero().unbind(1)
    wanted = steps_of_boxes(sample.boxes[image, place], true[image, place, :4].float())
    scales = steps.new_tensor(BoxHead.scales)
    off = F.smooth_l1_loss(steps[image, place, labels[image, place]] / scales, wanted / scales, reduction="none")
    sums = off.new_zeros(len(targets)).index_add(0, image, off.sum(1))
    return torch.stack([entropy.sum(1), sums, used.sum(1).to(sums)], 1)


def mask_sums(logits: Tensor, sample: Sample, targets: Tensor) -> Tensor:
    """Masks (arXiv:1703.06870, section 3): (B, 2), the mean over a mask's cells of the cross-entropy of the true
    class's, and the masks, those of objects whose mask is known.

    Args:
        logits: (B, P, K, S, S) of the first P boxes of the sample.
    """
    own = sample.rows[:, : logits.shape[1]]
    true = _own(targets, sample)[:, : logits.shape[1]]
    known = (own >= 0) & has_masks(true)
    image, place = known.nonzero().unbind(1)
    rows = true[image, place]
    wanted = mask_targets(sample.boxes[image, place], rows, logits.shape[3])
    found = logits[image, place, rows[:, 4].long()]
    off = F.binary_cross_entropy_with_logits(found, wanted.to(found), reduction="none").mean((1, 2))
    # The product with 0 keeps the head in the graph where no mask is known.
    sums = 0.0 * logits[:, :1].sum((1, 2, 3, 4)) + off.new_zeros(len(targets)).index_add(0, image, off)
    return torch.stack([sums, known.sum(1).to(sums)], 1)


def has_masks(targets: Tensor) -> Tensor:
    """Which rows (..., 5 or 6 + L) come with a mask: (...)."""
    return targets[..., _HEIGHT + 1 :].sum(-1) > 0


def mask_targets(boxes: Tensor, rows: Tensor, size: int) -> Tensor:
    """What the masks of objects are within boxes: a cell is inside if half of the pixels under its samples are.

    Args:
        boxes: (N, 4).
        rows: (N, 6 + L) of targets with a mask.
        size: of the result.

    Returns:
        bool (N, size, size).
    """
    if not len(rows):
        return torch.zeros(0, size, size, dtype=torch.bool, device=rows.device)
    runs, height = rows[:, _HEIGHT + 1 :].long(), rows[:, _HEIGHT].long().unsqueeze(1)
    width = runs.sum(1, keepdim=True) // height
    count = size * _SAMPLES
    steps = (torch.arange(count, device=boxes.device) + 0.5) / count
    low, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    xs = (low[:, :1] + sides[:, :1] * steps).long().clamp(min=0).minimum(width - 1)
    ys = (low[:, 1:] + sides[:, 1:] * steps).long().clamp(min=0).minimum(height - 1)
    places = xs.unsqueeze(1) * height.unsqueeze(2) + ys.unsqueeze(2)  # (N, rows, columns)
    inside = runs_at(runs, places.flatten(1)).view(-1, size, _SAMPLES, size, _SAMPLES)
    return inside.float().mean((2, 4)) >= 0.5


def combine(sums: Mapping[str, Number]) -> dict[str, Number]:
    """The parts of the loss, each divided by what there was of it, and the "loss", their sum."""
    found = {
        "objectness": sums["objectness"] / _at_least_one(sums["anchors"]),
        "proposal": sums["proposal"] / _at_least_one(sums["anchors"]),
        "class": sums["class"] / _at_least_one(sums["regions"]),
        "box": sums["box"] / _at_least_one(sums["regions"]),
        "mask": sums["mask"] / _at_least_one(sums["masks"]),
    }
    first, *others = found.values()
    for value in others:
        first = first + value
    return {"loss": first, **found}


def _own(targets: Tensor, sample: Sample) -> Tensor:
    """The rows of the targets (B, R, columns) that the boxes of a sample are of; of others anything."""
    if not targets.shape[1]:
        return targets.new_zeros(*sample.rows.shape, targets.shape[2])
    return targets.gather(1, sample.rows.clamp(min=0).unsqueeze(2).expand(-1, -1, targets.shape[2]))


def _at_least_one(value: Number) -> Number:
    return value.clamp(min=1.0) if isinstance(value, Tensor) else max(value, 1.0)

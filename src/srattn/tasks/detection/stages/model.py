"""Faster R-CNN and Mask R-CNN on any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from srattn.heads.mask_rcnn import FasterRCNNHead, MaskRCNNHead
from srattn.tasks.detection.pyramid_model import MAPS, DetectionModel, body_and_neck, place_of
from srattn.tasks.detection.stages.answers import answer
from srattn.tasks.detection.stages.losses import box_sums, mask_sums, region_sums
from srattn.tasks.detection.stages.propose import propose
from srattn.tasks.detection.stages.sample import sample_regions


class TwoStageModel(DetectionModel):
    """A detector whose second stage learns from the targets, see `srattn.tasks.detection.stages`."""

    needs_targets = True
    """Whoever trains calls it with images and targets."""

    @property
    def has_masks(self) -> bool:
        return isinstance(self.head, MaskRCNNHead)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """(B, C, H, W), H and W from the backbone's `min_size` up, to answers, see `answers.answer`.

        With `targets` (B, M, 5 or 6 + L), see `TwoStage`, to the sums of the losses of each image, float32 (B, 8), see
        `losses.SUMS`; that draws from torch's random numbers.
        """
        head, size = cast(FasterRCNNHead, self.head), images.shape[2:]
        maps = self.features(images)
        regions = head.rpn(maps)
        proposals, there = propose(regions, size, head.proposals)
        if targets is None:
            return answer(head, maps, proposals, there, size)
        sample = sample_regions(proposals, there, targets, head.regions)
        logits, steps = head.classify(maps, sample.boxes)
        masks = None
        if isinstance(head, MaskRCNNHead):
            masks = head.masks(maps, sample.boxes[:, : sample.positives])
        with torch.autocast(images.device.type, enabled=False):
            sums = [region_sums(regions, targets), box_sums(logits, steps, sample, targets)]
            sums.append(sums[0].new_zeros(len(images), 2) if masks is None else mask_sums(masks, sample, targets))
            return torch.cat(sums, 1)


def faster_rcnn(
    backbone: str = "pvt_v2_b0",
    num_classes: int = 80,
    *,
    width: int = 256,
    first: int = 0,
    levels: int = 5,
    extra_from: str = "pool",
    extra_relu: bool = True,
    hidden: int = 1024,
    size: int = 7,
    base: float = 8.0,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    proposals: int = 1000,
    regions: int = 512,
    answers: int = 100,
    **options: Any,
) -> TwoStageModel:
    """Faster R-CNN (arXiv:1506.01497) with a feature pyramid (arXiv:1612.03144), fresh or on published weights.

    Args:
        backbone: a registered name; any family will do.
        num_classes: of the objects.
        width: channels of the pyramid.
        first: the backbone's map that the pyramid begins with: 0 is the finest, of stride 4, as published.
        levels: maps of the pyramid; boxes are read from those that the backbone has too.
        extra_from, extra_relu: see `srattn.heads.fpn.FPN`.
        hidden, size, base, ratios, proposals, regions, answers: see `srattn.heads.mask_rcnn.FasterRCNNHead`.
        options: of the backbone, as `srattn.create_model` takes them; `pretrained` too.
    """
    body, neck, strides = body_and_neck(backbone, width, first, levels, extra_from, extra_relu, options)
    numbers = {"hidden": hidden, "size": size, "base": base, "ratios": ratios}
    numbers |= {"proposals": proposals, "regions": regions, "answers": answers}
    head = FasterRCNNHead(width, num_classes, strides, MAPS - first, **numbers, **place_of(options))
    return TwoStageModel(body, neck, head, first)


def mask_rcnn(
    backbone: str = "pvt_v2_b0",
    num_classes: int = 80,
    *,
    width: int = 256,
    first: int = 0,
    levels: int = 5,
    extra_from: str = "pool",
    extra_relu: bool = True,
    hidden: int = 1024,
    size: int = 7,
    base: float = 8.0,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    proposals: int = 1000,
    regions: int = 512,
    answers: int = 100,
    mask_size: int = 14,
    mask_hidden: int = 256,
    mask_convs: int = 4,
    norm: str = "none",
    **options: Any,
) -> TwoStageModel:
    """Mask R-CNN (arXiv:1703.06870), set up as PVT's authors do (arXiv:2102.12122, section 5.2).

    Args:
        backbone, num_classes, width, first, levels, extra_from, extra_relu, options: as of `faster_rcnn`.
        hidden, size, base, ratios, proposals, regions, answers: as of `faster_rcnn`.
        mask_size, mask_hidden, mask_convs, norm: see `srattn.heads.mask_rcnn.MaskRCNNHead`.
    """
    body, neck, strides = body_and_neck(backbone, width, first, levels, extra_from, extra_relu, options)
    numbers: dict[str, Any] = {"hidden": hidden, "size": size, "base": base, "ratios": ratios}
    numbers |= {"proposals": proposals, "regions": regions, "answers": answers}
    numbers |= {"mask_size": mask_size, "mask_hidden": mask_hidden, "mask_convs": mask_convs, "norm": norm}
    head = MaskRCNNHead(width, num_classes, strides, MAPS - first, **numbers, **place_of(options))
    return TwoStageModel(body, neck, head, first)

"""RetinaNet: class and box of every anchor (arXiv:1708.02002, section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.heads.rows import cells, join_rows
from srattn.heads.segformer import check_maps
from srattn.heads.towers import Tower, by_place, check_detector, output


class RetinaNetHead(nn.Module):
    """For each anchor of each map: class logits, and the step from the anchor to the box.

    The step is (dx, dy) of the middle in sizes of the anchor and the logarithm of the factor on each of its sides
    (arXiv:1506.01497, equation 2).

    Parameters: `class_tower`, `box_tower`, `classifier`, `regressor`.

    Args:
        width: channels of every map, as an FPN gives them.
        num_classes: of the objects.
        strides: of the maps in pixels of the image, finest first; each is twice the one before.
        convs: in each tower.
        norm: after each of them, "none" as published, "group" or "batch".
        base: size of the smallest anchor of a map in strides: 4 is 32 pixels at stride 8.
        scales: anchors of each shape at a place, evenly spaced in an octave.
        ratios: height / width of the anchors.
        offset: where in its cell an anchor's middle lies: 0 is the upper left corner, as published detectors on these
            backbones have it; 0.5 the middle.
    """

    kind: ClassVar[str] = "retinanet"

    def __init__(
        self,
        width: int,
        num_classes: int,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        *,
        convs: int = 4,
        norm: str = "none",
        base: float = 4.0,
        scales: int = 3,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        offset: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_detector(self.kind, width, num_classes, strides, convs)
        if base <= 0 or scales < 1 or not ratios or min(ratios) <= 0 or not 0 <= offset <= 1:
            raise SrattnError(
                "anchors need a positive size, a scale, positive ratios and an offset within the cell, got "
                f"{base=}, {scales=}, ratios={list(ratios)}, {offset=}"
            )
        factory = {"device": device, "dtype": dtype}
        self.config = {
            "kind": self.kind,
            "num_classes": num_classes,
            "convs": convs,
            "norm": norm,
            "base": base,
            "scales": scales,
            "ratios": list(ratios),
            "offset": offset,
        }
        self.width, self.num_classes, self.strides, self.offset = width, num_classes, list(strides), offset
        self.shapes = anchor_shapes(base, scales, ratios)
        self.class_tower = Tower(width, convs, norm, **factory)
        self.box_tower = Tower(width, convs, norm, **factory)
        self.classifier = output(width, len(self.shapes) * num_classes, rare=0.01, **factory)
        self.regressor = output(width, len(self.shapes) * 4, **factory)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """maps [(B, width, H_n, W_n)], finest first, of images of `size` (H, W).

        Returns rows (B, N, 10 + num_classes), see `srattn.heads.rows`: finest map first, row by row, the anchors of a
        place one after the other. The reference is the anchor, the regression the step from it.
        """
        check_maps(maps, [self.width] * len(self.strides))
        regression, reference, logits = [], [], []
        for x, stride in zip(maps, self.strides, strict=True):
            logits.append(by_place(self.classifier(self.class_tower(x)), self.num_classes))
            regression.append(by_place(self.regressor(self.box_tower(x)), 4))
            reference.append(self.anchors(x, stride))
        return join_rows(torch.cat(regression, 1), torch.cat(reference), size, torch.cat(logits, 1))

    def anchors(self, x: Tensor, stride: int) -> Tensor:
        """Of a map (B, C, H, W): float32 (H * W * anchors of a place, 4)."""
        return anchors_of(x, stride, self.shapes, self.offset)


def anchors_of(x: Tensor, stride: int, shapes: Sequence[tuple[float, float]], offset: float) -> Tensor:
    """The anchors of a map (B, C, H, W), float32 (H * W * len(shapes), 4): row by row, those of a place one after the
    other.

    Args:
        shapes: (width, height) of each in strides.
        offset: where in its cell an anchor's middle lies, from 0 to 1.
    """
    middle = cells(x.shape[2], x.shape[3], stride, x)[:, :2] + offset * stride
    sides = torch.tensor(shapes, dtype=torch.float32, device=x.device) * (stride / 2)  # halves: (A, 2)
    corner = torch.cat([-sides, sides], 1)
    return (middle.repeat(1, 2).unsqueeze(1) + corner).flatten(0, 1)


def anchor_shapes(base: float, scales: int, ratios: Sequence[float]) -> list[tuple[float, float]]:
    """(width, height) in strides of the anchors at a place, ratio by ratio; those of a scale have one area."""
    sizes = [base * 2 ** (n / scales) for n in range(scales)]
    return [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for ratio in ratios for size in sizes]

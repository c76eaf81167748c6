"""The region proposal network: where anything is, whatever it is (arXiv:1506.01497, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.heads.retinanet import anchor_shapes, anchors_of
from srattn.heads.segformer import check_maps
from srattn.heads.towers import by_place, output


class Regions(NamedTuple):
    """What is said of the anchors, finest map first, row by row, those of a place one after the other.

    Attributes:
        logits: (B, N), whether there is an object.
        steps: (B, N, 4), from the anchor to its box; see `srattn.heads.retinanet`.
        anchors: float32 (N, 4), x1, y1, x2, y2 in pixels of the image.
        counts: anchors of each map.
    """

    logits: Tensor
    steps: Tensor
    anchors: Tensor
    counts: list[int]


class RPNHead(nn.Module):
    """A 3x3 convolution with ReLU and two pointwise ones, shared by all maps (arXiv:1612.03144, section 4.1).

    Parameters: `conv`, `classifier`, `regressor`.

    Args:
        width: channels of every map, as an FPN gives them.
        strides: of the maps in pixels of the image, finest first.
        base: size of a map's anchors in strides: 8 is 32 pixels at stride 4.
        ratios: height / width of the anchors.
    """

    def __init__(
        self,
        width: int,
        strides: Sequence[int],
        *,
        base: float = 8.0,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if base <= 0 or not ratios or min(ratios) <= 0:
            raise SrattnError(f"anchors need a positive size and positive ratios, got {base=}, ratios={list(ratios)}")
        factory = {"device": device, "dtype": dtype}
        self.width, self.strides, self.shapes = width, list(strides), anchor_shapes(base, 1, ratios)
        self.conv = output(width, width, **factory)
        self.classifier = nn.Conv2d(width, len(self.shapes), 1, **factory)
        self.regressor = nn.Conv2d(width, 4 * len(self.shapes), 1, **factory)
        for conv in (self.classifier, self.regressor):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> Regions:
        """maps [(B, width, H_n, W_n)], finest first."""
        check_maps(maps, [self.width] * len(self.strides))
        logits, steps, anchors = [], [], []
        for x, stride in zip(maps, self.strides, strict=True):
            found = F.relu(self.conv(x))
            logits.append(by_place(self.classifier(found), 1).squeeze(2))
            steps.append(by_place(self.regressor(found), 4))
            anchors.append(anchors_of(x, stride, self.shapes, 0.5))
        counts = [len(each) for each in anchors]
        return Regions(torch.cat(logits, 1), torch.cat(steps, 1), torch.cat(anchors), counts)

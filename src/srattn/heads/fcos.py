"""FCOS: a box from every place of the image, without anchors (arXiv:1904.01355; set up as in arXiv:2006.09214)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from srattn.heads.rows import cells, join_rows
from srattn.heads.segformer import check_maps
from srattn.heads.towers import Tower, by_place, check_detector, output

_MOST = 8.0  # exp of it is 2981 strides: longer than any image, and its square is far from overflowing


class FCOSHead(nn.Module):
    """For each cell of each map: class logits, a centreness, and the distances of the box's edges from its middle.

    As in the later set-up, centreness is told from the regression's tower and distances are in units of the stride.
    They are exp(s_n x), with a learnt s_n for map n, as the first paper has it (the later code has ReLU in its place,
    whose gradient vanishes where x is negative).

    Parameters: `class_tower`, `box_tower`, `classifier`, `regressor`, `centre`, `scales` (maps,).

    Args:
        width: channels of every map, as an FPN gives them.
        num_classes: of the objects.
        strides: of the maps in pixels of the image, finest first; each is twice the one before.
        convs: in each tower.
        norm: after each of them, "group", "batch" or "none".
    """

    kind: ClassVar[str] = "fcos"

    def __init__(
        self,
        width: int,
        num_classes: int,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        *,
        convs: int = 4,
        norm: str = "group",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_detector(self.kind, width, num_classes, strides, convs)
        factory = {"device": device, "dtype": dtype}
        self.config = {"kind": self.kind, "num_classes": num_classes, "convs": convs, "norm": norm}
        self.width, self.num_classes, self.strides = width, num_classes, list(strides)
        self.class_tower = Tower(width, convs, norm, **factory)
        self.box_tower = Tower(width, convs, norm, **factory)
        self.classifier = output(width, num_classes, rare=0.01, **factory)
        self.regressor = output(width, 4, **factory)
        self.centre = output(width, 1, **factory)
        self.scales = nn.Parameter(torch.ones(len(self.strides), **factory))

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """maps [(B, width, H_n, W_n)], finest first, of images of `size` (H, W).

        Returns rows (B, N, 11 + num_classes), see `srattn.heads.rows`: the map's cells one after the other, row by
        row, finest map first. The reference is the cell; the regression the distances left, top, right and bottom of
        its middle.
        """
        check_maps(maps, [self.width] * len(self.strides))
        regression, reference, logits, centreness = [], [], [], []
        for n, (x, stride) in enumerate(zip(maps, self.strides, strict=True)):
            boxes = self.box_tower(x)
            logits.append(by_place(self.classifier(self.class_tower(x)), self.num_classes))
            regression.append((by_place(self.regressor(boxes), 4).float() * self.scales[n]).clamp(max=_MOST).exp())
            centreness.append(self.centre(boxes).flatten(1))
            reference.append(cells(x.shape[2], x.shape[3], stride, x))
        return join_rows(
            torch.cat(regression, 1), torch.cat(reference), size, torch.cat(logits, 1), torch.cat(centreness, 1)
        )

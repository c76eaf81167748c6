"""UPerNet, unified perceptual parsing (arXiv:1807.10221, section 3.1), its part for semantic segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.heads.parts import ConvNormReLU, PixelClassifier, check_numbers, enlarged
from srattn.heads.segformer import check_maps
from srattn.ops.pyramid import pooled_levels


class PooledContext(nn.Module):
    """Pyramid pooling (arXiv:1612.01105, section 3.2): a map with its means over 1, 2 x 2, ... parts, fused.

    A map smaller than a number of parts is pooled all the same: parts then overlap, as adaptive pooling has them.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        scales: Sequence[int],
        *,
        norm: str = "batch",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.scales = tuple(scales)
        self.projections = nn.ModuleList(ConvNormReLU(channels, width, 1, norm=norm, **factory) for _ in scales)
        self.fuse = ConvNormReLU(channels + len(self.scales) * width, width, norm=norm, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, H, W)."""
        means = pooled_levels(x.movedim(1, -1), [(scale, scale) for scale in self.scales])
        parts = [
            enlarged(project(mean.movedim(-1, 1)), x.shape[2:])
            for project, mean in zip(self.projections, means, strict=True)
        ]
        return self.fuse(torch.cat([x, *parts], 1))


class AuxiliaryHead(nn.Module):
    """A convolution and a classifier on one map (arXiv:1411.4038), for training alone."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        width: int,
        *,
        norm: str = "batch",
        drop_rate: float = 0.1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.conv = ConvNormReLU(channels, width, norm=norm, **factory)
        self.classifier = PixelClassifier(width, num_classes, drop_rate, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to logits (B, num_classes, H, W)."""
        return self.classifier(self.conv(x))


class UPerNetHead(nn.Module):
    """A feature pyramid whose coarsest map has pooled context; all its maps are fused at the finest grid.

    The paper concatenates the enlarged maps and convolves them. A convolution is a sum over channels, so each map is
    convolved here by its own columns of that weight and the results are added: no concatenated map is ever written.
    With `auxiliary` a second head learns from the last map but one, as published: in training its logits, enlarged to
    the finest grid, follow those of the first in the channels, and `srattn.tasks.segmentation` weighs their loss. In
    evaluation it is not computed.

    Parameters: `context` for the coarsest map; `laterals.{n}` and `outputs.{n}` for the others, finest first; `fuse`,
    whose weight has its columns in the order of the maps; `classifier`; `auxiliary`, if there is one.

    Args:
        channels: of the feature maps, finest first, as `feature_info.channels()` gives them.
        num_classes: channels of the logits.
        width: of all maps inside.
        scales: numbers of parts, a side, that the coarsest map is pooled to.
        norm: "batch" or "group".
        drop_rate: dropout of whole channels before the classifier.
        auxiliary: the weight of the second head's loss, 0.4 as published; 0 is without.
        auxiliary_width: of the map inside of it.
    """

    kind: ClassVar[str] = "upernet"

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        *,
        width: int = 512,
        scales: Sequence[int] = (1, 2, 3, 6),
        norm: str = "batch",
        drop_rate: float = 0.1,
        auxiliary: float = 0.0,
        auxiliary_width: int = 256,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "width": width, "auxiliary_width": auxiliary_width}
        check_numbers(self.kind, channels, drop_rate=drop_rate, **sizes)
        if not 0 <= auxiliary < math.inf or (auxiliary and len(channels) < 2):
            raise SrattnError(
                f"auxiliary is a weight from 0 up, of a head on the last map but one; got {auxiliary} for "
                f"{len(channels)} map(s)"
            )
        if not scales or min(scales) < 1:
            raise SrattnError(f"scales are numbers of parts of at least 1, got {list(scales)}")
        factory = {"device": device, "dtype": dtype}
        self.config = {
            "kind": self.kind,
            "num_classes": num_classes,
            "width": width,
            "scales": list(scales),
            "norm": norm,
            "drop_rate": drop_rate,
        }
        if auxiliary:
            self.config |= {"auxiliary": auxiliary, "auxiliary_width": auxiliary_width}
        self.channels, self.num_classes, self.width = list(channels), num_classes, width
        self.auxiliary_weight = auxiliary
        finer = self.channels[:-1]
        self.context = PooledContext(self.channels[-1], width, scales, norm=norm, **factory)
        self.laterals = nn.ModuleList(ConvNormReLU(c, width, 1, norm=norm, **factory) for c in finer)
        self.outputs = nn.ModuleList(ConvNormReLU(width, width, norm=norm, **factory) for _ in finer)
        self.fuse = ConvNormReLU(len(self.channels) * width, width, norm=norm, **factory)
        self.classifier = PixelClassifier(width, num_classes, drop_rate, **factory)
        self.auxiliary: AuxiliaryHead | None = None
        if auxiliary:
            self.auxiliary = AuxiliaryHead(
                self.channels[-2], num_classes, auxiliary_width, norm=norm, drop_rate=drop_rate, **factory
            )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps [(B, C_n, H_n, W_n)], finest first. Returns logits (B, num_classes, H_0, W_0); in training with an
        auxiliary head (B, 2 * num_classes, H_0, W_0)."""
        check_maps(maps, self.channels)
        grid = maps[0].shape[2:]
        columns = self.fuse.conv.weight.split(self.width, dim=1)
        x = self.context(maps[-1])
        total: Tensor | None = None
        for n in reversed(range(len(maps))):
            out = x
            if n < len(maps) - 1:
                x = self.laterals[n](maps[n]) + enlarged(x, maps[n].shape[2:])
                out = self.outputs[n](x)
            part = F.conv2d(enlarged(out, grid) if n else out, columns[n], padding=1)
            total = part if total is None else total + part
        assert total is not None
        logits = self.classifier(self.fuse.finish(total))
        if self.auxiliary is None or not self.training:
            return logits
        return torch.cat([logits, enlarged(self.auxiliary(maps[-2]), grid)], 1)

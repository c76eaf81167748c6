"""Heads for poses of one person an image: heatmaps (arXiv:1804.06208) and SimCC (arXiv:2107.03332).

Their targets and answers are made by `srattn.heads.keypoints`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.heads.glpn import on_grid
from srattn.heads.keypoints import bins
from srattn.heads.parts import ConvNormReLU, check_numbers, enlarged, make_norm
from srattn.heads.segformer import check_maps
from srattn.ops.tracing import is_exporting

UPS = ("deconv", "bilinear")


class Doubling(nn.Module):
    """One step to a grid of twice the size: a transposed convolution, or enlarging and a convolution; norm, ReLU."""

    def __init__(
        self, in_channels: int, width: int, up: str, *, norm: str = "batch", device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.block: ConvNormReLU | None = None
        if up == "bilinear":
            self.block = ConvNormReLU(in_channels, width, norm=norm, **factory)
            return
        self.conv = nn.ConvTranspose2d(in_channels, width, 4, stride=2, padding=1, bias=False, **factory)
        self.norm = make_norm(norm, width, **factory)
        nn.init.normal_(self.conv.weight, std=0.001)  # as published

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, in_channels, h, w) to (B, width, *grid); what a transposed convolution makes too much of is cut."""
        if self.block is not None:
            return self.block(enlarged(x, grid))
        return F.relu(self.norm(on_grid(self.conv(x), grid[0], grid[1])))


class HeatmapHead(nn.Module):
    """A heatmap a joint on the grid of the finest map, from the coarsest map up by steps that double it.

    The paper's head has the steps alone ("simple baselines"); with `fuse` every finer map is added on the way, through
    a pointwise convolution, as a feature pyramid has it.

    Parameters: `steps.{n}` and `laterals.{n}` up to map n, finest first; `classifier`.

    Args:
        channels: of the feature maps, finest first, as `feature_info.channels()` gives them.
        num_joints: channels of the answer.
        width: of the steps.
        up: "deconv", transposed convolutions of 4x4 as published, or "bilinear" with a convolution of 3x3.
        fuse: add the finer maps.
        norm: "batch" or "group".
    """

    kind: ClassVar[str] = "heatmap"

    def __init__(
        self,
        channels: Sequence[int],
        num_joints: int,
        *,
        width: int = 256,
        up: str = "deconv",
        fuse: bool = True,
        norm: str = "batch",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_numbers(self.kind, channels, num_joints=num_joints, width=width)
        if up not in UPS:
            raise SrattnError(f"up is one of {', '.join(UPS)}, got {up!r}")
        factory = {"device": device, "dtype": dtype}
        self.config = {
            "kind": self.kind,
            "num_joints": num_joints,
            "width": width,
            "up": up,
            "fuse": fuse,
            "norm": norm,
        }
        self.channels, self.num_joints = list(channels), num_joints
        finer, last = self.channels[:-1], self.channels[-1]
        below = [*(width for _ in finer[1:]), last]
        self.steps = nn.ModuleList(
            Doubling(b, width, up, norm=norm, **factory) for b, _ in zip(below, finer, strict=False)
        )
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1, **factory) for c in finer if fuse)
        self.classifier = nn.Conv2d(width if finer else last, num_joints, 1, **factory)
        for conv in self.laterals:
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.classifier.weight, std=0.001)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps [(B, C_n, H_n, W_n)], finest first. Returns heatmaps (B, num_joints, H_0, W_0)."""
        check_maps(maps, self.channels)
        x = maps[-1]
        for n in reversed(range(len(self.steps))):
            x = self.steps[n](x, maps[n].shape[2:])
            if len(self.laterals):
                x = x + self.laterals[n](maps[n])
        return self.classifier(x)


class SimCCHead(nn.Module):
    """Where a joint lies as two classifications, over the columns and over the rows of the image, split finer.

    From the coarsest map alone, as published: a channel a joint, whose pixels are read by a linear map an axis. So it
    is made for images of one size.

    Parameters: `joints`, `columns`, `rows`.

    Args:
        channels: of the feature maps, finest first.
        num_joints: answers.
        size: height and width of the images.
        grid: height and width of the coarsest map.
        split: classes a pixel; height and width times this are whole numbers.
    """

    kind: ClassVar[str] = "simcc"

    def __init__(
        self,
        channels: Sequence[int],
        num_joints: int,
        *,
        size: Sequence[int],
        grid: Sequence[int],
        split: float = 2.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_numbers(
            self.kind, channels, num_joints=num_joints, height=size[0], width=size[1], rows=grid[0], columns=grid[1]
        )
        factory = {"device": device, "dtype": dtype}
        self.config = {
            "kind": self.kind,
            "num_joints": num_joints,
            "size": list(size),
            "grid": list(grid),
            "split": split,
        }
        self.channels, self.num_joints, self.grid = list(channels), num_joints, tuple(grid)
        self.joints = nn.Conv2d(self.channels[-1], num_joints, 1, **factory)
        self.columns = nn.Linear(grid[0] * grid[1], bins(size[1], split), **factory)
        self.rows = nn.Linear(grid[0] * grid[1], bins(size[0], split), **factory)
        nn.init.kaiming_uniform_(self.joints.weight, a=1)
        for module in (self.columns, self.rows):
            nn.init.normal_(module.weight, std=0.01)
        for module in (self.joints, self.columns, self.rows):
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """maps [(B, C_n, H_n, W_n)], finest first. Returns logits (B, num_joints, width * split) of the columns and
        (B, num_joints, height * split) of the rows."""
        check_maps(maps, self.channels)
        x = maps[-1]
        if not is_exporting() and tuple(x.shape[2:]) != self.grid:
            raise SrattnError(
                f"this head is for a coarsest map of {self.grid[0]}x{self.grid[1]}, got {x.shape[2]}x{x.shape[3]}: "
                f"give images of {self.config['size'][0]}x{self.config['size'][1]}, or build it for others"
            )
        x = self.joints(x).flatten(2)
        return self.columns(x), self.rows(x)

"""The depth decoder of GLPN, global-local path networks (arXiv:2201.07436, sections 3.3 and 3.4)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.heads.segformer import check_maps
from srattn.ops.tracing import is_exporting


class SelectiveFeatureFusion(nn.Module):
    """Weighs a local and a global map against each other at every pixel (section 3.4)."""

    def __init__(self, dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(2 * dim, dim, 3, padding=1, **factory)
        self.norm1 = nn.BatchNorm2d(dim, **factory)
        self.conv2 = nn.Conv2d(dim, dim // 2, 3, padding=1, **factory)
        self.norm2 = nn.BatchNorm2d(dim // 2, **factory)
        self.conv3 = nn.Conv2d(dim // 2, 2, 3, padding=1, **factory)

    def forward(self, local: Tensor, broad: Tensor) -> Tensor:
        """Two maps (B, dim, H, W), `broad` the global one. Returns one of their shape."""
        x = F.relu(self.norm1(self.conv1(torch.cat([local, broad], 1))))
        x = F.relu(self.norm2(self.conv2(x)))
        weights = self.conv3(x).sigmoid()  # (B, 2, H, W)
        return local * weights[:, :1] + broad * weights[:, 1:]


class FusionStage(nn.Module):
    """Brings one map of the backbone to the decoder's width and fuses it with what comes from the coarser maps.

    As published there is no projection where the widths agree.
    """

    def __init__(self, channels: int, dim: int, fuses: bool, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.project = nn.Identity() if channels == dim else nn.Conv2d(channels, dim, 1, **factory)
        self.fusion = SelectiveFeatureFusion(dim, **factory) if fuses else None

    def forward(self, x: Tensor, broad: Tensor | None = None) -> Tensor:
        """x (B, channels, H, W), broad (B, dim, H, W). Returns (B, dim, 2 H, 2 W)."""
        x = self.project(x)
        if self.fusion is not None and broad is not None:
            x = self.fusion(x, broad)
        return _doubled(x)


class GLPNHead(nn.Module):
    """Depth from feature maps, coarsest to finest, each fused with the decoder's own enlarged map.

    Maps need not halve exactly (the original fails there): see `on_grid`.

    Parameters: `stages.{n}` from the coarsest map to the finest; `conv` and `depth`.

    Args:
        channels: of the feature maps, finest first, as `feature_info.channels()` gives them.
        hidden: width of the decoder; even.
        max_depth: what the sigmoid at the end is multiplied by, in the unit of the depths (metres: 10 for NYU Depth v2,
            80 for KITTI as published).
    """

    kind: ClassVar[str] = "glpn"

    def __init__(
        self,
        channels: Sequence[int],
        *,
        hidden: int = 64,
        max_depth: float = 10.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not channels or hidden < 2 or hidden % 2 or max_depth <= 0:
            raise SrattnError(
                "a GLPN head needs channels, an even width and a positive depth, got "
                f"channels={list(channels)}, {hidden=}, {max_depth=}"
            )
        factory = {"device": device, "dtype": dtype}
        self.channels, self.hidden, self.max_depth = list(channels), hidden, float(max_depth)
        self.stages = nn.ModuleList(
            FusionStage(c, hidden, fuses=n > 0, **factory) for n, c in enumerate(reversed(self.channels))
        )
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, **factory)
        self.depth = nn.Conv2d(hidden, 1, 3, padding=1, **factory)

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "hidden": self.hidden, "max_depth": self.max_depth}

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps [(B, C_n, H_n, W_n)], finest first. Returns depths (B, 4 H_0, 4 W_0) from 0 to `max_depth`."""
        check_maps(maps, self.channels)
        x: Tensor | None = None
        for stage, feature in zip(self.stages, reversed(maps), strict=True):
            x = stage(feature, None if x is None else on_grid(x, feature.shape[2], feature.shape[3]))
        assert x is not None
        x = F.relu(self.conv(_doubled(x)))
        return self.depth(x).squeeze(1).sigmoid() * self.max_depth


def on_grid(x: Tensor, height: int, width: int) -> Tensor:
    """Cuts an enlarged map (B, C, H, W) to a grid that its coarser map does not halve: every token stays where it is.

    A map that the edge policy "floor" left too small has its border repeated.
    """
    if not is_exporting() and x.shape[2:] == (height, width):
        return x
    # By indices, so that sizes may be symbols: a slice would have torch.export prove that it does not reach too far.
    rows = torch.arange(height, device=x.device).clamp(max=x.shape[2] - 1)
    columns = torch.arange(width, device=x.device).clamp(max=x.shape[3] - 1)
    return x.index_select(2, rows).index_select(3, columns)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)

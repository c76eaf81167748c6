"""The feature pyramid network (arXiv:1612.03144, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.heads.parts import check_numbers
from srattn.heads.segformer import check_maps

EXTRAS = ("output", "input", "pool")


class FPN(nn.Module):
    """Maps of one width at the grids of the maps it is given, each with what the coarser ones know.

    A pointwise convolution a map, the coarser map enlarged to the exact grid (nearest) and added, a 3x3 convolution.

    Parameters: `laterals.{n}` and `outputs.{n}` for map n, finest first; `extras.{n}`.

    Args:
        channels: of the feature maps, finest first, as `feature_info.channels()` gives them.
        width: channels of every map that is returned.
        extra_levels: how many coarser maps follow, each of half the grid (rounded up).
        extra_from: what they are made from: "output", the coarsest map returned, or "input", the coarsest map given,
            by 3x3 convolutions of stride 2 with ReLU between them (RetinaNet's P6 and P7, arXiv:1708.02002, are two
            from the input); or "pool", every second pixel of the coarsest map returned, as the paper's detector has it.
        extra_relu: False leaves out the ReLU between those convolutions, as detectors published with mmdetection do.
    """

    kind: ClassVar[str] = "fpn"

    def __init__(
        self,
        channels: Sequence[int],
        width: int = 256,
        extra_levels: int = 0,
        extra_from: str = "output",
        extra_relu: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_numbers(self.kind, channels, width=width)
        if extra_levels < 0 or extra_from not in EXTRAS:
            raise SrattnError(
                f"extra_levels is at least 0 and extra_from one of {', '.join(EXTRAS)}, got "
                f"{extra_levels=}, {extra_from=}"
            )
        factory = {"device": device, "dtype": dtype}
        self.channels, self.width = list(channels), width
        self.extra_levels, self.extra_from, self.extra_relu = extra_levels, extra_from, extra_relu
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1, **factory) for c in channels)
        self.outputs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, **factory) for _ in channels)
        first = self.channels[-1] if extra_from == "input" else width
        learnt = 0 if extra_from == "pool" else extra_levels
        self.extras = nn.ModuleList(
            nn.Conv2d(width if n else first, width, 3, stride=2, padding=1, **factory) for n in range(learnt)
        )
        self.apply(_fresh)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "width": self.width,
            "extra_levels": self.extra_levels,
            "extra_from": self.extra_from,
            "extra_relu": self.extra_relu,
        }

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """maps [(B, C_n, H_n, W_n)], finest first. Returns [(B, width, H_n, W_n)] and the extra maps behind them."""
        check_maps(maps, self.channels)
        above: Tensor | None = None
        pyramid: list[Tensor] = []
        for n in reversed(range(len(maps))):
            x = self.laterals[n](maps[n])
            above = x if above is None else x + F.interpolate(above, size=list(x.shape[2:]), mode="nearest")
            pyramid.insert(0, self.outputs[n](above))
        return [*pyramid, *self._extra(maps[-1], pyramid[-1])]

    def _extra(self, coarsest: Tensor, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        if self.extra_from == "pool":
            for _ in range(self.extra_levels):
                x = F.max_pool2d(x, 1, stride=2)
                found.append(x)
            return found
        x = coarsest if self.extra_from == "input" else x
        for n, conv in enumerate(self.extras):
            x = conv(F.relu(x) if n and self.extra_relu else x)
            found.append(x)
        return found


def _fresh(module: nn.Module) -> None:
    """As its authors' code draws them: uniform, of the variance 1 / fan-in (no ReLU follows); no bias."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight, a=1)
        assert module.bias is not None
        nn.init.zeros_(module.bias)

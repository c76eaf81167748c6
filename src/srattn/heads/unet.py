"""The decoder of Attention U-Net (arXiv:1804.03999), on the maps of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.heads.parts import ConvNormReLU, PixelClassifier, check_numbers, enlarged
from srattn.heads.segformer import check_maps


class AttentionGate(nn.Module):
    """Weighs every pixel of a map by what the coarser one, the gate, knows (equations 1 and 2), here at the map's grid.

    The gate is projected at its own grid and enlarged after: enlarging is linear and its weights sum to one.
    """

    def __init__(self, channels: int, gate_channels: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        inner = max(channels // 2, 1)
        self.skip = nn.Conv2d(channels, inner, 1, bias=False, **factory)
        self.gate = nn.Conv2d(gate_channels, inner, 1, **factory)
        self.score = nn.Linear(inner, 1, **factory)
        for conv in (self.skip, self.gate, self.score):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """skip (B, channels, H, W), gate (B, gate_channels, h, w). Returns one of the shape of `skip`."""
        x = F.relu(self.skip(skip) + enlarged(self.gate(gate), skip.shape[2:]))
        weights = self.score(x.movedim(1, -1)).sigmoid()  # (B, H, W, 1)
        return (skip.movedim(1, -1) * weights).movedim(-1, 1)


class UNetStage(nn.Module):
    """One step up: the gated skip beside the enlarged map, and two convolutions with norm and ReLU."""

    def __init__(
        self, skip: int, below: int, width: int, *, norm: str = "batch", device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.gate = AttentionGate(skip, below, **factory)
        self.conv1 = ConvNormReLU(skip + below, width, norm=norm, **factory)
        self.conv2 = ConvNormReLU(width, width, norm=norm, **factory)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """skip (B, C_skip, H, W), x (B, C_below, h, w). Returns (B, width, H, W)."""
        return self.conv2(self.conv1(torch.cat([self.gate(skip, x), enlarged(x, skip.shape[2:])], 1)))


class UNetHead(nn.Module):
    """From the coarsest map up to the finest, each of which joins through an attention gate; then the classifier.

    Parameters: `stages.{n}` for map n, finest first (none for the coarsest); `classifier`.

    Args:
        channels: of the feature maps, finest first, as `feature_info.channels()` gives them.
        num_classes: channels of the logits.
        widths: of the stages, finest first, one fewer than maps; by default the channels of their maps.
        norm: "batch" or "group".
        drop_rate: dropout of whole channels before the classifier.
    """

    kind: ClassVar[str] = "unet"

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        *,
        widths: Sequence[int] | None = None,
        norm: str = "batch",
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_numbers(self.kind, channels, num_classes=num_classes, drop_rate=drop_rate)
        widths = list(channels[:-1] if widths is None else widths)
        if len(widths) != len(channels) - 1 or any(width < 1 for width in widths):
            raise SrattnError(f"widths are {len(channels) - 1} numbers of at least 1, finest first, got {widths}")
        factory = {"device": device, "dtype": dtype}
        self.config = {
            "kind": self.kind,
            "num_classes": num_classes,
            "widths": widths,
            "norm": norm,
            "drop_rate": drop_rate,
        }
        self.channels, self.num_classes = list(channels), num_classes
        below = [*widths[1:], self.channels[-1]]
        self.stages = nn.ModuleList(
            UNetStage(skip, b, width, norm=norm, **factory)
            for skip, b, width in zip(self.channels[:-1], below, widths, strict=False)
        )
        self.classifier = PixelClassifier([*widths, self.channels[-1]][0], num_classes, drop_rate, **factory)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps [(B, C_n, H_n, W_n)], finest first. Returns logits (B, num_classes, H_0, W_0)."""
        check_maps(maps, self.channels)
        x = maps[-1]
        for n in reversed(range(len(self.stages))):
            x = self.stages[n](maps[n], x)
        return self.classifier(x)

"""What several heads are made of: a normed convolution, enlarging, the classifier of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.batch_norm import MapBatchNorm

NORMS = ("batch", "group")


class ConvNormReLU(nn.Module):
    """A convolution without bias that keeps the grid, a norm, ReLU.

    Args:
        kernel: odd.
        norm: "batch", or "group" of 32 groups as arXiv:1901.02446 has it (fewer where a group would have less than 4
            channels or the width is no multiple), which does not depend on the batch.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        kernel: int = 3,
        *,
        norm: str = "batch",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(in_channels, width, kernel, padding=kernel // 2, bias=False, **factory)
        self.norm = make_norm(norm, width, **factory)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, width, H, W)."""
        return self.finish(self.conv(x))

    def finish(self, x: Tensor) -> Tensor:
        """Norm and ReLU alone, (B, width, H, W)."""
        return F.relu(self.norm(x))


class PixelClassifier(nn.Conv2d):
    """Dropout of whole channels and a pointwise convolution, which starts at a standard deviation of 0.01."""

    def __init__(
        self, width: int, num_classes: int, drop_rate: float, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(width, num_classes, 1, device=device, dtype=dtype)
        self.drop = nn.Dropout2d(drop_rate)
        nn.init.normal_(self.weight, std=0.01)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(B, width, H, W) to logits (B, num_classes, H, W)."""
        return super().forward(self.drop(input))

    def of_sum(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """The logits of fine (B, width, H, W) + coarse (B, width, h, w) enlarged to its grid.

        Enlarging is linear over pixels and its weights sum to one, so logits may be enlarged in place of features.
        That is done where there are fewer classes than channels: the sum is then never written.
        """
        grid = fine.shape[2:]
        if self.out_channels >= self.in_channels:
            return self(fine + enlarged(coarse, grid))
        # Both terms lose the same channels, so dropout is a factor on the columns of an image's own weights.
        kept = self.drop(fine.new_ones(fine.shape[0], self.in_channels, 1, 1)).flatten(1)
        weight = self.weight.flatten(1) * kept.unsqueeze(1)  # (B, num_classes, width)
        logits = enlarged(torch.bmm(weight, coarse.flatten(2)).unflatten(2, coarse.shape[2:]), grid)
        assert self.bias is not None
        return torch.bmm(weight, fine.flatten(2)).unflatten(2, grid) + logits + self.bias.view(-1, 1, 1)


def make_norm(norm: str, width: int, *, device: Any = None, dtype: Any = None) -> nn.Module:
    """The norm "batch" or "group" of `width` channels."""
    if norm == "batch":
        return MapBatchNorm(width, device=device, dtype=dtype)
    if norm == "group":
        return nn.GroupNorm(math.gcd(32, max(width // 4, 1), width), width, device=device, dtype=dtype)
    raise SrattnError(f"norm is one of {', '.join(NORMS)}, got {norm!r}")


def enlarged(x: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, C, H, W) to (B, C, *grid), bilinear between the centres of pixels."""
    return F.interpolate(x, size=list(grid), mode="bilinear", align_corners=False)


def check_numbers(kind: str, channels: Sequence[int], *, drop_rate: float = 0.0, **sizes: int) -> None:
    """Refuses a head without maps, with a size below 1, or with a drop rate that is no share."""
    if not channels or any(size < 1 for size in (*channels, *sizes.values())) or not 0 <= drop_rate < 1:
        told = ", ".join(f"{name}={value}" for name, value in {**sizes, "drop_rate": drop_rate}.items())
        raise SrattnError(
            f"a {kind} head needs channels, sizes of at least 1 and a drop rate from 0 to below 1, got "
            f"channels={list(channels)}, {told}"
        )

"""A convolutional stem before the first patch embedding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.batch_norm import of_map_after_gelu
from srattn.layers.drop import DropPath
from srattn.layers.patch_embed import PatchEmbed
from srattn.ops import plan
from srattn.ops.tracing import is_exporting


class StemLayer(nn.Module):
    """3x3 convolution, GELU, batch norm on (batch, channels, height, width)."""

    def __init__(
        self, in_chans: int, channels: int, stride: int, *, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, channels, 3, stride, 1, bias=bias, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(channels, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return of_map_after_gelu(self.norm, self.conv(x))


class ResidualConvolutions(nn.Module):
    """x plus what two such layers make of it, without a bias, on (batch, channels, height, width)."""

    def __init__(self, channels: int, *, drop_path: float = 0.0, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.first = StemLayer(channels, channels, 1, bias=False, device=device, dtype=dtype)
        self.second = StemLayer(channels, channels, 1, bias=False, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.second(self.first(x)))


class StemPatchEmbed(PatchEmbed):
    """Three stem layers, then patches that do not overlap (CMT, arXiv:2107.06263, section 3.1).

    Not published: `stem_depth` pairs of convolutions, each with a residual, between the stem and the patches, and
    `conv_depth` of them behind the patches. What is near is seen by full convolutions before attention sees the rest
    (after Z. Dai et al.: CoAtNet, arXiv:2106.04803, section 2.2). `drop_paths` has a rate for each pair.

    The whole stride is divided between the two: at 4, as published, the stem and the patches halve the image each. An
    odd stride, or one below 4, is that of the patches alone.
    """

    def __init__(
        self,
        in_chans: int,
        stem_channels: int,
        dim: int,
        stride: int,
        *,
        stem_depth: int = 0,
        conv_depth: int = 0,
        drop_paths: Sequence[float] = (),
        edge: str = "pad",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        for name, depth in {"stem_depth": stem_depth, "conv_depth": conv_depth}.items():
            if depth < 0:
                raise SrattnError(f"{name} is a number of pairs of convolutions, 0 or more, got {depth}")
        rates = iter(drop_paths or [0.0] * (stem_depth + conv_depth))
        if drop_paths and len(drop_paths) != stem_depth + conv_depth:
            raise SrattnError(
                f"drop_paths has a rate for each of {stem_depth + conv_depth} pairs, got {len(drop_paths)}"
            )
        factory = {"device": device, "dtype": dtype}
        self.stem_stride = 2 if stride >= 4 and stride % 2 == 0 else 1
        super().__init__(stem_channels, dim, stride // self.stem_stride, edge=edge, eps=eps, **factory)
        self.stem = nn.Sequential(
            StemLayer(in_chans, stem_channels, self.stem_stride, **factory),
            StemLayer(stem_channels, stem_channels, 1, **factory),
            StemLayer(stem_channels, stem_channels, 1, **factory),
            *(ResidualConvolutions(stem_channels, drop_path=next(rates), **factory) for _ in range(stem_depth)),
        )
        self.convs = nn.Sequential(
            *(ResidualConvolutions(dim, drop_path=next(rates), **factory) for _ in range(conv_depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in any memory format. Returns (B, H', W', dim)."""
        if self.training and self._trains_by_kernels(x):
            x = x.contiguous(memory_format=torch.channels_last)  # in which the norms have a kernel
        tokens = super().forward(self.stem(x))
        return self.convs(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if self.convs else tokens

    @staticmethod
    def _trains_by_kernels(x: Tensor) -> bool:
        return x.device.type in (*plan.KERNEL_DEVICES, "cpu") and not is_exporting()

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Grid of tokens for an image of (height, width)."""
        return super().size(-(-height // self.stem_stride), -(-width // self.stem_stride))

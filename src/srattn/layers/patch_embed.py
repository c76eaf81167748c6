"""Patch embeddings: images or maps (batch, channels, height, width) to tokens (batch, height, width, channels).

A strided convolution and a layer norm. Tokens leave channels-last; the next stage reads them as a channels-last map
without a copy.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from srattn.layers import native
from srattn.layers.opaque import Opaque
from srattn.ops.native import NormWeights, Operand, PatchKernel
from srattn.ops.reduce import any_valid, reduced_size
from srattn.ops.tracing import is_exporting


class Embedding(nn.Module):
    """What every patch embedding answers, beside its forward from (B, C, H, W) to (B, H', W', dim)."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Grid of tokens for an input of (height, width)."""
        raise NotImplementedError

    def reduce_mask(self, mask: Tensor) -> Tensor:
        """Which tokens have any valid pixel of their own, (B, H', W'), for the valid pixels (B, H, W)."""
        raise NotImplementedError


class PatchEmbed(Opaque, Embedding):
    """Patches that do not overlap, kernel = stride (PVT, arXiv:2102.12122, section 3.2).

    `edge` says what happens to pixels that fill no patch, as in `SpatialReductionAttention`.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int,
        *,
        edge: str = "pad",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.stride, self.edge = stride, edge
        self.proj = nn.Conv2d(in_chans, dim, stride, stride, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in any memory format. Returns (B, H', W', dim)."""
        height, width = x.shape[2:]
        rows, columns = self._grid(height, width)
        kernel = native.layout_of(self, x, _lay_out)
        if kernel is not None:
            return kernel(native.as_computed(x), (rows, columns))
        of = type(self) if type(self).forward is PatchEmbed.forward else PatchEmbed
        if native.stays_whole(self, of, x, _knows):
            return self.as_operator(native.as_computed(x), (x.shape[0], rows, columns, self.proj.out_channels))
        extra_h, extra_w = rows * self.stride - height, columns * self.stride - width
        if self.edge == "pad" and (is_exporting() or extra_h or extra_w):
            x = F.pad(x, (0, extra_w, 0, extra_h))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))

    @property
    def place(self) -> tuple[int, int]:
        """Side and padding of the convolution's kernel."""
        return self.stride, 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Grid of tokens for an input of (height, width)."""
        return self._grid(height, width)

    def reduce_mask(self, mask: Tensor) -> Tensor:
        return any_valid(mask, (self.stride, self.stride), self.edge)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Grid of tokens for what the convolution reads."""
        return reduced_size(height, width, (self.stride, self.stride), self.edge)


class OverlapPatchEmbed(Opaque, Embedding):
    """Patches that overlap (PVT v2, arXiv:2106.13797, section 3.1): kernel 2 S - 1, stride S, padding S - 1.

    Kernel 7 at stride 4 and 3 at stride 2, as published; at stride 1, kernel 3. Every pixel is covered at any size.
    `norm=False` leaves out the layer norm, as MViT does.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int,
        *,
        norm: bool = True,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.stride = stride
        kernel, padding = self.place
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in any memory format. Returns (B, ceil(H / S), ceil(W / S), dim)."""
        grid = self.size(*x.shape[2:])
        kernel = native.layout_of(self, x, _lay_out)
        if kernel is not None:
            return kernel(native.as_computed(x), grid)
        if native.stays_whole(self, OverlapPatchEmbed, x, _knows):
            return self.as_operator(native.as_computed(x), (x.shape[0], *grid, self.proj.out_channels))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))

    @property
    def place(self) -> tuple[int, int]:
        """Side and padding of the convolution's kernel."""
        kernel = max(3, 2 * self.stride - 1)
        return kernel, kernel // 2

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Grid of tokens for an input of (height, width)."""
        return -(-height // self.stride), -(-width // self.stride)

    def reduce_mask(self, mask: Tensor) -> Tensor:
        return any_valid(mask, (self.stride, self.stride), "pad")


def _knows(embed: PatchEmbed | OverlapPatchEmbed, operand: Operand) -> bool:
    """Whether the kernels compute it, whatever the operands: a convolution as it was made, and a norm or none."""
    proj, kernel, padding = embed.proj, *embed.place
    if type(proj) is not nn.Conv2d or proj.groups != 1 or proj.padding_mode != "zeros" or proj.dilation != (1, 1):
        return False
    form = proj.kernel_size, proj.stride, proj.padding
    if form != ((kernel, kernel), (embed.stride, embed.stride), (padding, padding)):
        return False
    return type(embed.norm) is nn.Identity or native.knows_norm(embed.norm)


def _lay_out(embed: PatchEmbed | OverlapPatchEmbed, operand: Operand) -> PatchKernel | None:
    """The embedding for the compiled kernels; None where its parts are of another form."""
    if not _knows(embed, operand):
        return None
    proj, norm = embed.proj, embed.norm
    after = NormWeights(norm.weight, norm.bias, norm.eps) if isinstance(norm, nn.LayerNorm) else None
    stride, padding = proj.stride, proj.padding
    assert isinstance(padding, tuple)
    place = (stride[0], stride[1]), (padding[0], padding[1])
    return PatchKernel(proj.weight, proj.bias, *place, after, operand=operand)

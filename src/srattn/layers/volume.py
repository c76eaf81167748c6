"""The parts of a transformer on volumes (batch, depth, height, width, channels), by the names of those on maps."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.attention import logit_bias
from srattn.layers.hooks import is_linear
from srattn.layers.reduction import check_edge, is_count
from srattn.ops import attend, volume
from srattn.ops.volume import Triple


def as_triple(value: int | Sequence[int], name: str) -> Triple:
    """An int or three positive ints as (depth, height, width)."""
    triple = tuple(value) if isinstance(value, Sequence) else (value,) * 3
    if len(triple) != 3 or any(not is_count(v) for v in triple):
        raise SrattnError(f"{name} is a positive int or three of them, got {value!r}")
    first, second, third = map(operator.index, triple)
    return first, second, third


class VolumeReduction(nn.Module):
    """SR(x) = Norm(Reshape(x, R) W^S) on volumes, with a ratio for each axis.

    Parameters: `proj.weight` (dim, R_d R_h R_w dim), which is W^S transposed, its bias, and the layer norm. A published
    convolution (C, C, R, R, R) is the same matrix: `conv.permute(0, 2, 3, 4, 1).reshape(C, -1)`.
    """

    def __init__(
        self,
        dim: int,
        ratio: int | Sequence[int],
        *,
        edge: str = "pad",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.ratio, self.edge = as_triple(ratio, "ratio"), check_edge(edge)
        self.proj = nn.Linear(self.ratio[0] * self.ratio[1] * self.ratio[2] * dim, dim, **factory)
        self.norm = nn.LayerNorm(dim, eps=eps, **factory)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, D, H, W, C), mask (B, D, H, W) true where valid. Returns (B, M_d, M_h, M_w, C)."""
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        return self.norm(self.proj(volume.blocks(x, self.ratio, self.edge)))

    def size(self, depth: int, height: int, width: int) -> Triple:
        """Grid (M_d, M_h, M_w) of the reduced tokens."""
        return volume.reduced_size((depth, height, width), self.ratio, self.edge)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}, edge={self.edge!r}"


class VolumeAttention(nn.Module):
    """Spatial-Reduction Attention over a volume: the formula, the paths and the planner of `SpatialReductionAttention`.

    Args:
        dim: channels; num_heads: heads, which divide them.
        ratio: R, or (R_d, R_h, R_w). 1 means no reduction and no norm, as published.
        edge: what happens where the ratio does not divide the grid: "pad" with zeros, "floor" or "error".
        qkv_bias: biases on W^Q, W^K, W^V.
        attn_drop, proj_drop: dropout on the attention weights and on the output.
        norm_eps: epsilon of the layer norm of the reduction.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ratio: int | Sequence[int] = 1,
        *,
        edge: str = "pad",
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise SrattnError(f"num_heads must divide dim, got {dim=}, {num_heads=}")
        factory = {"device": device, "dtype": dtype}
        self.dim, self.num_heads, self.attn_drop = dim, num_heads, attn_drop
        self.scale = (dim // num_heads) ** -0.5
        self.ratio = as_triple(ratio, "ratio")
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.k = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.reduction = None
        if self.ratio != (1, 1, 1):
            self.reduction = VolumeReduction(dim, self.ratio, edge=edge, eps=norm_eps, **factory)
        self.proj = nn.Linear(dim, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
        """Attends from every token of x (B, D, H, W, dim) to the reduced tokens; the same shape comes out.

        key_mask (B, D, H, W) is true where a token may be attended. A reduced token counts if any of its sources is
        valid; invalid sources contribute nothing. An image without any valid key gets the output's bias.
        """
        k, v, bias = self._keys_values(x, key_mask)
        dropout, queries = self.attn_drop if self.training else 0.0, x.flatten(1, 3)
        if is_linear(self.q) and is_linear(self.proj):
            out = attend.attention(queries, k, v, self._projections(), self.num_heads, self.scale, bias, dropout)
        else:
            out = self.proj(attend.heads_of(self.q(queries), k, v, self.num_heads, self.scale, bias, dropout))
        return self.proj_drop(out.view(x.shape))

    def attention_map(self, x: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
        """The attention weights, (B, num_heads, N, M) over the reduced tokens in raster order, by the plain path."""
        k, _, bias = self._keys_values(x, key_mask)
        return attend.weights_of(self.q(x.flatten(1, 3)), k, self.num_heads, self.scale, bias)

    def _projections(self) -> attend.Projections:
        return attend.Projections(self.q.weight, self.q.bias, self.proj.weight, self.proj.bias)

    def _keys_values(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Reduced and projected keys and values, (B, M, dim) each, and a bias of the logits or None."""
        if x.ndim != 5 or x.shape[-1] != self.dim:
            raise SrattnError(f"tokens are (batch, depth, height, width, {self.dim}), got {tuple(x.shape)}")
        if mask is not None and (mask.shape != x.shape[:4] or mask.dtype != torch.bool):
            raise SrattnError(
                f"key_mask is boolean of shape {tuple(x.shape[:4])}, got {mask.dtype} {tuple(mask.shape)}"
            )
        if self.reduction is not None:
            z = self.reduction(x, mask)
        else:
            z = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)
        k, v = self.k(z).flatten(1, 3), self.v(z).flatten(1, 3)
        if mask is None:
            return k, v, None
        count = mask.to(v.dtype)
        if self.reduction is not None:
            count = volume.block_sum(count, self.ratio, self.reduction.edge)
        bias, v = logit_bias(torch.zeros_like(count).masked_fill(count == 0, float("-inf")), v)
        return k, v, bias

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"


class VolumePatchEmbed(nn.Module):
    """Patches that overlap: kernel 2 S - 1 (at least 3), stride S, zero padding, layer norm. Any size."""

    def __init__(
        self, in_chans: int, dim: int, stride: int, *, eps: float = 1e-5, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.stride = stride
        kernel = max(3, 2 * stride - 1)
        self.proj = nn.Conv3d(in_chans, dim, kernel, stride, kernel // 2, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, D, H, W). Returns (B, ceil(D / S), ceil(H / S), ceil(W / S), dim)."""
        return self.norm(self.proj(x).movedim(1, -1))


class VolumeFeedForward(nn.Module):
    """Linear, depthwise 3x3x3 with zero padding, batch norm, GELU, linear (SegFormer3D, arXiv:2404.10156)."""

    def __init__(self, dim: int, hidden: int, *, drop: float = 0.0, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(dim, hidden, **factory)
        self.dwconv = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden, **factory)
        self.norm = nn.BatchNorm3d(hidden, **factory)
        self.fc2 = nn.Linear(hidden, dim, **factory)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, dim) to the same shape."""
        x = self.norm(self.dwconv(self.fc1(x).movedim(-1, 1))).movedim(1, -1)
        return self.drop(self.fc2(self.drop(F.gelu(x))))

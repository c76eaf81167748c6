"""The convolutional projections of CvT, and the attention over them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.attention import HeadsPlan, SpatialReductionAttention
from srattn.layers.batch_norm import TokenBatchNorm
from srattn.layers.reduction import Reduction, as_pair
from srattn.ops.plan import Choice


class ConvolutionalProjection(Reduction):
    """Depthwise convolution with a stride, then batch norm (CvT, arXiv:2103.15808, section 3.2).

    Kernel 3 at stride 2 as published, and at stride 1; 2 S - 1 in general, with zero padding, so that every token is
    seen at any size. A reduced token counts as masked if its whole neighbourhood is; invalid tokens contribute nothing.
    While training, the batch statistics count every reduced token, also one that is masked.

    Parameters: `proj.weight` (dim, 1, k, k), and those of the batch norm.
    """

    def __init__(
        self, dim: int, ratio: int | tuple[int, int], *, eps: float = 1e-5, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.ratio = as_pair(ratio, "ratio")
        self.kernel = (max(3, 2 * self.ratio[0] - 1), max(3, 2 * self.ratio[1] - 1))
        self.padding = (self.kernel[0] // 2, self.kernel[1] // 2)
        factory = {"device": device, "dtype": dtype}
        self.proj = nn.Conv2d(dim, dim, self.kernel, self.ratio, self.padding, groups=dim, bias=False, **factory)
        self.norm = TokenBatchNorm(dim, eps=eps, **factory)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = super().forward(x, mask)
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def size(self, height: int, width: int) -> tuple[int, int]:
        return (height - 1) // self.ratio[0] + 1, (width - 1) // self.ratio[1] + 1

    def macs(self, height: int, width: int) -> int:
        return math.prod(self.size(height, width)) * self.proj.weight.numel()

    def sum(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x.unsqueeze(1), self.kernel, self.ratio, self.padding, divisor_override=1).squeeze(1)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}"


class ConvolutionalAttention(SpatialReductionAttention):
    """Attention whose queries, keys and values each pass a convolutional projection of their own (CvT, eq. 2 and 3).

    Keys and values are reduced by `ratio`; queries keep their grid. A class token lies on no grid: it skips the
    convolutions, and stands before the queries, the keys and the values. The logits are scaled by dim ** -0.5, as in
    the published code (not by the width of a head).

    Args:
        dim, num_heads, qkv_bias, attn_drop, proj_drop: as in `SpatialReductionAttention`.
        ratio: stride of the projections of keys and values.
        class_token: whether plans count a class token; `forward` takes one in any case.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ratio: int | tuple[int, int] = 2,
        *,
        class_token: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        super().__init__(
            dim,
            num_heads,
            reduction=ConvolutionalProjection(dim, ratio, **factory),
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            scale=dim**-0.5,
            **factory,
        )
        self.value_reduction = ConvolutionalProjection(dim, ratio, **factory)
        self.query_reduction = ConvolutionalProjection(dim, 1, **factory)
        self.class_token = class_token

    def forward(
        self,
        x: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
        class_token: Tensor | None = None,
    ) -> Tensor:
        """As `SpatialReductionAttention`, for queries x (B, H, W, dim).

        Returns the shape of x; with class_token (B, 1, dim), tokens (B, 1 + H W, dim), the class token first. The class
        token is always a valid key, and has no bias.
        """
        queries, k, v, bias = self._inputs(x, key, value, key_mask, key_bias, class_token)
        out = self.proj_drop(self._attend(queries, k, v, bias))
        return out.view(x.shape) if class_token is None else out

    def attention_map(
        self,
        x: Tensor,
        key: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
        class_token: Tensor | None = None,
    ) -> Tensor:
        """The attention weights, (B, num_heads, N, M), a class token being the first of both N and M."""
        queries, k, _, bias = self._inputs(x, key, None, key_mask, key_bias, class_token)
        return self._weights(queries, k, bias)

    def _inputs(
        self,
        x: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_mask: Tensor | None,
        key_bias: Tensor | None,
        class_token: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries (B, N, dim) before W^Q, projected keys and values (B, M, dim), and a bias of the logits or None."""
        if x.ndim != 4:
            raise SrattnError(f"queries pass a convolution: (batch, height, width, {self.dim}), got {tuple(x.shape)}")
        k, v, bias = self._keys_values(x, key, value, key_mask, key_bias)
        queries = self.query_reduction(x).flatten(1, 2)
        if class_token is None:
            return queries, k, v, bias
        if bias is not None:
            if key_mask is not None:  # an image without any valid key still has its class token
                lost = ~key_mask.flatten(1).any(1)
                bias = bias.masked_fill(lost[:, None, None, None], -math.inf)
            bias = F.pad(bias, (1, 0))
        queries = torch.cat([class_token, queries], 1)
        return queries, torch.cat([self.k(class_token), k], 1), torch.cat([self.v(class_token), v], 1), bias

    def plan_for(
        self,
        height: int,
        width: int,
        batch: int = 1,
        *,
        key_size: tuple[int, int] | None = None,
        training: bool = False,
        device: str | None = None,
    ) -> Choice:
        token = int(self.class_token)
        keys = math.prod(self.reduced_size(*(key_size or (height, width))))
        return self._choose(height * width + token, keys + token, batch, training, device)

    def plan_heads(
        self, height: int, width: int, batch: int = 1, *, training: bool = False, device: str | None = None
    ) -> list[HeadsPlan]:
        (plan,) = super().plan_heads(height, width, batch, training=training, device=device)
        more = self.reduction.macs(height, width) + self.query_reduction.macs(height, width)
        if self.class_token:
            more += self.k.weight.numel() + self.v.weight.numel()
        return [plan._replace(shared=plan.shared + batch * more)]

"""Pooling attention: queries, keys and values are pooled after their projections, each by a convolution of its own."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.attention import HeadsPlan, MapAttention, check_maps, logit_bias
from srattn.layers.decomposed_position import DecomposedPosition
from srattn.layers.reduction import Reduction, as_pair
from srattn.ops import decomposed
from srattn.ops.attend import merge_heads, split_heads
from srattn.ops.plan import Choice, Cost, forced


class HeadPooling(Reduction):
    """A depthwise 3x3 convolution with a stride, zero padding and no bias, then layer norm, on every head alike (MViT,
    arXiv:2104.11227, section 3.1).

    One kernel of `head_dim` channels serves all heads. Any size: the grid is divided by the stride and rounded up, so
    no edge policy is needed; from a stride of 4 on, some tokens lie between the windows and reach no key, as published.
    """

    def __init__(
        self,
        head_dim: int,
        stride: int | tuple[int, int] = 1,
        *,
        eps: float = 1e-6,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.ratio = as_pair(stride, "stride")
        self.proj = nn.Conv2d(head_dim, head_dim, 3, self.ratio, 1, groups=head_dim, bias=False, **factory)
        self.norm = nn.LayerNorm(head_dim, eps=eps, **factory)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, H, W, heads * head_dim), mask (B, H, W) true where valid. Returns (B, ceil(H / S), ceil(W / S), ...)"""
        x = super().forward(x, mask).permute(0, 3, 1, 2)
        head_dim = self.norm.weight.numel()
        kernel = self.proj.weight.repeat(x.shape[1] // head_dim, 1, 1, 1)
        x = F.conv2d(x, kernel, None, self.ratio, 1, groups=x.shape[1]).permute(0, 2, 3, 1)
        return self.norm(x.unflatten(3, (-1, head_dim))).flatten(3)

    def size(self, height: int, width: int) -> tuple[int, int]:
        return (height - 1) // self.ratio[0] + 1, (width - 1) // self.ratio[1] + 1

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds for one image and one head."""
        return math.prod(self.size(height, width)) * self.proj.weight.numel()

    def sum(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x.unsqueeze(1), 3, self.ratio, 1, divisor_override=1).squeeze(1)

    def extra_repr(self) -> str:
        return f"stride={self.ratio}"


class PoolingAttention(MapAttention):
    """Multi-head attention of pooled queries over pooled keys and values (MViTv2, arXiv:2112.01526, section 4.1).

        out = (softmax(q k^T / sqrt(d) + q (R^h + R^w)^T) v + q) W^O

    where q, k and v were projected, then pooled and normalised for each head. The norm stands between W^Q and the
    product with the keys, so W^Q cannot be absorbed into them: the paths are `plain` and `sdpa`, and where `absorbed`
    is forced it is `sdpa`.

    Args:
        dim, out_dim: channels of the tokens and of the output; `out_dim` is divided among the heads.
        num_heads: heads; must divide `out_dim`.
        grid: (height, width) of the tokens at the model's image size, for the tables of positions.
        q_stride, kv_stride: strides of the pooling; the output has the grid of the pooled queries.
        qkv_bias: biases on W^Q, W^K, W^V.
        attn_drop, proj_drop: dropout on the attention weights and on the output.
        norm_eps: epsilon of the three norms.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        num_heads: int,
        grid: tuple[int, int],
        *,
        q_stride: int | tuple[int, int] = 1,
        kv_stride: int | tuple[int, int] = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_eps: float = 1e-6,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or out_dim % num_heads:
            raise SrattnError(f"num_heads must divide dim, got dim={out_dim}, {num_heads=}")
        factory = {"device": device, "dtype": dtype}
        self.dim, self.num_heads, self.attn_drop = dim, num_heads, attn_drop
        head_dim = out_dim // num_heads
        self.scale = head_dim**-0.5
        self.q = nn.Linear(dim, out_dim, bias=qkv_bias, **factory)
        self.k = nn.Linear(dim, out_dim, bias=qkv_bias, **factory)
        self.v = nn.Linear(dim, out_dim, bias=qkv_bias, **factory)
        self.query_reduction = HeadPooling(head_dim, q_stride, eps=norm_eps, **factory)
        self.reduction = HeadPooling(head_dim, kv_stride, eps=norm_eps, **factory)
        self.value_reduction = HeadPooling(head_dim, kv_stride, eps=norm_eps, **factory)
        self.position = DecomposedPosition(head_dim, self.query_size(*grid), self.reduced_size(*grid), **factory)
        self.proj = nn.Linear(out_dim, out_dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, *, key_mask: Tensor | None = None, key_bias: Tensor | None = None) -> Tensor:
        """Attends from the pooled queries to the pooled keys.

        Args:
            x: (B, H, W, dim).
            key_mask: (B, H, W) bool, true where a token may be attended; a key counts if any token of its window may.
            key_bias: (B, H, W), finite, added to the logits of each key, averaged over the valid tokens of its window.

        Returns:
            (B, ceil(H / q_stride), ceil(W / q_stride), out_dim).
        """
        q, k, v, bias = self._queries_keys_values(x, key_mask, key_bias)
        run = decomposed.plain if forced() == "plain" else decomposed.sdpa
        tables, key_grid = (self.position.rows, self.position.columns), self.reduced_size(x.shape[1], x.shape[2])
        out = run(q, k, v, *tables, key_grid, self.scale, bias, self.attn_drop if self.training else 0.0)
        out = merge_heads(out + q.flatten(2, 3))  # the pooled queries' residual
        return self.proj_drop(self.proj(out)).unflatten(1, q.shape[2:4])

    def attention_map(self, x: Tensor, *, key_mask: Tensor | None = None, key_bias: Tensor | None = None) -> Tensor:
        """The attention weights, (B, num_heads, N, M) of pooled queries over pooled keys, by the plain path."""
        q, k, _, bias = self._queries_keys_values(x, key_mask, key_bias)
        tables, key_grid = (self.position.rows, self.position.columns), self.reduced_size(x.shape[1], x.shape[2])
        return decomposed.attention_weights(q, k, *tables, key_grid, self.scale, bias)

    def _queries_keys_values(
        self, x: Tensor, key_mask: Tensor | None, key_bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q (B, heads, H', W', d), k and v (B, heads, M, d), and a bias of the logits or None."""
        check_maps(self.dim, self.dim, self.dim, x, None, None, key_mask, key_bias)
        q = self.query_reduction(self.q(x))
        k = self.reduction(self.k(x), key_mask).flatten(1, 2)
        v = self.value_reduction(self.v(x), key_mask).flatten(1, 2)
        bias = None
        if key_mask is not None or key_bias is not None:
            bias, v = logit_bias(self.reduction.reduce_scores(key_mask, key_bias), v)
        queries = q.unflatten(3, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)
        return queries, split_heads(k, self.num_heads), split_heads(v, self.num_heads), bias

    # -- what plans and explanations ask -----------------------------------------------------------------------------

    @property
    def ratio(self) -> tuple[int, int]:  # type: ignore[override]
        """Query tokens that a key stands for; 1 where the keys are finer than the queries."""
        return tuple(max(k // q, 1) for k, q in zip(self.reduction.ratio, self.query_reduction.ratio, strict=True))  # type: ignore[return-value]

    def query_size(self, height: int, width: int) -> tuple[int, int]:
        return self.query_reduction.size(height, width)

    def reduced_size(self, height: int, width: int) -> tuple[int, int]:
        return self.reduction.size(height, width)

    def plan_for(
        self, height: int, width: int, batch: int = 1, *, training: bool = False, device: str | None = None
    ) -> Choice:
        """The path that `forward` takes for a map of this size, with its cost and the reason."""
        tokens, (key_h, key_w) = height * width, self.reduced_size(height, width)
        n, m, h = math.prod(self.query_size(height, width)), key_h * key_w, self.num_heads
        out, dim = self.q.weight.shape
        path = "plain" if forced() == "plain" else "sdpa"
        macs = tokens * dim * out + n * out * (9 + key_h + key_w + out)  # W^Q; pooling, positions, W^O
        values = tokens * (dim + 2 * out) + 7 * n * out + 2 * m * out
        if path == "plain":
            macs += 2 * n * m * out
            values += 8 * n * h * m  # scores: written, scaled, positions added, softmax, read
        else:
            wide = h * (key_h + key_w)  # the further channels
            macs += 2 * n * m * (out + wide)
            values += 4 * (n + m) * wide
        reason = (
            "forced by force_path"
            if path == "plain"
            else "queries are pooled and normalised after W^Q, which cannot be absorbed into the keys"
        )
        return Choice(path, path == "sdpa", Cost(batch * macs, batch * values * self.q.weight.itemsize), reason)

    def plan_heads(
        self, height: int, width: int, batch: int = 1, *, training: bool = False, device: str | None = None
    ) -> list[HeadsPlan]:
        keys = self.reduced_size(height, width)
        pools = self.num_heads * (self.reduction.macs(height, width) + self.value_reduction.macs(height, width))
        shared = batch * (height * width * (self.k.weight.numel() + self.v.weight.numel()) + pools)
        choice = self.plan_for(height, width, batch, training=training, device=device)
        return [HeadsPlan(self.num_heads, self.q.out_features, keys, choice, shared)]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, out_dim={self.q.out_features}, num_heads={self.num_heads}"

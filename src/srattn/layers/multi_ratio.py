"""Attention over several reductions at once: each group of heads sees keys of its own ratio."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.attention import HeadsPlan, MapAttention, SpatialReductionAttention, check_maps, logit_bias
from srattn.layers.hooks import is_linear
from srattn.layers.local_perception import depthwise_of
from srattn.layers.reduction import Reduction, StridedReduction, as_pair
from srattn.ops import attend
from srattn.ops.plan import Choice, Cost, Shape, choose

Ratio = int | tuple[int, int]


class ActivatedReduction(StridedReduction):
    """GELU(SR(x)): the reduction of the Shunted Transformer, also at ratio 1 (a projection of each token)."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.gelu(super().forward(x, mask))


class HeadGroup(nn.Module):
    """Keys and values of the heads that share a ratio; a depthwise 3x3 over the reduced map is added to the values."""

    def __init__(
        self, dim: int, width: int, num_heads: int, reduction: Reduction, *, qkv_bias: bool, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.reduction = reduction
        self.k = nn.Linear(dim, width, bias=qkv_bias, **factory)
        self.v = nn.Linear(dim, width, bias=qkv_bias, **factory)
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width, **factory)

    def forward(
        self, key: Tensor, key_mask: Tensor | None, key_bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """key (B, H, W, dim). Returns keys and values (B, M, width), and a bias of the logits or None."""
        z = self.reduction(key, key_mask)
        k, v = self.k(z).flatten(1, 2), self.v(z)
        if key_mask is None and key_bias is None:
            return k, depthwise_of(self.local, v, residual=True).flatten(1, 2), None
        scores = self.reduction.reduce_scores(key_mask, key_bias)
        v = v.masked_fill(torch.isneginf(scores).unsqueeze(-1), 0.0)  # what no source fills is no neighbour either
        bias, v = logit_bias(scores, depthwise_of(self.local, v, residual=True).flatten(1, 2))
        return k, v, bias

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds of keys and values for one image."""
        keys = math.prod(self.reduction.size(height, width))
        weights = self.k.weight.numel() + self.v.weight.numel() + self.local.weight.numel()
        return self.reduction.macs(height, width) + keys * weights


class MultiRatioAttention(MapAttention):
    """Shunted self-attention (arXiv:2111.15193, eq. 1 and 2): the heads are divided evenly among the ratios.

    W^Q and W^O are those of all heads. Heads are summed by W^O, so the attention is the sum of one attention a group,
    over slices of W^Q and W^O, each by the path that is planned for its own number of keys.
    The definition is `srattn.ops.reference_shunted`.

    Args:
        dim: channels of queries and output.
        num_heads: heads; must divide `dim`, and be a multiple of the number of ratios.
        ratios: R or (R_h, R_w) of each group of heads, from coarse to fine.
        edge: what happens where a ratio does not divide the grid, as in `SpatialReductionAttention`.
        qkv_bias: biases on W^Q, W^K, W^V.
        attn_drop, proj_drop: dropout on the attention weights and on the output.
        norm_eps: epsilon of the layer norms of the reductions.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ratios: Sequence[Ratio],
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
        count = len(ratios)
        if num_heads < 1 or not count or num_heads % count:
            raise SrattnError(f"num_heads must be a multiple of the {count} ratios, got {num_heads=}, {list(ratios)=}")
        if dim % num_heads:
            raise SrattnError(f"num_heads must divide dim, got {dim=}, {num_heads=}")
        factory = {"device": device, "dtype": dtype}
        self.dim, self.num_heads, self.attn_drop = dim, num_heads, attn_drop
        self.ratios = [as_pair(ratio, "ratio") for ratio in ratios]
        self.scale = (dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.groups = nn.ModuleList(
            HeadGroup(
                dim,
                dim // count,
                num_heads // count,
                ActivatedReduction(dim, ratio, edge=edge, eps=norm_eps, **factory),
                qkv_bias=qkv_bias,
                **factory,
            )
            for ratio in self.ratios
        )
        self.proj = nn.Linear(dim, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def iter_groups(self) -> list[HeadGroup]:
        """The groups as what they are (a ModuleList forgets)."""
        return [group for group in self.groups if isinstance(group, HeadGroup)]

    def forward(
        self,
        x: Tensor,
        key: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """As `SpatialReductionAttention`: x (B, H, W, dim), or (B, N, dim) beside a key. Returns the shape of x."""
        check_maps(self.dim, self.dim, self.dim, x, key, None, key_mask, key_bias)
        queries, out = x.flatten(1, -2), None
        dropout = self.attn_drop if self.training else 0.0
        if not (is_linear(self.q) and is_linear(self.proj)):
            return self._by_modules(queries, x, x if key is None else key, key_mask, key_bias, dropout)
        for group, weights in zip(self.iter_groups(), self._projections(), strict=True):
            k, v, bias = group(x if key is None else key, key_mask, key_bias)
            part = attend.attention(queries, k, v, weights, group.num_heads, self.scale, bias, dropout)
            out = part if out is None else out + part
        assert out is not None
        return self.proj_drop(out.view(x.shape))

    def _by_modules(
        self,
        queries: Tensor,
        x: Tensor,
        key: Tensor,
        key_mask: Tensor | None,
        key_bias: Tensor | None,
        dropout: float,
    ) -> Tensor:
        """As `forward`, with projections that are more than a weight and a bias."""
        parts = []
        for group, q in zip(self.iter_groups(), self.q(queries).chunk(len(self.groups), -1), strict=True):
            k, v, bias = group(key, key_mask, key_bias)
            parts.append(attend.heads_of(q, k, v, group.num_heads, self.scale, bias, dropout))
        return self.proj_drop(self.proj(torch.cat(parts, -1)).view(x.shape))

    def attention_maps(
        self,
        x: Tensor,
        key: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> list[Tensor]:
        """The attention weights of each group over its own keys, (B, heads of the group, N, M), by the plain path."""
        check_maps(self.dim, self.dim, self.dim, x, key, None, key_mask, key_bias)
        maps = []
        for group, q in zip(self.iter_groups(), self.q(x.flatten(1, -2)).chunk(len(self.groups), -1), strict=True):
            k, _, bias = group(x if key is None else key, key_mask, key_bias)
            maps.append(attend.weights_of(q, k, group.num_heads, self.scale, bias))
        return maps

    def attention_map(
        self,
        x: Tensor,
        key: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The attention weights of all heads over one grid, (B, num_heads, N, M): that of the finest ratio.

        The weight of a coarser key is divided among the finer keys that lie in it, by the tokens that they share.
        """
        height, width = (x if key is None else key).shape[1:3]
        fine = self._finest.reduction
        spread = []
        for group, weights in zip(
            self.iter_groups(), self.attention_maps(x, key, key_mask=key_mask, key_bias=key_bias), strict=True
        ):
            coarse = group.reduction.size(height, width)
            rows, columns = (
                _shares(size, coarse[i], group.reduction.ratio[i], fine.size(height, width)[i], fine.ratio[i]).to(
                    weights
                )
                for i, size in enumerate((height, width))
            )
            grid = weights.unflatten(-1, coarse)  # (B, heads, N, M_h, M_w)
            spread.append((rows.T @ grid @ columns).flatten(-2))
        return torch.cat(spread, 1)

    def reduced_size(self, height: int, width: int) -> tuple[int, int]:
        """Grid of the keys of the finest ratio."""
        return self._finest.reduction.size(height, width)

    @property
    def ratio(self) -> tuple[int, int]:  # type: ignore[override]
        """The finest ratio."""
        return self._finest.reduction.ratio

    @property
    def reduction(self) -> Reduction:
        """The finest reduction."""
        return self._finest.reduction

    @property
    def _finest(self) -> HeadGroup:
        return min(self.iter_groups(), key=lambda group: math.prod(group.reduction.ratio))

    def plan_heads(
        self, height: int, width: int, batch: int = 1, *, training: bool = False, device: str | None = None
    ) -> list[HeadsPlan]:
        weight = self.q.weight
        device = device or ("cpu" if weight.device.type == "meta" else weight.device.type)
        plans = []
        for group in self.iter_groups():
            keys, (inner, dim) = group.reduction.size(height, width), group.k.weight.shape
            keeps_scores = training and self.q.bias is not None
            shape = Shape(
                batch,
                height * width,
                math.prod(keys),
                dim,
                group.num_heads,
                inner,
                weight.itemsize,
                device,
                keeps_scores,
                training=training,
            )
            shared = batch * group.macs(height, width)
            plans.append(HeadsPlan(group.num_heads, dim, keys, choose(shape), shared))
        return plans

    def plan_for(
        self, height: int, width: int, batch: int = 1, *, training: bool = False, device: str | None = None
    ) -> Choice:
        """The paths of all groups in one: that of the finest group, the cost of all, each group's reason."""
        plans = self.plan_heads(height, width, batch, training=training, device=device)
        finest = max(plans, key=lambda plan: math.prod(plan.keys)).choice
        choices = [plan.choice for plan in plans]
        cost = Cost(sum(choice.cost.macs for choice in choices), sum(choice.cost.bytes for choice in choices))
        reasons = "; ".join(dict.fromkeys(choice.reason for choice in choices))
        return Choice(finest.path, all(choice.streamed for choice in choices), cost, reasons)

    def _projections(self) -> list[attend.Projections]:
        """The slices of W^Q and W^O of each group; the output's bias is added once."""
        count = len(self.groups)
        q_weights, out_weights = self.q.weight.chunk(count), self.proj.weight.chunk(count, 1)
        q_biases = [None] * count if self.q.bias is None else self.q.bias.chunk(count)
        out_biases = [self.proj.bias] + [None] * (count - 1)
        return [attend.Projections(*parts) for parts in zip(q_weights, q_biases, out_weights, out_biases, strict=True)]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, ratios={self.ratios}"


def _shares(tokens: int, coarse: int, coarse_ratio: int, fine: int, fine_ratio: int) -> Tensor:
    """(coarse, fine): the part of each coarse key's tokens along one axis that lies in each fine key; rows sum to 1."""

    def ends(count: int, ratio: int) -> tuple[Tensor, Tensor]:
        start = torch.arange(count) * ratio
        return start, (start + ratio).clamp(max=tokens)

    (a, b), (c, d) = ends(coarse, coarse_ratio), ends(fine, fine_ratio)
    common = (torch.minimum(b[:, None], d) - torch.maximum(a[:, None], c)).clamp(min=0).double()
    return common / common.sum(1, keepdim=True).clamp(min=1)


class LocallyEnhancedAttention(SpatialReductionAttention):
    """Attention over every token whose values, through a depthwise 3x3, are added to the heads' output before W^O.

    The last stage of the Shunted Transformer, as its published code has it: where nothing is reduced, the local
    enhancement skips the attention. Self-attention alone.
    """

    def __init__(self, dim: int, num_heads: int, *, device: Any = None, dtype: Any = None, **options: Any) -> None:
        super().__init__(dim, num_heads, 1, device=device, dtype=dtype, **options)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(  # type: ignore[override]
        self, x: Tensor, *, key_mask: Tensor | None = None, key_bias: Tensor | None = None
    ) -> Tensor:
        """x (B, H, W, dim); key_mask and key_bias (B, H, W). Returns the shape of x."""
        k, v, bias = self._keys_values(x, None, None, key_mask, key_bias)
        values = v.view(x.shape)
        if key_mask is not None:
            values = values.masked_fill(~key_mask.unsqueeze(-1), 0.0)
        if not self._is_plain():
            dropout = self.attn_drop if self.training else 0.0
            out = attend.heads_of(self.q(x.flatten(1, 2)), k, v, self.num_heads, self.scale, bias, dropout)
            return self.proj_drop(self.proj(out.view(x.shape) + depthwise_of(self.local, values)))
        # W^O is linear: its product with the local part joins the attention whatever path that takes.
        local = F.linear(depthwise_of(self.local, values), self.proj.weight)
        return self.proj_drop(self._attend(x.flatten(1, 2), k, v, bias).view(x.shape) + local)

    def plan_heads(
        self, height: int, width: int, batch: int = 1, *, training: bool = False, device: str | None = None
    ) -> list[HeadsPlan]:
        (plan,) = super().plan_heads(height, width, batch, training=training, device=device)
        local = batch * height * width * (self.local.weight.numel() + self.proj.weight.numel())
        return [plan._replace(shared=plan.shared + local)]

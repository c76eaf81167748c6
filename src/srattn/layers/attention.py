"""Spatial-Reduction Attention as a module: self- and cross-attention on maps, masks, and a planned path."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.hooks import is_linear
from srattn.layers.reduction import PooledReduction, Reduction, StridedReduction, as_pair, check_edge
from srattn.ops import attend
from srattn.ops.plan import Choice, Shape, choose, cost_of, forced


class HeadsPlan(NamedTuple):
    """The plan of heads that share their keys: how many, the grid of the keys, the path, and the work beside it."""

    heads: int
    dim: int
    keys: tuple[int, int]
    choice: Choice
    shared: int
    """Multiply-adds that are the same on every path: the reduction, W^K and W^V."""


class MapAttention(nn.Module):
    """What plans and explanations ask of an attention on maps (batch, height, width, channels)."""

    dim: int
    num_heads: int
    ratio: tuple[int, int]

    def attention_map(self, x: Tensor) -> Tensor:
        """The attention weights, (B, num_heads, N, M) over the reduced tokens in raster order."""
        raise NotImplementedError

    def query_size(self, height: int, width: int) -> tuple[int, int]:
        """Grid of the queries, and of the output, for a map of (height, width) tokens; the map's own unless pooled."""
        return height, width

    def reduced_size(self, height: int, width: int) -> tuple[int, int]:
        """Grid (M_h, M_w) of the keys for a key map of (height, width) tokens."""
        raise NotImplementedError

    def plan_for(
        self, height: int, width: int, batch: int = 1, *, training: bool = False, device: str | None = None
    ) -> Choice:
        """The path that `forward` takes at this size, with its cost and the reason in words."""
        raise NotImplementedError

    def plan_heads(
        self, height: int, width: int, batch: int = 1, *, training: bool = False, device: str | None = None
    ) -> list[HeadsPlan]:
        """What `forward` does at this size, for each set of heads that share their keys."""
        raise NotImplementedError


def logit_bias(scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the keys (B, ...) as a bias (B, 1, 1, M), and the values v (B, M, C).

    Images without any valid key (all scores minus infinity) attend to nothing: every key counts, with a value of zero.
    """
    bias = scores.flatten(1).to(v.dtype)
    lost = torch.isneginf(bias).all(1, keepdim=True)
    return bias.masked_fill(lost, 0.0)[:, None, None, :], v.masked_fill(lost.unsqueeze(-1), 0.0)


class SpatialReductionAttention(MapAttention):
    """Multi-head attention whose keys and values are shrunk in space first (PVT, arXiv:2102.12122, eq. 1 to 4).

    Tokens are (batch, height, width, channels). The definition is `srattn.ops.reference`; which of the equal paths
    computes it is planned for the shapes at hand, see `plan_for` and `srattn.force_path`.

    Args:
        dim: channels of queries and output.
        num_heads: heads; must divide `dim`.
        ratio: R, or (R_h, R_w). 1 means no reduction and no norm, as published.
        linear: pool keys and values to a grid of `pool_size` cells instead (PVT v2's linear SRA); `ratio` stays 1.
        edge: what happens where the ratio does not divide the grid: "pad" with zeros, so that every token reaches some
            key; "floor", the trailing strip is lost, as in all published code; "error".
        reduction: any module of `srattn.layers.reduction`, in place of the one that `ratio` or `linear` describe.
        key_dim, value_dim: channels of the maps given as key and value; `dim` by default. Where they differ, each is
            reduced with a W^S of its own width, else with one W^S.
        qk_dim: channels of the projected queries and keys, all heads side by side; `dim` by default.
        position_bias: a module that maps the grids (H, W) and (M_h, M_w) to logits (num_heads, H W, M_h M_w), added
            for every image.
        qkv_bias: biases on W^Q, W^K, W^V.
        attn_drop, proj_drop: dropout on the attention weights and on the output; both work on every path.
        scale: factor of the logits, by default (qk_dim / num_heads) ** -0.5.
        norm_eps: epsilon of the layer norm of the reduction.

    Raises:
        SrattnError: for widths that heads do not divide, an unknown edge policy, a ratio given beside `linear`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ratio: int | tuple[int, int] = 1,
        *,
        linear: bool = False,
        pool_size: int | tuple[int, int] = 7,
        edge: str = "pad",
        reduction: Reduction | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        qk_dim: int | None = None,
        position_bias: nn.Module | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        scale: float | None = None,
        norm_eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise SrattnError(f"num_heads must divide dim, got {dim=}, {num_heads=}")
        qk_dim = dim if qk_dim is None else qk_dim
        if qk_dim % num_heads:
            raise SrattnError(f"num_heads must divide qk_dim, got {qk_dim=}, {num_heads=}")
        factory = {"device": device, "dtype": dtype}
        self.dim, self.num_heads = dim, num_heads
        self.key_dim = dim if key_dim is None else key_dim
        self.value_dim = self.key_dim if value_dim is None else value_dim
        self.ratio = as_pair(ratio, "ratio")
        self.scale = (qk_dim // num_heads) ** -0.5 if scale is None else scale
        self.attn_drop = attn_drop
        check_edge(edge)
        if linear and self.ratio != (1, 1):
            raise SrattnError(
                f"linear=True pools to {pool_size} cells whatever the ratio: leave ratio at 1, got {ratio}"
            )

        if reduction is not None and (self.ratio != (1, 1) or linear or self.key_dim != self.value_dim):
            raise SrattnError("a reduction of your own stands for ratio and linear, and for one width of key and value")
        if reduction is not None:
            self.ratio = reduction.ratio

        def reduce(width: int) -> Reduction:
            if linear:
                return PooledReduction(width, pool_size, eps=norm_eps, **factory)
            return (
                Reduction()
                if self.ratio == (1, 1)
                else StridedReduction(width, self.ratio, edge=edge, eps=norm_eps, **factory)
            )

        self.q = nn.Linear(dim, qk_dim, bias=qkv_bias, **factory)
        self.k = nn.Linear(self.key_dim, qk_dim, bias=qkv_bias, **factory)
        self.v = nn.Linear(self.value_dim, dim, bias=qkv_bias, **factory)
        self.reduction = reduce(self.key_dim) if reduction is None else reduction
        self.value_reduction = None if self.key_dim == self.value_dim else reduce(self.value_dim)
        self.proj = nn.Linear(dim, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.position_bias = position_bias

    def forward(
        self,
        x: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """Attends from every token of x to the reduced tokens of `key`.

        Args:
            x: queries, (B, H, W, dim), or (B, N, dim) where a key is given.
            key: (B, H_k, W_k, key_dim); x itself by default.
            value: (B, H_k, W_k, value_dim); `key` by default, and then the reduction is computed once.
            key_mask: (B, H_k, W_k) bool, true where a key token is valid. A reduced token counts if any of its sources
                is valid; invalid sources contribute nothing. An image without any valid key gets the output bias.
            key_bias: (B, H_k, W_k), finite, added to the logits of each key, averaged over its valid sources.

        Returns:
            The shape of x.
        """
        k, v, bias = self._keys_values(x, key, value, key_mask, key_bias)
        return self.proj_drop(self._attend(x.flatten(1, -2), k, v, bias).view(x.shape))

    def _attend(
        self, queries: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, add: attend.Add | None = None
    ) -> Tensor:
        """Queries (B, N, dim) before W^Q to the output of W^O, by the planned path, and what `add` asks for."""
        dropout = self.attn_drop if self.training else 0.0
        if not self._is_plain():
            out = self.proj(attend.heads_of(self.q(queries), k, v, self.num_heads, self.scale, bias, dropout))
            return out if add is None else add.residual + out
        projections = attend.Projections(self.q.weight, self.q.bias, self.proj.weight, self.proj.bias)
        return attend.attention(queries, k, v, projections, self.num_heads, self.scale, bias, dropout, add)

    def _is_plain(self) -> bool:
        """Whether the projections around the attention are their weights and biases, which every path reads."""
        return is_linear(self.q) and is_linear(self.proj)

    def attention_map(
        self,
        x: Tensor,
        key: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The attention weights, (B, num_heads, N, M) over the reduced tokens in raster order, by the plain path."""
        k, _, bias = self._keys_values(x, key, None, key_mask, key_bias)
        return self._weights(x.flatten(1, -2), k, bias)

    def _weights(self, queries: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """The attention weights of queries (B, N, dim) before W^Q."""
        return attend.weights_of(self.q(queries), k, self.num_heads, self.scale, bias)

    def reduced_size(self, height: int, width: int) -> tuple[int, int]:
        """Grid (M_h, M_w) of the keys for a key map of (height, width) tokens."""
        return self.reduction.size(height, width)

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
        """The path that `forward` takes at this size, with its cost and the reason in words.

        `device` is a type such as "cuda", that of the parameters by default (a CPU's for the meta device).
        """
        keys = math.prod(self.reduced_size(*(key_size or (height, width))))
        return self._choose(height * width, keys, batch, training, device)

    def _choose(self, queries: int, keys: int, batch: int, training: bool, device: str | None) -> Choice:
        """The choice for these numbers of tokens."""
        weight = self.q.weight
        device = device or weight.device.type
        keeps_scores = training and (self.q.bias is not None or self.position_bias is not None)
        device = "cpu" if device == "meta" else device
        sizes = (batch, queries, keys, self.dim, self.num_heads, weight.shape[0])
        shape = Shape(*sizes, weight.itemsize, device, keeps_scores, training=training)
        if self._is_plain():
            return choose(shape)
        path = "plain" if forced() == "plain" else "sdpa"
        return Choice(path, False, cost_of(path, shape), "a projection is more than its weight and bias: it is called")

    def plan_heads(
        self, height: int, width: int, batch: int = 1, *, training: bool = False, device: str | None = None
    ) -> list[HeadsPlan]:
        keys = self.reduced_size(height, width)
        projections = math.prod(keys) * (self.k.weight.numel() + self.v.weight.numel())
        choice = self.plan_for(height, width, batch, training=training, device=device)
        shared = batch * (self.reduction.macs(height, width) + projections)
        return [HeadsPlan(self.num_heads, self.dim, keys, choice, shared)]

    def _keys_values(
        self, x: Tensor, key: Tensor | None, value: Tensor | None, key_mask: Tensor | None, key_bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Reduced and projected keys and values, (B, M, dim) each, and a bias of the logits or None."""
        check_maps(self.dim, self.key_dim, self.value_dim, x, key, value, key_mask, key_bias)
        key = x if key is None else key
        z_key = self.reduction(key, key_mask).flatten(1, 2)
        if self.value_reduction is None and (value is None or value is key):
            z_value = z_key
        else:
            reduce_value = self.reduction if self.value_reduction is None else self.value_reduction
            z_value = reduce_value(key if value is None else value, key_mask).flatten(1, 2)
        k, v = self.k(z_key), self.v(z_value)
        position = None
        if self.position_bias is not None:
            grid = x.shape[1:3] if x.ndim == 4 else (1, x.shape[1])
            position = self.position_bias(grid, self.reduction.size(*key.shape[1:3])).unsqueeze(0)
        if key_mask is None and key_bias is None:
            return k, v, position
        bias, v = logit_bias(self.reduction.reduce_scores(key_mask, key_bias), v)
        return k, v, bias if position is None else bias + position

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"


def check_maps(
    dim: int,
    key_dim: int,
    value_dim: int,
    x: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    key_mask: Tensor | None,
    key_bias: Tensor | None,
) -> None:
    """Refuses what does not fit together, with the shapes at hand."""
    if x.shape[-1] != dim or not (x.ndim == 4 or (x.ndim == 3 and key is not None)):
        raise SrattnError(
            f"queries are (batch, height, width, {dim}), or (batch, tokens, {dim}) beside a key; got {tuple(x.shape)}"
        )
    if value is not None and key is None:
        raise SrattnError("a value needs its key: attn(x, key=k, value=v)")
    source = x if key is None else key
    for name, given, width in (("key", source, key_dim), ("value", value, value_dim)):
        if given is not None and (given.ndim != 4 or given.shape[-1] != width or given.shape[0] != x.shape[0]):
            raise SrattnError(f"{name} is (batch {x.shape[0]}, height, width, {width}), got {tuple(given.shape)}")
    if value is None and value_dim != key_dim:
        raise SrattnError(f"key_dim {key_dim} and value_dim {value_dim} differ: give the value as well")
    if value is not None and value.shape[1:3] != source.shape[1:3]:
        raise SrattnError(
            f"key and value lie on one grid, got {tuple(source.shape[1:3])} and {tuple(value.shape[1:3])}"
        )
    for name, given in (("key_mask", key_mask), ("key_bias", key_bias)):
        if given is not None and given.shape != source.shape[:3]:
            raise SrattnError(
                f"{name} has the shape of the key map, {tuple(source.shape[:3])}, got {tuple(given.shape)}"
            )
    if key_mask is not None and key_mask.dtype != torch.bool:
        raise SrattnError(f"key_mask is boolean, true where a key token is valid, got {key_mask.dtype}")

"""A model's copy whose blocks are written for a runtime: less to compute, fewer steps, the same numbers.

`fast_form` changes a copy, never the model. In every block of Spatial-Reduction Attention that it knows

- the affine parts of both norms, and of the norm after the reduction, go into the linear maps that read them;
- the scale of the logits goes into W^Q; the biases of W^K and W^V leave the keys and values (see `fold.absorb`);
- where it takes fewer multiply-adds at the declared size, W^Q goes into the keys and W^O into the values for good: the
  products of both weights are made here, so that the graph has neither;
- the feed-forward and the reduction take the form that the runtime is fastest with, see `Form`.

All other modules stay what they are.
"""

from __future__ import annotations

import copy
import math
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from srattn.export import fold
from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.block import Block
from srattn.layers.feed_forward import ConvMlp, FeedForward, Mlp
from srattn.layers.reduction import PooledReduction, Reduction, StridedReduction
from srattn.models.backbone import Backbone
from srattn.ops.attend import merge_heads, split_heads
from srattn.ops.reduce import fit, pooled


class Form(NamedTuple):
    """How the parts of a block are written.

    Attributes:
        feed_forward: "tokens" keeps the channels last and turns the map round the depthwise convolution; "map" makes
            the first linear map a 1x1 convolution, so that the map is turned once, behind the convolutions; "channels"
            makes both linear maps 1x1 convolutions, and adds the residual while it is a map.
        attention: "fused" is one scaled_dot_product_attention, which a runtime may know; "products" two products and
            a softmax.
    """

    feed_forward: Literal["tokens", "map", "channels"] = "tokens"
    attention: Literal["fused", "products"] = "products"


class Grid(NamedTuple):
    """Tokens of a stage at the declared size, and whether this is the only size that the graph will see."""

    height: int
    width: int
    fixed: bool


def fast_form(model: Backbone, size: tuple[int, int], fixed: bool, form: Form) -> Backbone:
    """The copy, in eval mode, without gradients.

    Args:
        size: height and width of the images for which the choice of absorption is made.
        fixed: no other size will come, so that padding which this size does not need is left out.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    grid = size
    for index, stage in enumerate(model.iter_stages()):
        tokens = model.tokens_of(index, stage.patch_embed.size(*grid))
        for place, block in enumerate(stage.blocks):
            if isinstance(block, Block) and is_known(block):
                stage.blocks[place] = FastBlock(block, Grid(*tokens, fixed), form)
        for owner in (stage, stage.patch_embed):
            if type(owner.norm) is nn.LayerNorm:
                owner.norm = TokenNorm(owner.norm)
        grid = stage.size(*grid)
    return model


def is_known(block: Block) -> bool:
    """Whether a block is of attention and a feed-forward whose parts are what they were built as."""
    if type(block) is not Block or type(block.attn) is not SpatialReductionAttention:
        return False
    attn, mlp = block.attn, block.mlp
    if attn.position_bias is not None or attn.value_reduction is not None or type(mlp) not in (Mlp, ConvMlp):
        return False
    assert isinstance(mlp, FeedForward)
    linear = [attn.q, attn.k, attn.v, attn.proj, mlp.fc1, mlp.fc2]
    whole = all(type(module) is nn.Linear for module in linear) and attn.key_dim == attn.value_dim == attn.dim
    norms = type(block.norm1) is nn.LayerNorm and type(block.norm2) is nn.LayerNorm
    return whole and norms and type(attn.reduction) in (Reduction, StridedReduction, PooledReduction)


class FastBlock(nn.Module):
    """What `Block` computes on (B, H, W, C). Inside, tokens are (B, N, C), whose norms every runtime knows."""

    def __init__(self, block: Block, grid: Grid, form: Form) -> None:
        super().__init__()
        attn, mlp = block.attn, block.mlp
        assert isinstance(attn, SpatialReductionAttention) and isinstance(mlp, FeedForward)
        assert isinstance(block.norm1, nn.LayerNorm) and isinstance(block.norm2, nn.LayerNorm)
        # A map that is padded behind the norm has zeros there, which no affine part of the norm has gone over.
        pads = _pads(attn.reduction, grid)
        self.norm1 = block.norm1 if pads else Normalise(block.norm1)
        self.attn = FastAttention(attn, None if pads else fold.affine_of(block.norm1), grid, form)
        self.norm2 = Normalise(block.norm2)
        self.mlp = FastFeedForward(mlp, fold.affine_of(block.norm2), form)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1], x.shape[2]
        tokens = x.flatten(1, 2)
        tokens = tokens + self.attn(self.norm1(tokens), size)
        tokens = self.mlp(self.norm2(tokens), size, tokens)
        return tokens.unflatten(1, size)


class TokenNorm(nn.Module):
    """A layer norm on (B, H, W, C), computed on (B, N, C)."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))


def _pads(reduction: Reduction, grid: Grid) -> bool:
    if not isinstance(reduction, StridedReduction) or reduction.edge != "pad":
        return False
    return not grid.fixed or bool(grid.height % reduction.ratio[0] or grid.width % reduction.ratio[1])


class Normalise(nn.Module):
    """A layer norm without its affine part."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.shape, self.eps = norm.normalized_shape, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, eps=self.eps)


class FastReduction(nn.Module):
    """Tokens (B, N, C) of a map to reduced tokens (B, M, C), before the affine part of the reduction's norm.

    `affine` is that part, or that of the norm before the attention where nothing is reduced: who reads the tokens takes
    it in.
    """

    affine: fold.Affine | None
    weight: Tensor
    bias: Tensor

    def __init__(self, reduction: Reduction, before: fold.Affine | None, pads: bool) -> None:
        super().__init__()
        self.edge, self.pads = getattr(reduction, "edge", "floor"), pads
        self.ratio, self.cells, self.norm = reduction.ratio, reduction.cells, None
        self.affine = before
        if isinstance(reduction, StridedReduction):
            proj = fold.behind_blocks(reduction.proj, before, math.prod(self.ratio))
            kernel = proj.weight.unflatten(1, (*self.ratio, -1)).permute(0, 3, 1, 2).contiguous()
            self.weight, self.bias = _constant(kernel), _constant(proj.bias)
            self.norm, self.affine = Normalise(reduction.norm), fold.affine_of(reduction.norm)
        elif isinstance(reduction, PooledReduction):
            proj = fold.behind(reduction.proj, before)  # a mean of affine values is the affine mean
            self.weight, self.bias = _constant(proj.weight), _constant(proj.bias)
            self.norm, self.affine = reduction.norm, None  # a GELU stands between it and whoever reads

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        if self.norm is None:
            return tokens
        x = tokens.unflatten(1, size)
        if self.cells is not None:
            z = F.linear(pooled(x, self.cells), self.weight, self.bias)
            return F.gelu(self.norm(z)).flatten(1, 2)
        if self.pads:
            x = fit(x, self.ratio, self.edge)
        z = F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, stride=self.ratio)
        return self.norm(z.flatten(2).transpose(1, 2))


class FastAttention(nn.Module):
    """What `SpatialReductionAttention` computes, on tokens (B, N, C) before the affine part of their norm."""

    keys: Tensor
    values: Tensor
    shift: Tensor
    bias: Tensor
    queries: Tensor
    out: Tensor

    def __init__(self, attn: SpatialReductionAttention, before: fold.Affine | None, grid: Grid, form: Form) -> None:
        super().__init__()
        self.heads, self.fused = attn.num_heads, form.attention == "fused"
        self.reduction = FastReduction(attn.reduction, before, _pads(attn.reduction, grid))
        q, out = fold.behind(attn.q, before), fold.behind(attn.proj, None)
        k, v = fold.behind(attn.k, self.reduction.affine), fold.behind(attn.v, self.reduction.affine)
        queries, keys = grid.height * grid.width, math.prod(attn.reduced_size(grid.height, grid.width))
        width = attn.q.out_features
        absorbed = fold.absorbed_macs(queries, keys, attn.dim, self.heads)
        self.absorbs = absorbed < fold.split_macs(queries, keys, attn.dim, width)
        made: dict[str, Tensor]
        if self.absorbs:
            made = fold.absorb(q, k, v, out, self.heads, attn.scale)._asdict()
        else:
            bias = out.bias + out.weight @ v.bias
            made = {"keys": k.weight, "values": v.weight, "bias": bias, "out": out.weight}
            made |= {"queries": q.weight * attn.scale, "shift": q.bias * attn.scale}
        for name, tensor in made.items():
            setattr(self, name, _constant(tensor))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        z = self.reduction(x, size)
        return self._absorbed(x, z) if self.absorbs else self._split(x, z)

    def _absorbed(self, x: Tensor, z: Tensor) -> Tensor:
        keys, values = F.linear(z, self.keys), F.linear(z, self.values, self.bias)  # (B, M, h C)
        shift = F.linear(z, self.shift).transpose(1, 2)  # (B, h, M)
        if self.heads == 1 and self.fused:
            each = (x.unsqueeze(1), keys.unsqueeze(1), values.unsqueeze(1), shift.unsqueeze(1))
            return F.scaled_dot_product_attention(*each, scale=1.0).squeeze(1)
        if self.heads > 1:
            keys, values = (split_heads(each, self.heads).flatten(1, 2) for each in (keys, values))  # (B, h M, C)
        scores = x @ keys.transpose(1, 2) + shift.flatten(1).unsqueeze(1)  # (B, N, h M)
        if self.heads == 1:
            return scores.softmax(-1) @ values
        return scores.unflatten(-1, (self.heads, -1)).softmax(-1).flatten(2) @ values

    def _split(self, x: Tensor, z: Tensor) -> Tensor:
        q = split_heads(F.linear(x, self.queries, self.shift), self.heads)
        k, v = split_heads(F.linear(z, self.keys), self.heads), split_heads(F.linear(z, self.values), self.heads)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        else:
            out = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return F.linear(merge_heads(out), self.out, self.bias)


class FastFeedForward(nn.Module):
    """What `FeedForward` computes, on tokens (B, N, C) before the affine part of their norm."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor

    def __init__(self, mlp: FeedForward, before: fold.Affine, form: Form) -> None:
        super().__init__()
        first, second = fold.behind(mlp.fc1, before), fold.behind(mlp.fc2, None)
        self.form = form.feed_forward if mlp.dwconv is not None else "tokens"
        self.extra_relu, self.dwconv = mlp.extra_relu, mlp.dwconv
        turned = {"tokens": (), "map": (first,), "channels": (first, second)}[self.form]
        for name, linear in (("first", first), ("second", second)):
            weight = linear.weight[:, :, None, None] if any(linear is each for each in turned) else linear.weight
            setattr(self, name, _constant(weight))
            setattr(self, f"{name}_bias", _constant(linear.bias))

    def forward(self, x: Tensor, size: tuple[int, int], residual: Tensor) -> Tensor:
        """`residual` plus what the feed-forward makes of x."""
        if self.dwconv is None:
            return residual + F.linear(F.gelu(F.linear(x, self.first, self.first_bias)), self.second, self.second_bias)
        if self.form == "tokens":
            h = self._between(F.linear(x, self.first, self.first_bias)).unflatten(1, size).permute(0, 3, 1, 2)
        else:
            h = self._between(F.conv2d(_as_map(x, size), self.first, self.first_bias))
        h = self.dwconv(h)
        if self.form == "channels":
            out = F.conv2d(F.gelu(h), self.second, self.second_bias)
            return (out + _as_map(residual, size)).permute(0, 2, 3, 1).flatten(1, 2)
        h = h.permute(0, 2, 3, 1).flatten(1, 2)
        return residual + F.linear(F.gelu(h), self.second, self.second_bias)

    def _between(self, h: Tensor) -> Tensor:
        return F.relu(h) if self.extra_relu else h


def _as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N, C) to (B, C, H, W), contiguous: strides that differ would tie symbolic sizes to each other."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2).contiguous()


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def absorbed_in(model: nn.Module) -> list[bool]:
    """For each attention of a fast form in order: whether W^Q and W^O were absorbed."""
    return [module.absorbs for module in model.modules() if isinstance(module, FastAttention)]

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
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.export import fold
from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.block import Block, Blocks
from srattn.layers.feed_forward import ConvMlp, FeedForward, Mlp
from srattn.layers.local_perception import is_depthwise_3x3
from srattn.layers.reduction import PooledReduction, Reduction, StridedReduction
from srattn.models.backbone import Backbone
from srattn.ops.attend import merge_heads, split_heads
from srattn.ops.reduce import fit, pooled


class Form(NamedTuple):
    """How the parts of a block are written.

    Attributes:
        feed_forward: "tokens" keeps the channels last and turns the map round the depthwise convolution; "map" and
            "channels" make the linear maps 1x1 convolutions, and the residual is added to tokens or to a map.
        attention: "fused" is one scaled_dot_product_attention, which a runtime may know; "products" two products and
            a softmax.
        absorb_heads: attention of more heads is not absorbed; any number by default.
        joined: keys and values are one product, and queries too where nothing is reduced.
        in_turn: bytes of the hidden map of a feed-forward that may be under way: the images of a fixed batch go through
            a stage a few at a time, so that what a block makes is still in the cache when the next step reads it.
        in_parts: bytes of that map for one image: its channels are computed in parts, whose contributions are added.
            Zero, for either, is all at once.
        centred: the tokens of a stage lack their mean over the channels, which every norm takes off anyway: the maps
            that write them leave it out, and the norms of the blocks have but a root mean square to divide by.
    """

    feed_forward: Literal["tokens", "map", "channels"] = "tokens"
    attention: Literal["fused", "products"] = "products"
    absorb_heads: int | None = None
    joined: bool = False
    in_turn: int = 0
    in_parts: int = 0
    centred: bool = False


class Grid(NamedTuple):
    """Tokens of a stage at the declared size, and whether this is the only size that the graph will see."""

    height: int
    width: int
    fixed: bool


_MOST_TURNS = 16
_LEAST_CHANNELS = 64


def fast_form(
    model: Backbone, size: tuple[int, int], fixed: bool, form: Form, batch: int | None = None, item: int = 4
) -> Backbone:
    """The copy, in eval mode, without gradients.

    Args:
        size: height and width of the images for which the choice of absorption is made.
        fixed: no other size will come, so that padding which this size does not need is left out.
        batch: images at a time, if it is always the same number.
        item: bytes of a number.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    grid = size
    for index, stage in enumerate(model.iter_stages()):
        tokens = model.tokens_of(index, stage.patch_embed.size(*grid))
        hidden = 0
        known = {place: block for place, block in enumerate(stage.blocks) if is_known(block)}
        # Who reads the tokens behind the blocks must not see a difference, and a norm does not.
        centred = form.centred and len(known) == len(stage.blocks) and type(stage.norm) is nn.LayerNorm
        for place, block in known.items():
            fast = FastBlock(block, Grid(*tokens, fixed), form._replace(centred=centred), item)
            stage.blocks[place], hidden = fast, max(hidden, fast.hidden_bytes)
        if centred:
            stage.blocks.insert(0, Centre())
        if form.in_turn and batch is not None:
            turns = min(-(-batch * hidden // form.in_turn), batch, _MOST_TURNS)
            if turns > 1:
                stage.blocks = Blocks([InTurn(stage.blocks, -(-batch // turns))])
        for owner in (stage, stage.patch_embed):
            norm = getattr(owner, "norm", None)  # MViTv2 embeds with none
            if type(norm) is nn.LayerNorm:
                owner.norm = TokenNorm(norm, centred and owner is stage)
        grid = stage.size(*grid)
    return model


def is_known(block: nn.Module) -> TypeGuard[Block]:
    """Whether a block is of attention and a feed-forward whose parts are what they were built as."""
    if type(block) is not Block or type(block.attn) is not SpatialReductionAttention:
        return False
    attn, mlp = block.attn, block.mlp
    if attn.position_bias is not None or attn.value_reduction is not None or type(mlp) not in (Mlp, ConvMlp):
        return False
    assert isinstance(mlp, FeedForward)
    linear = [attn.q, attn.k, attn.v, attn.proj, mlp.fc1, mlp.fc2]
    whole = all(type(module) is nn.Linear for module in linear) and attn.key_dim == attn.value_dim == attn.dim
    whole = whole and (mlp.dwconv is None or is_depthwise_3x3(mlp.dwconv))
    norms = type(block.norm1) is nn.LayerNorm and type(block.norm2) is nn.LayerNorm
    return whole and norms and type(attn.reduction) in (Reduction, StridedReduction, PooledReduction)


class FastBlock(nn.Module):
    """What `Block` computes on (B, H, W, C). Inside, tokens are (B, N, C), whose norms every runtime knows."""

    def __init__(self, block: Block, grid: Grid, form: Form, item: int = 4) -> None:
        super().__init__()
        attn, mlp = block.attn, block.mlp
        assert isinstance(attn, SpatialReductionAttention) and isinstance(mlp, FeedForward)
        assert type(block.norm1) is nn.LayerNorm and type(block.norm2) is nn.LayerNorm
        # A map that is padded behind the norm has zeros there, which no affine part of the norm has gone over.
        pads = _pads(attn.reduction, grid)
        self.norm1 = block.norm1 if pads else Normalise(block.norm1, form.centred)
        self.attn = FastAttention(attn, None if pads else fold.affine_of(block.norm1), grid, form)
        self.norm2 = Normalise(block.norm2, form.centred)
        self.hidden_bytes = item * grid.height * grid.width * mlp.fc1.out_features
        parts = -(-self.hidden_bytes // form.in_parts) if form.in_parts else 1
        self.mlp = FastFeedForward(mlp, fold.affine_of(block.norm2), form, parts)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1], x.shape[2]
        tokens = x.flatten(1, 2)
        tokens = tokens + self.attn(self.norm1(tokens), size)
        tokens = self.mlp(self.norm2(tokens), size, tokens)
        return tokens.unflatten(1, size)


class InTurn(nn.Module):
    """Blocks that a few images of a batch go through at a time."""

    def __init__(self, blocks: nn.ModuleList, images: int) -> None:
        super().__init__()
        self.blocks, self.images = blocks, images

    def forward(self, x: Tensor) -> Tensor:
        done = []
        for some in x.split(self.images):
            for block in self.blocks:
                some = block(some)
            done.append(some)
        return torch.cat(done)


class TokenNorm(nn.Module):
    """A layer norm on (B, H, W, C), computed on (B, N, C); see `Normalise`."""

    def __init__(self, norm: nn.LayerNorm, centred: bool) -> None:
        super().__init__()
        self.norm = Scaled(norm) if centred else norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))


class Scaled(nn.Module):
    """A layer norm of centred tokens with its affine part."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = Normalise(norm, True)
        self.weight, self.bias = (_constant(tensor) for tensor in fold.affine_of(norm))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.weight + self.bias


def _pads(reduction: Reduction, grid: Grid) -> bool:
    if not isinstance(reduction, StridedReduction) or reduction.edge != "pad":
        return False
    return not grid.fixed or bool(grid.height % reduction.ratio[0] or grid.width % reduction.ratio[1])


class Centre(nn.Module):
    """Tokens less their mean over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)


class Normalise(nn.Module):
    """A layer norm without its affine part; of tokens that are `centred`, division by the root mean square is all."""

    def __init__(self, norm: nn.LayerNorm, centred: bool) -> None:
        super().__init__()
        self.shape, self.eps, self.centred = norm.normalized_shape, norm.eps, centred

    def forward(self, x: Tensor) -> Tensor:
        if self.centred:  # in the form that OpenVINO has one step for
            return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps)
        return F.layer_norm(x, self.shape, eps=self.eps)


class FastReduction(nn.Module):
    """Tokens (B, N, C) of a map to reduced tokens (B, M, C), before the affine part of the reduction's norm.

    `affine` is that part, or that of the norm before the attention where nothing is reduced: who reads the tokens takes
    it in.
    """

    affine: fold.Affine | None
    weight: Tensor
    bias: Tensor

    def __init__(self, reduction: Reduction, before: fold.Affine | None, pads: bool, form: Form) -> None:
        super().__init__()
        self.edge, self.pads = getattr(reduction, "edge", "floor"), pads
        self.ratio, self.cells, self.norm = reduction.ratio, reduction.cells, None
        self.affine = before
        if isinstance(reduction, StridedReduction):
            proj = fold.behind_blocks(reduction.proj, before, math.prod(self.ratio))
            proj = fold.centred(proj) if form.centred else proj
            kernel = proj.weight.unflatten(1, (*self.ratio, -1)).permute(0, 3, 1, 2).contiguous()
            self.weight, self.bias = _constant(kernel), _constant(proj.bias)
            self.norm, self.affine = Normalise(reduction.norm, form.centred), fold.affine_of(reduction.norm)
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
    keys_values: Tensor
    shift: Tensor
    bias: Tensor
    queries: Tensor
    out: Tensor

    def __init__(self, attn: SpatialReductionAttention, before: fold.Affine | None, grid: Grid, form: Form) -> None:
        super().__init__()
        self.heads, self.fused = attn.num_heads, form.attention == "fused"
        self.reduction = FastReduction(attn.reduction, before, _pads(attn.reduction, grid), form)
        q, out = fold.behind(attn.q, before), fold.behind(attn.proj, None)
        out = fold.centred(out) if form.centred else out
        k, v = fold.behind(attn.k, self.reduction.affine), fold.behind(attn.v, self.reduction.affine)
        queries, keys = grid.height * grid.width, math.prod(attn.reduced_size(grid.height, grid.width))
        width = attn.q.out_features
        absorbed = fold.absorbed_macs(queries, keys, attn.dim, self.heads)
        allowed = form.absorb_heads is None or self.heads <= form.absorb_heads
        self.absorbs = allowed and absorbed < fold.split_macs(queries, keys, attn.dim, width)
        self.joined = form.joined and not self.absorbs
        made: dict[str, Tensor]
        if self.absorbs:
            made = fold.absorb(q, k, v, out, self.heads, attn.scale)._asdict()
        else:
            made = {"bias": out.bias + out.weight @ v.bias, "out": out.weight}
            made |= {"queries": q.weight * attn.scale, "shift": q.bias * attn.scale}
            if not self.joined:
                made |= {"keys": k.weight, "values": v.weight}
            elif self.reduction.norm is not None:
                made |= {"keys_values": torch.cat([k.weight, v.weight])}
            else:
                made |= {"queries": torch.cat([made["queries"], k.weight, v.weight])}
                made |= {"shift": torch.cat([made["shift"], q.bias.new_zeros(len(k.weight) + len(v.weight))])}
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
        q, k, v = self._projected(x, z)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        else:
            out = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return F.linear(merge_heads(out), self.out, self.bias)

    def _projected(self, x: Tensor, z: Tensor) -> Iterable[Tensor]:
        """Queries, keys and values, (B, h, N or M, d) each."""
        queries = F.linear(x, self.queries, self.shift)
        if not self.joined:
            each = (queries, F.linear(z, self.keys), F.linear(z, self.values))
            return (split_heads(one, self.heads) for one in each)
        if self.reduction.norm is None:
            return self._apart(queries, 3)
        return split_heads(queries, self.heads), *self._apart(F.linear(z, self.keys_values), 2)

    def _apart(self, joined: Tensor, count: int) -> Sequence[Tensor]:
        """(B, M, count h d) to `count` of (B, h, M, d)."""
        return joined.unflatten(2, (count, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class FastFeedForward(nn.Module):
    """What `FeedForward` computes, on tokens (B, N, C) before the affine part of their norm."""

    def __init__(self, mlp: FeedForward, before: fold.Affine, form: Form, parts: int = 1) -> None:
        super().__init__()
        self.form = form.feed_forward if mlp.dwconv is not None else "tokens"
        first, second = fold.behind(mlp.fc1, before), fold.behind(mlp.fc2, None)
        second = fold.centred(second) if form.centred else second
        hidden = len(first.weight)
        parts = max(1, min(parts, hidden // _LEAST_CHANNELS)) if mlp.dwconv is not None else 1
        self.parts = nn.ModuleList(
            HiddenPart(mlp, first, second, channels, self.form == "tokens")
            for channels in torch.arange(hidden).tensor_split(parts)
        )

    def forward(self, x: Tensor, size: tuple[int, int], residual: Tensor) -> Tensor:
        """`residual` plus what the feed-forward makes of x."""
        if self.form == "tokens":
            for part in self.parts:
                residual = residual + part(x, size)
            return residual
        x = _as_map(x, size)
        if self.form == "map":
            for part in self.parts:
                residual = residual + _as_tokens(part(x, size))
            return residual
        found = _as_map(residual, size)
        for part in self.parts:
            found = part(x, size) + found
        return _as_tokens(found)


class HiddenPart(nn.Module):
    """What some of the hidden channels add to the output; the first ones add its bias too."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor | None
    kernel: Tensor
    kernel_bias: Tensor | None

    def __init__(
        self, mlp: FeedForward, first: fold.Linear, second: fold.Linear, channels: Tensor, tokens: bool
    ) -> None:
        super().__init__()
        self.tokens, self.extra_relu, self.dwconv = tokens, mlp.extra_relu, None
        made = {"first": first.weight[channels], "second": second.weight[:, channels]}
        if not tokens:
            made = {name: weight[:, :, None, None] for name, weight in made.items()}
        made |= {"first_bias": first.bias[channels]}
        if mlp.dwconv is not None:
            conv = mlp.dwconv
            self.dwconv = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
            made |= {"kernel": conv.weight[channels]}
            made |= {} if conv.bias is None else {"kernel_bias": conv.bias[channels]}
        made |= {"second_bias": second.bias} if int(channels[0]) == 0 else {}
        self.kernel_bias = self.second_bias = None
        for name, tensor in made.items():
            setattr(self, name, _constant(tensor))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C), or a map (B, C, H, W), to the same."""
        h = F.linear(x, self.first, self.first_bias) if self.tokens else F.conv2d(x, self.first, self.first_bias)
        if self.extra_relu:
            h = F.relu(h)
        if self.dwconv is not None:
            h = _as_map(h, size) if self.tokens else h
            h = F.conv2d(h, self.kernel, self.kernel_bias, groups=h.shape[1], **self.dwconv)
            h = _as_tokens(h) if self.tokens else h
        h = F.gelu(h)
        return F.linear(h, self.second, self.second_bias) if self.tokens else F.conv2d(h, self.second, self.second_bias)


def _as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N, C) to (B, C, H, W), contiguous: strides that differ would tie symbolic sizes to each other."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2).contiguous()


def _as_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, N, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def absorbed_in(model: nn.Module) -> list[bool]:
    """For each attention of a fast form in order: whether W^Q and W^O were absorbed."""
    return [module.absorbs for module in model.modules() if isinstance(module, FastAttention)]

"""Attention whose queries, keys and values are convolved, laid out for the compiled kernels: CvT's and MViTv2's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from srattn.layers.batch_norm import TokenBatchNorm
from srattn.layers.convolutional_projection import ConvolutionalAttention, ConvolutionalProjection
from srattn.layers.decomposed_position import DecomposedPosition
from srattn.layers.drop import DropPath
from srattn.layers.mlp_kernels import BlockLike, FeedForwardHalf, knows_mlp, lay_out_mlp, linear_of, norm_of
from srattn.layers.native import knows_norm
from srattn.layers.pooling_attention import HeadPooling, PoolingAttention
from srattn.ops import native
from srattn.ops.native import ConvolvedKernel, FeedForwardKernel, Linear, Operand, Way


class Halves(NamedTuple):
    """A block's halves by the kernels, each with its norm and its shortcut; None where torch computes one."""

    attention: ConvolvedKernel | None
    mlp: FeedForwardHalf | None

    @property
    def inner(self) -> tuple[ConvolvedKernel | None, FeedForwardKernel | None]:
        """The halves as parts of one call."""
        return self.attention, None if self.mlp is None else self.mlp.mlp


def knows_half(block: BlockLike, operand: Operand) -> bool:
    """Whether the kernels compute at least one half."""
    return knows_convolved(block, operand) or knows_mlp(block, operand)


def lay_out_halves(block: BlockLike, operand: Operand) -> Halves | None:
    """None where neither half is of a form that the kernels know."""
    attention = lay_out_convolved(block, operand)
    mlp = FeedForwardHalf(lay_out_mlp(block.norm2, block.mlp, operand)) if knows_mlp(block, operand) else None
    return None if attention is None and mlp is None else Halves(attention, mlp)


def knows_convolved(block: BlockLike, operand: Operand = "float32") -> bool:
    """Whether the kernels compute the attention half: convolved attention on one map, with the shortcut beside it."""
    attn = block.attn
    if type(block.drop_path) is not DropPath or not knows_norm(block.norm1):
        return False
    if not isinstance(attn, ConvolutionalAttention | PoolingAttention) or type(attn.proj_drop) is not nn.Dropout:
        return False
    if any(type(m) is not nn.Linear for m in (attn.q, attn.k, attn.v, attn.proj)):
        return False
    if not native.takes_pairs(operand, attn.dim, attn.q.out_features // attn.num_heads):
        return False
    ways = attn.query_reduction, attn.reduction, attn.value_reduction
    if type(attn) is ConvolutionalAttention:
        plain = attn.position_bias is None and attn.key_dim == attn.dim == attn.q.out_features
        return (
            plain and all(map(_knows_projection, ways)) and ways[0].ratio == (1, 1) and ways[1].ratio == ways[2].ratio
        )
    if type(attn) is PoolingAttention and type(attn.position) is DecomposedPosition:
        shortcut = getattr(block, "attn_shortcut", None)
        known = type(shortcut) is nn.Linear if attn.dim != attn.q.out_features else shortcut is None
        return known and all(map(_knows_pooling, ways)) and ways[1].ratio == ways[2].ratio
    return False


def _knows_projection(way: nn.Module | None) -> bool:
    """3x3, with a batch norm whose statistics are kept."""
    if type(way) is not ConvolutionalProjection or type(way.norm) is not TokenBatchNorm or not _is_3x3(way.proj):
        return False
    return way.norm.running_mean is not None and way.norm.running_var is not None and way.norm.weight is not None


def _knows_pooling(way: nn.Module) -> bool:
    return type(way) is HeadPooling and _is_3x3(way.proj) and knows_norm(way.norm)


def _is_3x3(conv: nn.Module) -> bool:
    """Depthwise, with zeros around the map and no bias, at any stride."""
    if type(conv) is not nn.Conv2d or conv.groups != conv.in_channels or conv.groups != conv.out_channels:
        return False
    form = conv.kernel_size, conv.padding, conv.dilation
    return form == ((3, 3), (1, 1), (1, 1)) and conv.padding_mode == "zeros" and conv.bias is None


def lay_out_convolved(block: BlockLike, operand: Operand) -> ConvolvedKernel | None:
    """None where the attention half is of another form."""
    if not knows_convolved(block, operand):
        return None
    norm, attn = norm_of(block.norm1), block.attn
    if isinstance(attn, ConvolutionalAttention):
        pairs = (attn.q, attn.query_reduction), (attn.k, attn.reduction), (attn.v, attn.value_reduction)
        q, k, v = (_convolved_way(*pair) for pair in pairs)
        out, token = linear_of(attn.proj), attn.class_token
        return ConvolvedKernel(norm, attn.num_heads, attn.scale, (q, k, v), out, token=token, operand=operand)
    assert isinstance(attn, PoolingAttention)
    pairs = (attn.q, attn.query_reduction), (attn.k, attn.reduction), (attn.v, attn.value_reduction)
    q, k, v = (_pooled_way(*pair) for pair in pairs)
    shortcut = getattr(block, "attn_shortcut", None)
    shortcut = None if shortcut is None else linear_of(shortcut)
    positions, out = (attn.position.rows, attn.position.columns), linear_of(attn.proj)
    return ConvolvedKernel(norm, attn.num_heads, attn.scale, (q, k, v), out, shortcut, positions, operand=operand)


def _convolved_way(linear: nn.Module, way: nn.Module | None) -> Way:
    """The batch norm goes into the convolution before it."""
    assert isinstance(way, ConvolutionalProjection)
    norm, weight = way.norm, way.proj.weight.to(torch.float64)
    assert norm.running_mean is not None and norm.running_var is not None
    mean, var, gain, bias = (t.to(torch.float64) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    gain = gain / (var + norm.eps).sqrt()
    return Way(linear_of(linear), Linear(weight * gain[:, None, None, None], bias - mean * gain), way.ratio)


def _pooled_way(linear: nn.Module, way: HeadPooling) -> Way:
    return Way(linear_of(linear), Linear(way.proj.weight, None), way.ratio, norm_of(way.norm))

"""What a block computes at a size, in words: compiled kernels in inference on a CPU, torch's operators elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from srattn.layers.attention import HeadsPlan, SpatialReductionAttention
from srattn.layers.block_kernels import knows_attention
from srattn.layers.convolutional_projection import ConvolutionalAttention
from srattn.layers.convolved_kernels import knows_convolved
from srattn.layers.feed_forward import FeedForward
from srattn.layers.mlp_kernels import BlockLike, knows_mlp
from srattn.layers.native import operand_of
from srattn.layers.pooling_attention import PoolingAttention
from srattn.layers.window import LocallyGroupedAttention
from srattn.ops import native
from srattn.ops.feed_forward import words
from srattn.ops.plan import KERNEL_DEVICES, forced, why_not_here


class AttentionPlan(NamedTuple):
    """The attention half by a kernel: its form, its counted cost, and why."""

    path: str
    macs: int
    bytes: int
    reason: str


class BlockPlan(NamedTuple):
    """Both halves; `attention` is None where torch computes it and its own plan holds."""

    attention: AttentionPlan | None
    feed_forward: str


class Place(NamedTuple):
    """Where a block stands: the grid of its map, and that of each map of its attention with their number (windows)."""

    grid: tuple[int, int]
    tokens: tuple[int, int]
    copies: int

    def is_divided(self) -> bool:
        """Whether the attention's maps cover the block's without anything appended."""
        return self.copies * math.prod(self.tokens) == math.prod(self.grid)


def plan_block(
    block: BlockLike, place: Place, batch: int, training: bool, device: str, parts: Sequence[HeadsPlan]
) -> BlockPlan:
    """The plan of a block on a `device` such as "cpu" ("meta" counts as one).

    `parts` is what the attention plans for itself.
    """
    height, width = place.grid
    dtype = next(block.attn.parameters()).dtype
    device = "cpu" if device == "meta" else device
    against = _reason_against(device, dtype, training)
    operand = operand_of(dtype) or "float32"
    attention = None
    if against is None and knows_attention(block, operand) and place.is_divided():
        attention = _plan_attention(block, place.tokens, batch * place.copies, parts[0].keys, operand)
        height, width = place.tokens  # the feed-forward takes windows as its maps too
    elif against is None and knows_convolved(block, operand):
        attention = _plan_convolved(block.attn, place.tokens, batch, parts[0].keys, operand)
    if isinstance(block.attn, PoolingAttention):
        height, width = block.attn.query_size(height, width)
    if not isinstance(block.mlp, FeedForward):
        return BlockPlan(attention, "")
    if against is None and knows_mlp(block, operand):
        hidden, dim = block.mlp.fc1.weight.shape
        convolution = block.mlp.dwconv is not None
        rows, channels = native.feed_forward_cut(dim, hidden, convolution, height, width, operand)
        size = f"{rows} rows of the map and {channels} of {hidden} hidden channels"
        products = "" if operand == "float32" else f", products of {operand}"
        products += " in matrix units" if operand == "bfloat16" and native.has_matrix_units() else ""
        return BlockPlan(attention, f"kernel: {size} are in the cache at a time{products}")
    if _convolves_on_gpu(block.mlp, device, dtype, training):
        return BlockPlan(attention, "kernel: the depthwise convolution with its bias and GELU in one pass")
    if training:
        choice = block.mlp.plan_for(height, width, batch, device=device, dtype=dtype)
        return BlockPlan(attention, words(choice, height))
    return BlockPlan(attention, f"torch: {against or 'its parts are of a form that the kernels do not know'}")


def _convolves_on_gpu(mlp: FeedForward, device: str, dtype: torch.dtype, training: bool) -> bool:
    """Whether the kernel of `srattn.ops.triton.depthwise` stands in the feed-forward's middle."""
    wanted = device in KERNEL_DEVICES and type(mlp.dwconv) is nn.Conv2d and dtype.itemsize <= 4
    return wanted and forced() is None and why_not_here() is None and not (training and mlp.memory == "lean")


def _reason_against(device: str, dtype: torch.dtype, training: bool) -> str | None:
    """Why the kernels do not compute a block, as `srattn.layers.native.reason_against` will find."""
    if training:
        return "gradients are recorded"
    if device != "cpu":
        return f"the compiled kernels are for CPUs, not for {device}"
    if operand_of(dtype) is None:
        return f"{dtype} is computed by torch"
    if forced() is not None:
        return "a path is forced by force_path"
    return native.why_not()


def _plan_attention(
    block: BlockLike, tokens: tuple[int, int], batch: int, keys: tuple[int, int], operand: native.Operand
) -> AttentionPlan:
    attn = block.attn.window if isinstance(block.attn, LocallyGroupedAttention) else block.attn
    assert isinstance(attn, SpatialReductionAttention)
    n, m, width = math.prod(tokens), math.prod(keys), attn.q.out_features
    sizes = (n, m, attn.dim, attn.num_heads, width)
    absorbed, projected = native.attention_macs(*sizes, operand)
    moved = 4 * batch * (3 * n * attn.dim + 2 * attn.num_heads * m * attn.dim)  # x twice, the output; K' and V'
    counts = f"kernel: absorbed needs {absorbed / projected:.2f}x the multiply-adds of projected"
    at_once = native.keys_at_once(m, operand)
    blocks = f", {at_once} of {m} keys at a time" if at_once < m else ""
    if native.absorbs(*sizes, operand):
        return AttentionPlan(
            "absorbed", batch * absorbed, moved, f"{counts}{blocks}; nothing but the output leaves the cache"
        )
    if absorbed < projected:
        counts += ", and more time to lay out its keys and values"
    return AttentionPlan(
        "projected", batch * projected, moved, f"{counts}{blocks}; queries and heads stay in the cache"
    )


def _plan_convolved(
    attn: nn.Module, tokens: tuple[int, int], batch: int, keys: tuple[int, int], operand: native.Operand
) -> AttentionPlan:
    """Beside it stand the reductions and W^K and W^V, which `HeadsPlan.shared` counts."""
    assert isinstance(attn, ConvolutionalAttention | PoolingAttention)
    dim, out = attn.q.in_features, attn.q.out_features
    n, m, heads = math.prod(attn.query_size(*tokens)), math.prod(keys), attn.num_heads
    if isinstance(attn, ConvolutionalAttention):
        n, m = n + attn.class_token, m + attn.class_token
        _, macs = native.attention_macs(n, m, out, heads, out, operand)
        moved = n * (3 * dim + 2 * out) + 4 * m * dim  # x twice, its norm, the output; convolved keys and values
        order = "convolved, then projected"
    else:
        all_tokens, places = math.prod(tokens), sum(keys)
        _, macs = native.attention_macs(n, m, out, heads, out, operand)
        macs += (all_tokens * dim - n * out) * out  # W^Q is of the tokens that are not pooled yet
        macs += n * (out * (9 + places) + heads * m * places)
        moved = all_tokens * (2 * dim + 6 * out) + n * out + 4 * m * out  # x twice, its projections; keys and values
        order = "projected, then pooled and normalised"
    at_once = native.keys_at_once(m, operand)
    counts = f"{heads} heads x {m} keys in one call" + (f", {at_once} keys at a time" if at_once < m else "")
    reason = f"kernel: {order}, {counts}; scores, queries and heads stay in the cache"
    return AttentionPlan("projected", batch * macs, 4 * batch * moved, reason)

"""A block's modules laid out for the compiled kernels, where they are of a form that the kernels know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.drop import DropPath
from srattn.layers.feed_forward import ConvMlp, FeedForward, Mlp
from srattn.layers.local_perception import is_depthwise_3x3
from srattn.layers.native import knows_norm
from srattn.layers.reduction import PooledReduction, Reduction, StridedReduction
from srattn.layers.window import LocallyGroupedAttention
from srattn.ops import native
from srattn.ops.native import (
    AttentionKernel,
    BlocksKernel,
    FeedForwardKernel,
    Linear,
    NormWeights,
    Operand,
    PatchKernel,
)
from srattn.ops.windows import from_windows, to_windows

if TYPE_CHECKING:
    from srattn.layers.block import Block


class BlockLike(Protocol):
    """What has a feed-forward behind a norm."""

    @property
    def norm2(self) -> nn.Module: ...
    @property
    def mlp(self) -> nn.Module: ...
    @property
    def drop_path(self) -> nn.Module: ...


class BlockKernels:
    """A block: its two halves by the kernels, or by its own modules where a half is of another form.

    As `srattn.layers.native` asks, it holds the block's parts and not the block.
    """

    def __init__(self, block: Block, attention: AttentionKernel | None, mlp: FeedForwardKernel | None) -> None:
        self.attention, self.mlp = attention, mlp
        self.kernel = BlocksKernel([(attention, mlp)])
        self.attention_half, self.mlp_half = (block.norm1, block.attn), (block.norm2, block.mlp)
        self.window = block.attn.size if isinstance(block.attn, LocallyGroupedAttention) else None
        self.mlp_alone = None if self.window is None or mlp is None else BlocksKernel([(None, mlp)])

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, H, W, dim) to the same shape and type; float32 within the kernels."""
        (norm1, attn), (norm2, mlp) = self.attention_half, self.mlp_half
        if self.attention is not None and self.window is not None:
            y = self._within_windows(x, self.window)
        elif self.attention is not None:
            y = self.kernel(x.contiguous(), [_keys(attn, x)])
        else:
            y = self.kernel((x + attn(norm1(x))).contiguous(), [(0, 0)])
        return y + mlp(norm2(y)) if self.mlp is None else y

    def _within_windows(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        """Each window as a map of its own, in which a feed-forward sees no neighbours either."""
        (norm1, attn), (height, width) = self.attention_half, x.shape[1:3]
        if height % window[0] or width % window[1]:  # what is appended is zero behind the norm, not before
            x = x + attn(norm1(x))
            return x if self.mlp_alone is None else self.mlp_alone(x.contiguous(), [(0, 0)])
        return from_windows(self.kernel(to_windows(x, window), [window]), height, width)


class FeedForwardHalf:
    """x + mlp(norm2(x)) of a block whose attention is of another form."""

    def __init__(self, mlp: FeedForwardKernel) -> None:
        self.kernel = BlocksKernel([(None, mlp)])

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, H, W, dim) to the same shape and type."""
        return self.kernel(x.contiguous(), [(0, 0)])


class StageKernels:
    """Blocks one after the other, both halves of each by the kernels, which are called once."""

    def __init__(self, blocks: Sequence[BlockKernels]) -> None:
        self.attentions = [block.attention_half[1] for block in blocks]
        self.kernel = BlocksKernel([(block.attention, block.mlp) for block in blocks])

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, H, W, dim) to the same shape and type; float32 within the kernels, and from block to block."""
        return self.kernel(x.contiguous(), [_keys(attn, x) for attn in self.attentions])


def _keys(attn: nn.Module, x: Tensor) -> tuple[int, int]:
    """The grid of the keys for a map x."""
    assert isinstance(attn, SpatialReductionAttention)
    return attn.reduced_size(*x.shape[1:3])


def lay_out_block(block: Block, operand: Operand) -> BlockKernels | None:
    """None where neither half is of a form that the kernels know."""
    attention = _lay_out_attention(block, operand) if knows_attention(block, operand) else None
    mlp = _lay_out_mlp(block.norm2, block.mlp, operand) if knows_mlp(block, operand) else None
    return None if attention is None and mlp is None else BlockKernels(block, attention, mlp)


def lay_out_feed_forward(block: BlockLike, operand: Operand) -> FeedForwardHalf | None:
    """None where the feed-forward is of a form that the kernels do not know."""
    known = knows_mlp(block, operand)
    return FeedForwardHalf(_lay_out_mlp(block.norm2, block.mlp, operand)) if known else None


def knows_attention(block: Block, operand: Operand = "float32") -> bool:
    """Whether the kernels compute the attention half: self-attention on one map, without position bias or adapters; or
    within windows that a map is divided into (and the feed-forward sees one token at a time, if they know it)."""
    attn, mlp = block.attn, block.mlp
    if type(block.drop_path) is not DropPath or not knows_norm(block.norm1):
        return False
    if type(attn) is LocallyGroupedAttention:
        pointwise = not knows_mlp(block, operand) or (isinstance(mlp, FeedForward) and mlp.dwconv is None)
        return pointwise and type(attn.window.reduction) is Reduction and _knows_self_attention(attn.window, operand)
    return _knows_self_attention(attn, operand)


def _knows_self_attention(attn: nn.Module, operand: Operand) -> bool:
    if type(attn) is not SpatialReductionAttention or type(attn.proj_drop) is not nn.Dropout:
        return False
    if attn.position_bias is not None or attn.value_reduction is not None or attn.key_dim != attn.dim:
        return False
    if any(type(m) is not nn.Linear for m in (attn.q, attn.k, attn.v, attn.proj)):
        return False
    heads, reduction = attn.num_heads, attn.reduction
    if not native.takes_pairs(operand, attn.dim, attn.dim // heads, attn.q.out_features // heads):
        return False
    if type(reduction) not in (StridedReduction, PooledReduction):
        return type(reduction) is Reduction
    assert isinstance(reduction, StridedReduction | PooledReduction)
    return type(reduction.proj) is nn.Linear and knows_norm(reduction.norm)


def knows_mlp(block: BlockLike, operand: Operand = "float32") -> bool:
    """Whether the kernels compute the feed-forward half: the norm before it, and the rest."""
    mlp = block.mlp
    if type(block.drop_path) is not DropPath or type(mlp) not in (ConvMlp, Mlp) or not knows_norm(block.norm2):
        return False
    assert isinstance(mlp, ConvMlp | Mlp)
    if type(mlp.drop) is not nn.Dropout or type(mlp.fc1) is not nn.Linear or type(mlp.fc2) is not nn.Linear:
        return False
    if mlp.fc1.out_features % native.lanes() or mlp.fc2.out_features != mlp.fc1.in_features:
        return False
    if not native.takes_pairs(operand, mlp.fc1.in_features):
        return False
    return mlp.dwconv is None or is_depthwise_3x3(mlp.dwconv)


def _norm(norm: nn.Module) -> NormWeights:
    assert isinstance(norm, nn.LayerNorm)
    return NormWeights(norm.weight, norm.bias, norm.eps)


def _linear(module: nn.Module) -> Linear:
    assert isinstance(module, nn.Linear)
    return Linear(module.weight, module.bias)


def _lay_out_mlp(norm: nn.Module, mlp: nn.Module, operand: Operand) -> FeedForwardKernel:
    assert isinstance(mlp, ConvMlp | Mlp)
    taps = None if mlp.dwconv is None else Linear(mlp.dwconv.weight, mlp.dwconv.bias)
    return FeedForwardKernel(_norm(norm), _linear(mlp.fc1), _linear(mlp.fc2), taps, mlp.extra_relu, operand)


def _lay_out_attention(block: Block, operand: Operand) -> AttentionKernel:
    norm, attn = _norm(block.norm1), block.attn
    attn = attn.window if isinstance(attn, LocallyGroupedAttention) else attn
    assert isinstance(attn, SpatialReductionAttention)
    reduction, kernel, cells = attn.reduction, None, None
    if isinstance(reduction, StridedReduction):
        weight = reduction.proj.weight.unflatten(1, (*reduction.ratio, attn.dim)).permute(0, 3, 1, 2)
        after = _norm(reduction.norm)
        kernel = PatchKernel(weight, reduction.proj.bias, reduction.ratio, (0, 0), after, norm, operand)
    elif isinstance(reduction, PooledReduction):
        cells, weight = reduction.cells, reduction.proj.weight[:, :, None, None]
        kernel = PatchKernel(weight, reduction.proj.bias, (1, 1), (0, 0), _norm(reduction.norm), None, operand)
    q, k, v, out = map(_linear, (attn.q, attn.k, attn.v, attn.proj))
    return AttentionKernel(norm, attn.num_heads, attn.scale, q, k, v, out, kernel, cells, operand)

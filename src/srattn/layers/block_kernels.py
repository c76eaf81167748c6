"""A block's modules laid out for the compiled kernels, where they are of a form that the kernels know."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.convolutional_projection import ConvolutionalAttention
from srattn.layers.convolved_kernels import lay_out_convolved
from srattn.layers.drop import DropPath
from srattn.layers.feed_forward import FeedForward
from srattn.layers.mlp_kernels import BlockLike, knows_mlp, lay_out_mlp, linear_of, norm_of
from srattn.layers.native import knows_norm
from srattn.layers.reduction import PooledReduction, Reduction, StridedReduction
from srattn.layers.window import LocallyGroupedAttention
from srattn.ops import native
from srattn.ops.native import (
    AttentionHalf,
    AttentionKernel,
    BlocksKernel,
    ConvolvedKernel,
    FeedForwardKernel,
    Operand,
    PatchKernel,
)
from srattn.ops.windows import from_windows, to_windows

BlockParts = tuple[AttentionHalf | None, FeedForwardKernel | None]


class BlockKernels:
    """A block: its two halves by the kernels, or by its own modules where a half is of another form.

    As `srattn.layers.native` asks, it holds the block's parts and not the block.
    """

    def __init__(
        self,
        block: BlockLike,
        attention: AttentionKernel | None,
        mlp: FeedForwardKernel | None,
        convolved: ConvolvedKernel | None = None,
    ) -> None:
        self.attention, self.mlp, self.convolved = attention, mlp, convolved
        self.inner = attention if convolved is None or not convolved.keeps_size else convolved, mlp
        self.kernel = None if self.inner == (None, None) else BlocksKernel([self.inner])
        self.attention_half, self.mlp_half = (block.norm1, block.attn), (block.norm2, block.mlp)
        self.window = block.attn.size if isinstance(block.attn, LocallyGroupedAttention) else None
        self.mlp_alone = None if self.window is None or mlp is None else BlocksKernel([(None, mlp)])

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, H, W, dim) to the same shape and type; float32 within the kernels."""
        (norm1, attn), (norm2, mlp) = self.attention_half, self.mlp_half
        if self.convolved is not None and not self.convolved.keeps_size:
            y = self.convolved(x.contiguous())
            y = y if self.kernel is None else self.kernel(y, [(0, 0)])
        elif self.convolved is not None and self.kernel is not None:
            y = self.kernel(x.contiguous(), [(x.shape[1], x.shape[2])])
        elif self.kernel is None:
            y = x + attn(norm1(x))
        elif self.attention is not None and self.window is not None:
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
        assert self.kernel is not None
        return from_windows(self.kernel(to_windows(x, window), [window]), height, width)


class StageKernels:
    """Blocks one after the other, both halves of each by the kernels, which are called once."""

    def __init__(self, parts: Sequence[BlockParts], attentions: Sequence[nn.Module]) -> None:
        self.attentions, self.kernel = attentions, BlocksKernel(parts)

    def __call__(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """x (B, H, W, dim), or with a class token (B, 1 + H W, dim) and the map's grid, to the same shape and type;
        float32 within the kernels, and from block to block."""
        if grid is not None:
            return self.kernel(x.contiguous().unsqueeze(1), [grid] * len(self.attentions)).squeeze(1)
        return self.kernel(x.contiguous(), [_keys(attn, x) for attn in self.attentions])


def _keys(attn: nn.Module, x: Tensor) -> tuple[int, int]:
    """The grid of the keys for a map x, or of the map where the keys are convolved."""
    height, width = x.shape[1:3]
    if isinstance(attn, ConvolutionalAttention):
        return height, width
    assert isinstance(attn, SpatialReductionAttention)
    return attn.reduced_size(height, width)


def lay_out_block(block: BlockLike, operand: Operand) -> BlockKernels | None:
    """None where neither half is of a form that the kernels know."""
    attention = _lay_out_attention(block, operand) if knows_attention(block, operand) else None
    mlp = lay_out_mlp(block.norm2, block.mlp, operand) if knows_mlp(block, operand) else None
    convolved = lay_out_convolved(block, operand)
    known = any(half is not None for half in (attention, mlp, convolved))
    return BlockKernels(block, attention, mlp, convolved) if known else None


def knows_attention(block: BlockLike, operand: Operand = "float32") -> bool:
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


def _lay_out_attention(block: BlockLike, operand: Operand) -> AttentionKernel:
    norm, attn = norm_of(block.norm1), block.attn
    attn = attn.window if isinstance(attn, LocallyGroupedAttention) else attn
    assert isinstance(attn, SpatialReductionAttention)
    reduction, kernel, cells = attn.reduction, None, None
    if isinstance(reduction, StridedReduction):
        weight = reduction.proj.weight.unflatten(1, (*reduction.ratio, attn.dim)).permute(0, 3, 1, 2)
        after = norm_of(reduction.norm)
        kernel = PatchKernel(weight, reduction.proj.bias, reduction.ratio, (0, 0), after, norm, operand)
    elif isinstance(reduction, PooledReduction):
        cells, weight = reduction.cells, reduction.proj.weight[:, :, None, None]
        kernel = PatchKernel(weight, reduction.proj.bias, (1, 1), (0, 0), norm_of(reduction.norm), None, operand)
    q, k, v, out = map(linear_of, (attn.q, attn.k, attn.v, attn.proj))
    return AttentionKernel(norm, attn.num_heads, attn.scale, q, k, v, out, kernel, cells, operand)

"""Which pixels make one key: the exact support of a reduction, by its ratio and its edge policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.explain.capture import backbone_of, eval_mode, resolve_block, resolve_stage
from srattn.layers.convolutional_projection import ConvolutionalProjection
from srattn.layers.depthwise_reduction import DepthwiseReduction
from srattn.layers.multi_ratio import MultiRatioAttention
from srattn.layers.pooling_attention import HeadPooling
from srattn.layers.pyramid_pooling import PyramidReduction
from srattn.layers.reduction import PooledReduction, Reduction, StridedReduction, as_pair
from srattn.models.backbone import Backbone

Axis = tuple[Tensor, Tensor]
"""Where intervals along one axis begin (n,), and where they end (n,), the end not included."""


@dataclass(frozen=True)
class KeySupport:
    """What each of M keys is made from, in rectangles [top, left, bottom, right), the ends not included."""

    size: tuple[int, int]
    """(H, W) of the image in pixels."""
    grid: tuple[int, int]
    """(H, W) of the tokens that are reduced."""
    stride: tuple[int, int]
    """Pixels from one of these tokens to the next."""
    key_grid: tuple[int, int]
    """(Mh, Mw) of the keys; one row of them where they lie on several grids."""
    tokens: Tensor
    """(M, 4) of int: the tokens that are reduced to each key."""
    pixels: Tensor
    """(M, 4) of int: the pixels that these tokens are made from by the embeddings."""

    def mask(self, key: int) -> Tensor:
        """bool (H, W): the pixels of one key."""
        if not 0 <= key < len(self.pixels):
            raise SrattnError(f"key {key} does not exist; there are {len(self.pixels)}, counted from 0")
        top, left, bottom, right = self.pixels[key].tolist()
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        return mask

    def unseen(self) -> Tensor:
        """bool (H, W): the pixels that reach no key, such as a strip that the edge policy "floor" loses."""
        count = torch.zeros(self.size[0] + 1, self.size[1] + 1, dtype=torch.long)
        top, left, bottom, right = self.pixels.T
        for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
            count.index_put_((rows, columns), torch.full_like(rows, sign), accumulate=True)
        return count.cumsum(0).cumsum(1)[:-1, :-1] == 0


def reduction_support(
    model: nn.Module, size: int | tuple[int, int], stage: int, block: int = -1, group: int = -1
) -> KeySupport:
    """Which tokens, and through the embeddings which pixels, each key of one block is reduced from.

    What the blocks before mix in is left out: a token counts as made by the embeddings up to its stage (and where
    queries are pooled, MViTv2, by that pooling). Overlapping patches reach further than their stride, and so do the
    rectangles.

    Args:
        size: (height, width), or the side, of the image.
        group: where groups of heads have ratios of their own (Shunted), which of them, from coarse to fine.

    Raises:
        SrattnError: no such stage, block or group; a size that the model or its edge policy refuses; a reduction whose
            keys see no rectangles.
    """
    backbone = backbone_of(model)
    stage = resolve_stage(backbone, stage)
    block = resolve_block(backbone, stage, block)
    height, width = as_pair(size, "size")
    backbone.check_images(torch.empty(1, backbone.in_chans, height, width, device="meta"))
    steps, grid = _steps(backbone, (height, width), stage, block)
    blocks: Any = backbone.iter_stages()[stage].blocks
    reduction = _reduction(blocks[block].attn, group)
    tokens = _rectangles(reduction, grid)
    tops, lefts, bottoms, rights = (part.contiguous() for part in tokens.T)
    rows, columns = (tops, bottoms), (lefts, rights)
    for step in reversed(steps):
        rows, columns = (_before(span, step, axis) for axis, span in enumerate((rows, columns)))
    pixels = torch.stack([rows[0], columns[0], rows[1], columns[1]], 1)
    key_grid = reduction.size(*grid)
    stride = math.prod(step.stride[0] for step in steps), math.prod(step.stride[1] for step in steps)
    return KeySupport((height, width), grid, stride, (int(key_grid[0]), int(key_grid[1])), tokens, pixels)


def groups_of(model: nn.Module, stage: int, block: int = -1) -> int:
    """How many groups of heads with a reduction of their own a block has."""
    blocks: Any = backbone_of(model).iter_stages()[stage].blocks
    attn = blocks[block].attn
    return len(attn.iter_groups()) if isinstance(attn, MultiRatioAttention) else 1


@dataclass(frozen=True)
class _Step:
    """A convolution on the way from pixels to tokens, and the size of what it reads."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    size: tuple[int, int]


def _before(span: Axis, step: _Step, axis: int) -> Axis:
    """What a convolution reads for intervals of its output."""
    start = span[0] * step.stride[axis] - step.padding[axis]
    end = (span[1] - 1) * step.stride[axis] - step.padding[axis] + step.kernel[axis]
    return start.clamp(0, step.size[axis]), end.clamp(0, step.size[axis])


def _steps(backbone: Backbone, size: tuple[int, int], stage: int, block: int) -> tuple[list[_Step], tuple[int, int]]:
    """All convolutions before the attention of a block, in order, and the grid that it sees."""
    steps: list[_Step] = []
    channels = [backbone.in_chans, *backbone.feature_info.channels()]
    like = next(backbone.parameters())
    for index, each in enumerate(backbone.iter_stages()[: stage + 1]):
        given = torch.zeros(1, channels[index], *size, device=like.device, dtype=like.dtype)
        size = _embed(each.patch_embed, given, steps)
        blocks: Any = each.blocks
        for number, part in enumerate(blocks):
            if index == stage and number == block:
                break
            after = part.attn.query_size(*size)
            if after != size:
                steps.append(_Step((3, 3), part.attn.query_reduction.ratio, (1, 1), size))
                size = after
    return steps, size


def _embed(embed: nn.Module, given: Tensor, steps: list[_Step]) -> tuple[int, int]:
    """Runs an embedding on zeros, notes its convolutions and returns its grid."""

    def note(convolution: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(convolution, nn.Conv2d) and isinstance(convolution.padding, tuple)
        # Zeros that an edge policy appended before this convolution come from nowhere.
        size = (min(args[0].shape[2], sizes[-1][0]), min(args[0].shape[3], sizes[-1][1]))
        steps.append(_Step(convolution.kernel_size, convolution.stride, convolution.padding, size))

    def leave(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        sizes.append((output.shape[2], output.shape[3]))

    sizes = [(given.shape[2], given.shape[3])]
    hooks = []
    try:
        for module in embed.modules():
            if isinstance(module, nn.Conv2d):
                hooks += [module.register_forward_pre_hook(note), module.register_forward_hook(leave)]
        with eval_mode(embed), torch.no_grad():
            out = embed(given)  # (1, H, W, C)
    finally:
        for hook in hooks:
            hook.remove()
    return out.shape[1], out.shape[2]


def _reduction(attn: Any, group: int) -> Reduction:
    if not isinstance(attn, MultiRatioAttention):
        if group not in (-1, 0):
            raise SrattnError(f"group {group} does not exist: all heads of this block share one reduction")
        return attn.reduction
    groups = attn.iter_groups()
    if not -len(groups) <= group < len(groups):
        raise SrattnError(f"group {group} does not exist; the block has {len(groups)} groups of heads, counted from 0")
    return groups[group].reduction


def _rectangles(reduction: Reduction, grid: tuple[int, int]) -> Tensor:
    """(M, 4): the tokens that each key is reduced from, as [top, left, bottom, right)."""
    if isinstance(reduction, PyramidReduction):
        # A pooled map passes a 3x3 convolution before it is a key: each cell sees its neighbours' tokens, too.
        grids = reduction.grids(*grid)
        return torch.cat([rectangles(*(_neighbours(windows_of(grid[i], cells[i])) for i in (0, 1))) for cells in grids])
    return rectangles(*(_axis(reduction, grid, axis) for axis in (0, 1)))


def _axis(reduction: Reduction, grid: tuple[int, int], axis: int) -> Axis:
    tokens, keys = grid[axis], int(reduction.size(*grid)[axis])
    if isinstance(reduction, PooledReduction):
        return windows_of(tokens, keys)
    if isinstance(reduction, ConvolutionalProjection):
        kernel, padding = reduction.kernel[axis], reduction.padding[axis]
    elif isinstance(reduction, HeadPooling):
        kernel, padding = 3, 1
    elif isinstance(reduction, StridedReduction | DepthwiseReduction) or type(reduction) is Reduction:
        kernel, padding = reduction.ratio[axis], 0
    else:
        raise SrattnError(f"the keys of {type(reduction).__name__} see no rectangles of tokens")
    start = torch.arange(keys) * reduction.ratio[axis] - padding
    return start.clamp(min=0), (start + kernel).clamp(max=tokens)


def windows_of(tokens: int, keys: int) -> Axis:
    """The windows of adaptive pooling."""
    number = torch.arange(keys)
    return number * tokens // keys, ((number + 1) * tokens + keys - 1) // keys


def _neighbours(span: Axis) -> Axis:
    start, end = span
    return torch.cat([start[:1], start[:-1]]), torch.cat([end[1:], end[-1:]])


def rectangles(rows: Axis, columns: Axis) -> Tensor:
    """The rectangles of all pairs of a row and a column, in raster order."""
    (top, bottom), (left, right) = rows, columns
    down = [each.repeat_interleave(len(left)) for each in (top, bottom)]
    along = [each.repeat(len(top)) for each in (left, right)]
    return torch.stack([down[0], along[0], down[1], along[1]], 1)

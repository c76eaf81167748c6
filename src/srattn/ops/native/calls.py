"""The kernels on tensors: what each computes, from weights as torch stores them.

`AttentionKernel`, `FeedForwardKernel` and `PatchKernel` lay the weights out once and are then called on channels-last
tokens. They are inference alone: no gradient flows. With `operand="bfloat16"` the matrix products read bfloat16; sums,
norms and softmax stay float32. Dimensions are then even. Maps go in and out in float32 or bfloat16 as they are, and in
float16 by way of float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError
from srattn.ops.native.build import Operand
from srattn.ops.native.library import (
    Attention,
    FeedForward,
    Held,
    Patch,
    Step,
    cache_bytes,
    check,
    library,
    padded,
    panels,
    plain,
    put_norm,
)
from srattn.ops.tracing import constant_while_compiling


class NormWeights(NamedTuple):
    """A layer norm over channels: weight and bias (C,)."""

    weight: Tensor
    bias: Tensor
    eps: float


class Linear(NamedTuple):
    """A linear map as torch stores it: weight (out, in), bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None


class PatchKernel:
    """A convolution to tokens and a layer norm.

    weight (out, in, kernel_h, kernel_w), bias (out,); `padding` before the first row and column, zeros wherever a
    kernel reaches over the edge.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        after: NormWeights | None,
        before: NormWeights | None = None,
        operand: Operand = "float32",
    ) -> None:
        out, channels, kernel_h, kernel_w = weight.shape
        self.channels = channels
        self.library = library(operand)
        self.held = Held(Patch(channels, out, kernel_h, kernel_w, *stride, *padding))
        rows = weight.permute(0, 2, 3, 1).reshape(out, kernel_h, kernel_w * channels)
        if rows.shape[2] % self.library.srattn_pair():
            rows = F.pad(rows, (0, 1))
        rows = rows.flatten(1)
        rows = F.pad(rows, (0, self.library.srattn_whole(rows.shape[1]) - rows.shape[1]))
        self.held.put("weight", panels(rows, operand))
        self.held.put("bias", padded(bias))
        put_norm(self.held, "before", before)
        put_norm(self.held, "after", after)
        self.out = out

    def __call__(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Images (B, in, H, W) of any strides to tokens (B, *size, out) of the same type."""
        if images.dtype == torch.float16:
            return self(images.float(), size).to(images.dtype)
        batch, channels, height, width = images.shape
        if channels != self.channels:
            raise SrattnError(f"images of {self.channels} channels are expected, got {tuple(images.shape)}")
        out = images.new_empty(batch, *size, self.out)
        steps = (ctypes.c_long * 4)(*images.stride())
        patch, sizes, threads = self.held.structure, (batch, height, width), torch.get_num_threads()
        half = images.dtype == torch.bfloat16
        run = self.library.srattn_patches
        check(run(patch, images.data_ptr(), steps, *sizes, out.data_ptr(), *size, half, threads))
        return out


class FeedForwardKernel:
    """x + fc2(GELU(conv(relu(fc1(norm(x)))))), the hidden tensor in the cache; conv and relu may be absent.

    taps: a depthwise 3x3 convolution with zero padding, weight (hidden, 1, 3, 3) and bias (hidden,). The number of
    hidden channels is a multiple of `lanes()`.
    """

    def __init__(
        self,
        norm: NormWeights,
        fc1: Linear,
        fc2: Linear,
        taps: Linear | None = None,
        relu: bool = False,
        operand: Operand = "float32",
    ) -> None:
        hidden, dim = fc1.weight.shape
        self.library, self.dim = library(operand), dim
        self.held = Held(FeedForward(dim, hidden, taps is not None, relu))
        put_norm(self.held, "norm", norm)
        self.held.put("fc1", panels(fc1.weight, operand))
        self.held.put("fc1_bias", padded(zeros(fc1)))
        if taps is not None:
            self.held.put("taps", plain(taps.weight.flatten(1).T))
            self.held.put("taps_bias", plain(zeros(taps)))
        self.held.put("fc2", panels(fc2.weight, operand))
        self.held.put("fc2_bias", padded(fc2.bias))

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, H, W, dim), contiguous, to a new tensor of the same shape and type."""
        return BlocksKernel([(None, self)])(x, [(0, 0)])


class AttentionKernel:
    """x + SRA(norm(x)): projections as torch stores them, a strided reduction, a pooled one, or none.

    Args:
        reduction: `PatchKernel` of kernel and stride R whose `before` is `norm` (strided), or of kernel 1 (pooled).
        cells: the grid of the pooled reduction.
    """

    def __init__(
        self,
        norm: NormWeights,
        heads: int,
        scale: float,
        query: Linear,
        key: Linear,
        value: Linear,
        out: Linear,
        reduction: PatchKernel | None = None,
        cells: tuple[int, int] | None = None,
        operand: Operand = "float32",
    ) -> None:
        width, dim = query.weight.shape
        self.library = library(operand)
        self.dim, self.heads, self.width = dim, heads, width
        self.operand: Operand = operand
        strided = reduction is not None and cells is None
        self.held = Held(Attention(dim, heads, width, *(cells or (0, 0)), strided))
        self.held.structure.scale = scale
        put_norm(self.held, "norm", norm)
        if reduction is not None:
            self.held.structure.patch = reduction.held.structure
            self.held.tensors += reduction.held.tensors
        d, dv = width // heads, dim // heads
        self.held.put("key", joined(key.weight.split(d), operand))
        self.held.put("key_bias", heads_bias(key.bias, d))
        self.held.put("value", joined(value.weight.split(dv), operand))
        self.held.put("value_bias", heads_bias(value.bias, dv))
        self.held.put("query", panels(query.weight, operand))
        self.held.put("query_bias", padded(query.bias))
        self.held.put("out", panels(out.weight, operand))
        self.held.put("out_bias", padded(out.bias))
        self.held.put("query_heads", joined([w.T for w in query.weight.split(d)], operand))
        self.held.put("out_heads", joined(out.weight.split(dv, 1), operand))

    def __call__(self, x: Tensor, keys: tuple[int, int]) -> Tensor:
        """x (B, H, W, dim), contiguous, to a new tensor of the same type; `keys` is the grid of the keys."""
        return BlocksKernel([(self, None)])(x, [keys])

    def put_into(self, step: Step, tokens: int, grid: tuple[int, int]) -> None:
        """`grid` is that of the keys."""
        step.attention, step.keys_h, step.keys_w = self.held.address, *grid
        step.absorbed = absorbs(tokens, grid[0] * grid[1], self.dim, self.heads, self.width, self.operand)


class AttentionHalf(Protocol):
    """What can be the attention of a block among others: tokens to as many of the same width."""

    library: ctypes.CDLL
    dim: int

    def put_into(self, step: Step, tokens: int, grid: tuple[int, int]) -> object:
        """Writes itself into a step for maps of so many tokens. What it returns is kept as long as the step."""
        ...


class BlocksKernel:
    """Blocks of one width, one after the other, in one call: float32 in between.

    Args:
        parts: the halves of each block, either of which may be None.
    """

    def __init__(self, parts: Sequence[tuple[AttentionHalf | None, FeedForwardKernel | None]]) -> None:
        self.parts = parts
        first = next(half for half in parts[0] if half is not None)
        self.library, self.dim = first.library, first.dim
        self._last: tuple[object, ctypes.Array[Step], list[object]] | None = None

    def __call__(self, x: Tensor, keys: Sequence[tuple[int, int]]) -> Tensor:
        """x (B, H, W, dim), contiguous, to a new tensor of the same type; `keys`: each block's grid of keys, or of its
        map where that attention asks for it; with a class token x is (B, 1, 1 + H W, dim)."""
        if x.dtype == torch.float16:
            return self(x.float(), keys).to(x.dtype)
        if x.shape[-1] != self.dim:
            raise SrattnError(f"tokens of {self.dim} channels are expected, got {tuple(x.shape)}")
        out, (height, width) = torch.empty_like(x), x.shape[1:3]
        steps, half = self._steps(height * width, keys), x.dtype == torch.bfloat16
        maps = (x.data_ptr(), out.data_ptr(), *x.shape)
        check(self.library.srattn_blocks(steps, len(steps), *maps, half, cache_bytes(), torch.get_num_threads()))
        return out

    def _steps(self, tokens: int, keys: Sequence[tuple[int, int]]) -> ctypes.Array[Step]:
        """What the kernels read; that of the last size is kept."""
        size, last = (tokens, *keys), self._last
        if last is None or last[0] != size:
            steps, kept = (Step * len(self.parts))(), []
            for step, (attention, mlp), grid in zip(steps, self.parts, keys, strict=True):
                step.feed_forward = None if mlp is None else mlp.held.address
                if attention is not None:
                    kept.append(attention.put_into(step, tokens, grid))
            self._last = last = size, steps, kept
        return last[1]


def attention_macs(
    tokens: int, keys: int, dim: int, heads: int, width: int, operand: Operand = "float32"
) -> tuple[int, int]:
    """Multiply-adds of one image in the kernel's two forms, absorbed and projected, once keys and values are there.

    Scores are counted as computed, in whole vectors of keys.
    """
    found = library(operand)
    d, dv, columns, weighed = width // heads, dim // heads, found.srattn_packed, found.srattn_weighed(keys)
    wide = max(columns(keys), weighed)
    absorbed = heads * (tokens * (wide + weighed) * dim + keys * (d + dv) * dim)
    projected = tokens * (dim * (width + dim) + heads * (wide * d + weighed * columns(dv)))
    return absorbed, projected


def absorbs(tokens: int, keys: int, dim: int, heads: int, width: int, operand: Operand = "float32") -> bool:
    """Whether the kernel takes the absorbed form: the one of fewer multiply-adds.

    Units for matrices multiply faster than keys and values are laid out, of which the absorbed form has `heads` times
    as many: there the layout counts too.
    """
    absorbed, projected = attention_macs(tokens, keys, dim, heads, width, operand)
    layout = 2 * keys * dim * library(operand).srattn_layout_cost()
    return absorbed + heads * layout < projected + layout


def feed_forward_cut(
    dim: int, hidden: int, convolution: bool, height: int, width: int, operand: Operand = "float32"
) -> tuple[int, int]:
    """(rows of the map, hidden channels) that the feed-forward has in the cache at a time."""
    rows, chunk = ctypes.c_long(), ctypes.c_long()
    library(operand).srattn_cut(FeedForward(dim, hidden, convolution), height, width, cache_bytes(), rows, chunk)
    return rows.value, chunk.value


@constant_while_compiling
def takes_pairs(operand: Operand, *sizes: int) -> bool:
    """Whether depths of these sizes suit the operands, which the products may read two at a time."""
    return not any(size % library(operand).srattn_pair() for size in sizes)


@constant_while_compiling
def lanes() -> int:
    """Numbers in a vector of the compiled kernels."""
    return library().srattn_lanes()


def zeros(linear: Linear) -> Tensor:
    """The bias, zeros where there is none."""
    if linear.bias is not None:
        return linear.bias
    return torch.zeros(linear.weight.shape[0], dtype=torch.float32, device="cpu")


def joined(weights: Sequence[Tensor], operand: Operand) -> Tensor:
    """Panels of each head, one after the other."""
    return torch.cat([panels(weight, operand) for weight in weights])


def heads_bias(bias: Tensor | None, columns: int) -> Tensor | None:
    if bias is None:
        return None
    return torch.cat([part for each in bias.split(columns) if (part := padded(each)) is not None])

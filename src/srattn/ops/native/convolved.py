"""The kernel of attention whose queries, keys and values pass depthwise convolutions on their grids (CvT, MViTv2)."""

from __future__ import annotations

from ctypes import addressof
from typing import NamedTuple

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.ops.decomposed import distances, stretched, table_length
from srattn.ops.native.build import Operand
from srattn.ops.native.calls import Linear, NormWeights, heads_bias, joined
from srattn.ops.native.library import (
    Convolved,
    Held,
    Place,
    Step,
    cache_bytes,
    check,
    library,
    padded,
    panels,
    plain,
    put_norm,
)

Grid = tuple[int, int]


class Way(NamedTuple):
    """What makes queries, keys or values of tokens.

    taps: a depthwise 3x3 convolution with zero padding, weight (C, 1, 3, 3) and bias (C,) or None, with its stride.
    norm: of each head, behind the convolution; None where the convolution comes before the projection.
    """

    linear: Linear
    taps: Linear
    stride: Grid
    norm: NormWeights | None = None


class ConvolvedKernel:
    """shortcut + attention(norm(x)): convolved and projected (CvT), or projected, convolved and normalised (MViTv2).

    The second where the ways have norms; the queries are then added to what their heads found.

    Args:
        ways: of queries, keys and values; the keys and the values have one stride.
        shortcut: of norm(x), in the place of x, for the second order. Where queries have a stride, it is max-pooled.
        positions: tables (L, d) of relative positions along rows and columns, for the second order.
        token: whether a class token stands before the map, for the first order with queries of stride 1.
    """

    def __init__(
        self,
        norm: NormWeights,
        heads: int,
        scale: float,
        ways: tuple[Way, Way, Way],
        out: Linear,
        shortcut: Linear | None = None,
        positions: tuple[Tensor, Tensor] | None = None,
        token: bool = False,
        operand: Operand = "float32",
    ) -> None:
        width, dim = ways[0].linear.weight.shape
        first = ways[0].norm is None
        self.library = library(operand)
        self.operand: Operand = operand
        self.dim, self.out, self.token = dim, width, token
        self.strides = ways[0].stride, ways[1].stride
        self.held = Held(Convolved(dim, width, heads, first, token))
        self.held.structure.scale = scale
        put_norm(self.held, "norm", norm)
        for name, way in zip(("query", "key", "value"), ways, strict=True):
            self._put_way(name, way, width // heads if first and name != "query" else width)
        self.held.put("weight", panels(out.weight, operand))
        self.held.put("bias", padded(out.bias))
        if shortcut is not None:
            self.held.put("shortcut", panels(shortcut.weight, operand))
            self.held.put("shortcut_bias", padded(shortcut.bias))
        self.tables = None if positions is None else (plain(positions[0]), plain(positions[1]))
        self.keeps_size = shortcut is None and self.strides[0] == (1, 1) and width == dim
        self._last: tuple[Grid, Place, list[Tensor]] | None = None

    def _put_way(self, name: str, way: Way, columns: int) -> None:
        """Projections are laid out `columns` at a time, taps for all heads side by side."""
        branch = Held(getattr(self.held.structure, name))  # a view of the branch within
        branch.structure.stride_h, branch.structure.stride_w = way.stride
        channels = way.linear.weight.shape[1 if way.norm is None else 0]
        copies = channels // way.taps.weight.shape[0]
        branch.put("taps", plain(way.taps.weight.flatten(1).T.repeat(1, copies)))
        branch.put("taps_bias", None if way.taps.bias is None else plain(way.taps.bias.repeat(copies)))
        put_norm(branch, "norm", way.norm)
        branch.put("weight", joined(way.linear.weight.split(columns), self.operand))
        branch.put("bias", heads_bias(way.linear.bias, columns))
        self.held.tensors += branch.tensors

    def __call__(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """x (B, H, W, dim), contiguous, to (B, H', W', out) of the same type; with a class token x is
        (B, 1 + H W, dim) with its grid, and so is the result."""
        if x.dtype == torch.float16:
            return self(x.float(), grid).to(x.dtype)
        height, width = x.shape[1:3] if grid is None else grid
        expected = (1 + height * width, self.dim) if self.token else (height, width, self.dim)
        if (grid is None) == self.token or x.shape[1:] != expected:
            raise SrattnError(f"tokens (batch, {', '.join(map(str, expected))}) are expected, got {tuple(x.shape)}")
        size = x.shape[1:2] if self.token else _reduced((height, width), self.strides[0])
        out = x.new_empty(x.shape[0], *size, self.out)
        place, half = self._place((height, width))[1], x.dtype == torch.bfloat16
        maps, limits = (x.data_ptr(), out.data_ptr(), x.shape[0]), (cache_bytes(), torch.get_num_threads())
        check(self.library.srattn_convolved(self.held.address, place, *maps, half, *limits))
        return out

    def put_into(self, step: Step, tokens: int, grid: Grid) -> object:
        """As one block among others, for maps of this grid; only where it `keeps_size`."""
        expected = self.token + grid[0] * grid[1]
        if not self.keeps_size or tokens != expected:
            raise SrattnError(f"{expected} tokens are expected of a map of {grid[0]}x{grid[1]}, got {tokens}")
        found = self._place(grid)
        step.convolved, step.place = self.held.address, addressof(found[1])
        return found

    def _place(self, grid: Grid) -> tuple[Grid, Place, list[Tensor]]:
        """The grids, and the positions laid out for them; those of the last size are kept."""
        last = self._last
        if last is None or last[0] != grid:
            queries, keys = (_reduced(grid, stride) for stride in self.strides)
            place = Held(Place(grid, queries, keys))
            if self.tables is not None:
                rows, columns = (
                    stretched(table, table_length(n, m)) for table, n, m in zip(self.tables, queries, keys, strict=True)
                )
                vectors = rows[distances(queries[0], keys[0], rows.device)]  # (rows of queries, rows of keys, d)
                place.put("rows", joined(list(vectors), self.operand))
                place.put("columns", panels(columns, self.operand))
                place.put("between", distances(queries[1], keys[1], columns.device).to(torch.int32))
                place.structure.distances = len(columns)
            self._last = last = grid, place.structure, place.tensors
        return last


def keys_at_once(keys: int, operand: Operand = "float32") -> int:
    """Whose scores are in the cache at a time: all of few keys, else those of a block, by a running softmax."""
    return library(operand).srattn_keys_at_once(keys, cache_bytes())


def _reduced(grid: Grid, stride: Grid) -> Grid:
    return (grid[0] - 1) // stride[0] + 1, (grid[1] - 1) // stride[1] + 1

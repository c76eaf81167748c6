"""Spatial reductions as interchangeable parts: what shrinks keys and values before they are attended.

A reduction is a module that maps (B, H, W, C) to (B, M_h, M_w, C), knows the grid it makes, and reduces a mask and a
key bias along with the tokens. The functions are in `srattn.ops.reduce`, the definition in `srattn.ops.reference`.
"""

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError, nearest
from srattn.layers.hooks import is_linear
from srattn.ops import reduce as ops


def as_pair(value: int | tuple[int, int] | list[int], name: str) -> tuple[int, int]:
    """An int or a pair of positive ints as (vertical, horizontal)."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or any(not is_count(v) for v in pair):
        raise SrattnError(f"{name} is a positive int or a pair of them, got {value!r}")
    return operator.index(pair[0]), operator.index(pair[1])


def is_count(value: Any) -> bool:
    """Whether it is a positive whole number, of Python or numpy."""
    return not isinstance(value, bool) and hasattr(value, "__index__") and operator.index(value) >= 1


def check_edge(edge: str) -> str:
    if edge not in ops.EDGES:
        raise SrattnError(
            f"no edge policy {edge!r}{nearest(str(edge), ops.EDGES)}; policies are {', '.join(ops.EDGES)}"
        )
    return edge


class Reduction(nn.Module):
    """What every reduction answers. This one reduces nothing: ratio 1 has neither projection nor norm, as published."""

    ratio: tuple[int, int] = (1, 1)
    cells: tuple[int, int] | None = None
    edge: str = "pad"
    on_grid: bool = True
    """Whether the reduced tokens lie on one grid that covers the map; else `size` is one row of them."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, H, W, C), mask (B, H, W) true where valid. Returns (B, M_h, M_w, C)."""
        return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Grid (M_h, M_w) of the reduced tokens."""
        return height, width

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds for one image."""
        return 0

    def sum(self, x: Tensor) -> Tensor:
        """Sums a value of each token, (B, H, W), over the sources of each reduced token, (B, M_h, M_w)."""
        return x

    def spread(self, weights: Tensor, height: int, width: int) -> Tensor:
        """Spreads a weight of each reduced token, (B, M), evenly over its sources, (B, height, width)."""
        weights = weights.unflatten(1, self.size(height, width))
        count = self.sum(weights.new_ones(1, height, width))
        backwards = torch.func.vjp(self.sum, weights.new_zeros(weights.shape[0], height, width))[1]
        return backwards(weights / count.clamp(min=1))[0]

    def reduce_scores(self, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        """Mask and key bias (B, H, W) reduced to a score for each reduced token, (B, M_h, M_w).

        The bias is averaged over valid sources; a token none of whose sources is valid scores minus infinity.
        """
        like = bias if bias is not None else mask
        assert like is not None
        dtype = bias.dtype if bias is not None else torch.float32
        wide = torch.promote_types(dtype, torch.float32)  # sums overflow in half precision
        valid = torch.ones(like.shape, dtype=wide, device=like.device) if mask is None else mask.to(wide)
        count = self.sum(valid)
        scores = torch.zeros_like(count)
        if bias is not None:
            bias = bias.to(wide)
            scores = self.sum(bias if mask is None else bias.masked_fill(~mask, 0.0)) / count.clamp(min=1)
        return scores.masked_fill(count == 0, -math.inf).to(dtype)


class StridedReduction(Reduction):
    """SR(x) = Norm(Reshape(x, R) W^S), the reduction of PVT (arXiv:2102.12122, eq. 3).

    Parameters: `proj.weight` (dim, R_h R_w dim), which is W^S transposed, its bias, and the layer norm. A published
    convolution (C, C, R, R) is the same matrix: `conv.permute(0, 2, 3, 1).reshape(C, -1)`.
    """

    def __init__(
        self,
        dim: int,
        ratio: int | tuple[int, int],
        *,
        edge: str = "pad",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.ratio = as_pair(ratio, "ratio")
        self.edge = check_edge(edge)
        self.proj = nn.Linear(self.ratio[0] * self.ratio[1] * dim, dim, **factory)
        self.norm = nn.LayerNorm(dim, eps=eps, **factory)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not is_linear(self.proj):
            return self.norm(self.proj(ops.blocks(x, self.ratio, self.edge, mask)))
        return self.norm(ops.strided(x, self.proj.weight, self.proj.bias, self.ratio, self.edge, mask))

    def size(self, height: int, width: int) -> tuple[int, int]:
        return ops.reduced_size(height, width, self.ratio, self.edge)

    def macs(self, height: int, width: int) -> int:
        mh, mw = self.size(height, width)
        return mh * mw * self.proj.weight.numel()

    def sum(self, x: Tensor) -> Tensor:
        return ops.block_sum(x, self.ratio, self.edge)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}, edge={self.edge!r}"


class PooledReduction(Reduction):
    """The linear SRA of PVT v2 (arXiv:2106.13797, section 3.2): mean over a fixed grid, 1x1 projection, norm, GELU.

    Any map size, one smaller than the grid too (its cells then repeat tokens); no edge is ever lost.
    """

    def __init__(
        self, dim: int, cells: int | tuple[int, int] = 7, *, eps: float = 1e-5, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.cells = as_pair(cells, "cells")
        self.proj = nn.Linear(dim, dim, **factory)
        self.norm = nn.LayerNorm(dim, eps=eps, **factory)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        assert self.cells is not None
        return F.gelu(self.norm(self.proj(ops.pooled(x, self.cells, mask))))

    def size(self, height: int, width: int) -> tuple[int, int]:
        assert self.cells is not None
        return self.cells

    def macs(self, height: int, width: int) -> int:
        rows, columns = self.size(height, width)
        dim = self.proj.in_features
        return dim * (columns * height * width + rows * columns * height + rows * columns * dim)

    def sum(self, x: Tensor) -> Tensor:
        assert self.cells is not None
        return ops.window_sum(x.unsqueeze(-1), self.cells).squeeze(-1)

    def extra_repr(self) -> str:
        return f"cells={self.cells}"

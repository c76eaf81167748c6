"""The pyramid pooling reduction of P2T: keys and values are several averages of the map, coarse and fine."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.local_perception import LocalPerception
from srattn.layers.reduction import Reduction
from srattn.ops import pyramid as ops
from srattn.ops.reduce import window_sum
from srattn.ops.tracing import is_exporting


class Pyramid(nn.ModuleList):
    """x + DWConv(x) for each level of pooled maps, each level with a convolution of its own.

    The blocks of a stage share one (see `srattn.layers.shared`).
    """

    def __init__(self, dim: int, levels: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(LocalPerception(dim, device=device, dtype=dtype) for _ in range(levels))

    def forward(self, x: Tensor, grids: Sequence[tuple[int, int]], mask: Tensor | None = None) -> Tensor:
        """(B, H, W, dim) pooled to each of `grids` and convolved, as one row of tokens (B, M, dim)."""
        if is_exporting():  # sizes may be symbols
            return self._on_one_row(x, grids, mask)
        maps = ops.pooled_levels(x, grids, mask)
        return torch.cat([part(level).flatten(1, 2) for part, level in zip(self, maps, strict=True)], 1)

    def _on_one_row(self, x: Tensor, grids: Sequence[tuple[int, int]], mask: Tensor | None) -> Tensor:
        cells = ops.cells_of(grids, x.device)
        if mask is None:
            tokens = ops.stacked(x, grids, cells, mean=True)
        else:
            valid = mask.unsqueeze(-1)
            count = ops.stacked(valid.to(x.dtype), grids, cells, mean=False).clamp(min=1)
            tokens = ops.stacked(x.masked_fill(~valid, 0.0), grids, cells, mean=False) / count
        parts = [part for part in self if isinstance(part, LocalPerception)]
        weight = torch.stack([part.dwconv.weight.squeeze(1) for part in parts])
        bias = torch.stack([part.dwconv.bias for part in parts if part.dwconv.bias is not None])
        return tokens + ops.neighbours(tokens, cells, weight, bias)


class PyramidReduction(Reduction):
    """Adaptive averages to round(H / r) x round(W / r) cells for each r of `ratios` (at least one cell), each with its
    own depthwise convolution, side by side, then layer norm (P2T, arXiv:2106.12011, eq. 2 to 5).

    The reduced tokens of all levels stand in one row, level after level, each in raster order. Every token reaches a
    key at any size, so no edge policy is needed. Under a mask, a cell is the mean of its valid sources; which cell a
    token falls into still depends on the size of the whole map.

    Args:
        dim: channels.
        ratios: the pooling ratios, one a level, numbers of at least 1.
        pyramid: a `Pyramid`, or what calls another owner's; one of its own by default.
        eps: of the layer norm.
    """

    on_grid = False

    def __init__(
        self,
        dim: int,
        ratios: Sequence[float],
        *,
        pyramid: nn.Module | None = None,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not ratios or any(ratio < 1 for ratio in ratios):
            raise SrattnError(f"pooling ratios are numbers of at least 1, one a level, got {tuple(ratios)}")
        self.ratios = tuple(ratios)
        self.pyramid = Pyramid(dim, len(ratios), device=device, dtype=dtype) if pyramid is None else pyramid
        self.norm = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """The grid of each level."""
        return [(ops.rounded(height, ratio), ops.rounded(width, ratio)) for ratio in self.ratios]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.norm(self.pyramid(x, self.grids(x.shape[1], x.shape[2]), mask)).unsqueeze(1)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """One row of all levels' tokens."""
        return 1, sum(rows * columns for rows, columns in self.grids(height, width))

    def macs(self, height: int, width: int) -> int:
        dim = self.norm.weight.numel()
        return dim * sum(c * height * width + r * c * height + 9 * r * c for r, c in self.grids(height, width))

    def sum(self, x: Tensor) -> Tensor:
        grids, x = self.grids(x.shape[1], x.shape[2]), x.unsqueeze(-1)
        if is_exporting():
            cells = ops.cells_of(grids, x.device)
            return ops.stacked(x, grids, cells, mean=False).squeeze(-1).unsqueeze(1)
        return torch.cat([window_sum(x, cells).flatten(1) for cells in grids], 1).unsqueeze(1)

    def extra_repr(self) -> str:
        return f"ratios={self.ratios}"

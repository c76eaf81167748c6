"""Pooling of one map to several grids, whose cells stand in one row of tokens, level after level, each in raster order.

Two forms, one result. `pooled_levels` makes a map for each level and is what runs. `stacked` and `neighbours` never
make a tensor of a level's own size: such a size may be 1 for one image and 5 for another, and an exported program is
specialised where a size may be 1. They index one row of all cells instead, which holds several at any size (where
there are two levels or more).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srattn.ops.reduce import pooled, window_matrix

Grids = Sequence[tuple[int, int]]


def rounded(size: int, ratio: float) -> int:
    """Cells of one side under a pooling ratio: size / ratio rounded half to even, as published, and at least one."""
    if ratio != int(ratio):
        return _larger(1, round(size / ratio))
    whole = int(ratio)  # in whole numbers, as exported programs know no rounding of symbols
    to_even = 0 if whole % 2 else 1 - size // whole % 2
    return _larger(1, (size + whole // 2 - to_even) // whole)


def pooled_levels(x: Tensor, grids: Grids, mask: Tensor | None = None) -> list[Tensor]:
    """`pooled` of one map to several grids: (B, H, W, C) to a list of (B, cells_h, cells_w, C).

    Without a mask the products over the columns are one, so that the map is read once for all levels.
    """
    if mask is not None:
        return [pooled(x, cells, mask) for cells in grids]
    batch, height, width, channels = x.shape
    columns = torch.cat([_means(width, cells, x) for _, cells in grids])
    levels = (columns @ x).split([cells for _, cells in grids], 2)  # (B, H, cells_w, C) each
    return [
        (_means(height, cells[0], x) @ level.reshape(batch, height, cells[1] * channels)).view(batch, *cells, channels)
        for level, cells in zip(levels, grids, strict=True)
    ]


def _means(size: int, cells: int, like: Tensor) -> Tensor:
    windows = window_matrix(size, cells, like)
    return windows / windows.sum(1, keepdim=True)


class Cells(NamedTuple):
    """Where each token of the row of all cells lies: its level, its place in it, and the level's grid; each (M,)."""

    level: Tensor
    row: Tensor
    column: Tensor
    rows: Tensor
    columns: Tensor


def cells_of(grids: Grids, device: torch.device) -> Cells:
    """The tokens of all levels in order."""
    place, level = _places([rows * columns for rows, columns in grids], device)
    rows, columns = _at(level, [rows for rows, _ in grids]), _at(level, [columns for _, columns in grids])
    return Cells(level, place // columns, place % columns, rows, columns)


def stacked(x: Tensor, grids: Grids, cells: Cells, mean: bool) -> Tensor:
    """Means, or sums, of (B, H, W, C) over the windows of adaptive pooling, as one row of tokens (B, M, C).

    Products over the rows and columns of all levels at once, of which the pairs within a level are taken.
    """
    batch, height, width, channels = x.shape
    p_h = _stacked_windows(height, [rows for rows, _ in grids], x)  # (R, H)
    p_w = _stacked_windows(width, [columns for _, columns in grids], x)  # (S, W)
    if mean:
        p_h, p_w = p_h / p_h.sum(1, keepdim=True), p_w / p_w.sum(1, keepdim=True)
    # bmm, as matmul would weigh the sizes against each other, which pins symbols.
    x = torch.bmm(p_w.expand(batch * height, -1, -1), x.flatten(0, 1)).view(batch, height, p_w.shape[0] * channels)
    x = torch.bmm(p_h.expand(batch, -1, -1), x).view(batch, p_h.shape[0], p_w.shape[0], channels)
    row = cells.row + _at(cells.level, _starts([rows for rows, _ in grids]))
    column = cells.column + _at(cells.level, _starts([columns for _, columns in grids]))
    return x[:, row, column]


def neighbours(tokens: Tensor, cells: Cells, weight: Tensor, bias: Tensor) -> Tensor:
    """A depthwise 3x3 convolution of each level's map with zero padding, on the row of all cells.

    tokens (B, M, C), weight (levels, C, 3, 3), bias (levels, C). Returns (B, M, C).
    """
    index = torch.arange(tokens.shape[1], device=tokens.device)
    tap = torch.arange(9, device=tokens.device).unsqueeze(1)
    down, right = tap // 3 - 1, tap % 3 - 1  # (9, 1)
    row, column = cells.row + down, cells.column + right
    inside = (row >= 0) & (row < cells.rows) & (column >= 0) & (column < cells.columns)  # (9, M)
    source = torch.where(inside, index + down * cells.columns + right, 0)
    taps = weight.flatten(2).permute(2, 0, 1)[:, cells.level] * inside.unsqueeze(2)  # (9, M, C)
    return bias[cells.level] + (tokens[:, source] * taps).sum(1)


def _stacked_windows(size: int, counts: Sequence[int], like: Tensor) -> Tensor:
    """`window_matrix` of every level below one another, (sum of counts, size)."""
    place, level = _places(counts, like.device)
    cell, cells = place.unsqueeze(1), _at(level, counts).unsqueeze(1)
    source = torch.arange(size, device=like.device)
    inside = (source >= cell * size // cells) & (source < ((cell + 1) * size + cells - 1) // cells)
    return inside.to(like.dtype)


def _places(counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """For each of sum(counts) things in groups: its place in its group, and the group."""
    index = torch.arange(_total(counts), device=device)
    level = torch.zeros_like(index)
    for start in _starts(counts)[1:]:
        level = level + (index >= start)
    return index - _at(level, _starts(counts)), level


def _at(level: Tensor, numbers: Sequence[int]) -> Tensor:
    """numbers[level] for numbers that may be symbols."""
    return torch.stack([torch.scalar_tensor(n, dtype=level.dtype, device=level.device) for n in numbers])[level]


def _total(counts: Sequence[int]) -> int:
    """The sum of counts of at least one each; where they are symbols, as a single one (a sum is distributed)."""
    return _larger(len(counts), sum(counts))


def _larger(least: int, size: Any) -> int:
    """max of a number and one that may be a symbol."""
    found: Any = torch.sym_max(least, size) if isinstance(size, torch.SymInt) else max(least, size)
    return found


def _starts(counts: Sequence[int]) -> list[int]:
    """Where each group begins."""
    starts = [0]
    for count in counts[:-1]:
        starts.append(starts[-1] + count)
    return starts

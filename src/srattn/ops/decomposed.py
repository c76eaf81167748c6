"""Attention with decomposed relative positions (MViTv2, arXiv:2112.01526, eq. 4 and 5).

    logits = q k^T scale + q (R^h + R^w)^T

R^h of a query and a key is one learned vector for the rows between them, R^w one for the columns. The logits depend on
the queries themselves, so they are no bias that could be kept; but they are a product of H_k + W_k numbers a query
with the place of the key, so that they ride in the attention as further channels:

    q' = [q scale, q R^h, q R^w],    k' = [k, one-hot of the key's row, one-hot of its column],    logits = q' k'^T

and a fused attention computes them without keeping the N x M logits (`sdpa`; `plain` is the definition).
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.ops.tracing import is_exporting

Grid = tuple[int, int]


def table_length(queries: int, keys: int) -> int:
    """Entries of a table of positions along one axis: the distances that the finer of both grids can have."""
    return 2 * _finer(queries, keys) - 1


def _finer(queries: int, keys: int) -> int:
    return cast(int, torch.sym_max(queries, keys))


def stretched(table: Tensor, length: int) -> Tensor:
    """A table of positions (L, d) for `length` distances: linear (align_corners=False), in float32 where narrower.

    While exporting, sizes may be symbols: it then resizes always, which at the table's own length changes nothing.
    """
    if not is_exporting() and table.shape[0] == length:
        return table
    wide = table if table.dtype == torch.float64 else table.float()
    return F.interpolate(wide.T.unsqueeze(0), length, mode="linear", align_corners=False)[0].T.to(table.dtype)


def distances(queries: int, keys: int, device: torch.device) -> Tensor:
    """Which entry of the table a query and a key have along one axis, (queries, keys), in steps of the finer grid.

    In whole numbers: computed in float32, as elsewhere, some of the quotients of odd sizes fall below their entry.
    """
    finer = _finer(queries, keys)
    query = torch.arange(queries, device=device) * finer // queries
    key = torch.arange(keys, device=device).flip(0) * finer // keys
    return query.unsqueeze(1) + key


def relative_logits(q: Tensor, rows: Tensor, columns: Tensor, key_grid: Grid) -> tuple[Tensor, Tensor]:
    """q R^h and q R^w for q (B, heads, H, W, d) and tables (L, d): (B, heads, H, W, H_k) and (B, heads, H, W, W_k)."""
    height, width = q.shape[2:4]
    r_h = stretched(rows, table_length(height, key_grid[0]))[distances(height, key_grid[0], q.device)]
    r_w = stretched(columns, table_length(width, key_grid[1]))[distances(width, key_grid[1], q.device)]
    by_row = q @ r_h.transpose(1, 2)  # (H, d, H_k): one matrix a row of queries
    by_column = (q.transpose(2, 3) @ r_w.transpose(1, 2)).transpose(2, 3)
    return by_row, by_column


def attention_weights(
    q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, key_grid: Grid, scale: float, bias: Tensor | None
) -> Tensor:
    """softmax of the logits. q (B, heads, H, W, d), k (B, heads, M, d), bias broadcast to (B, heads, N, M) or None."""
    by_row, by_column = relative_logits(q, rows, columns, key_grid)
    position = by_row.unsqueeze(5) + by_column.unsqueeze(4)  # (B, heads, H, W, H_k, W_k)
    logits = q.flatten(2, 3) @ k.transpose(2, 3) * scale + position.flatten(4).flatten(2, 3)
    return (logits if bias is None else logits + bias).softmax(-1)


def plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    columns: Tensor,
    key_grid: Grid,
    scale: float,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """q (B, heads, H, W, d), k and v (B, heads, M, d). Returns (B, heads, N, d); `dropout` is of the weights."""
    weights = attention_weights(q, k, rows, columns, key_grid, scale, bias)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    columns: Tensor,
    key_grid: Grid,
    scale: float,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """As `plain`, by `scaled_dot_product_attention` over the further channels."""
    (batch, heads, keys, dim), (height, width) = k.shape, key_grid
    place = torch.arange(keys, device=k.device).unsqueeze(1)
    row = place // width == torch.arange(height, device=k.device)
    column = place % width == torch.arange(width, device=k.device)
    where = torch.cat([row, column], 1).to(k.dtype).expand(batch, heads, -1, -1)
    queries = torch.cat([q * scale, *relative_logits(q, rows, columns, key_grid)], 4).flatten(2, 3)
    bias = None if bias is None else bias.to(q.dtype)
    # Fused attention wants values as wide as keys.
    values = F.pad(v, (0, height + width))
    out = F.scaled_dot_product_attention(queries, torch.cat([k, where], 3), values, bias, dropout, scale=1.0)
    return out[..., :dim]

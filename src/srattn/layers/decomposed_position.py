"""Relative positions in two tables, one for the rows between query and key and one for the columns."""

from typing import Any

import torch
from torch import nn

from srattn.ops.decomposed import table_length

Grid = tuple[int, int]


class DecomposedPosition(nn.Module):
    """The tables R^h and R^w of MViTv2 (arXiv:2112.01526, eq. 4 and 5), shared by all heads.

    A table holds a vector for each distance on the grids that it was made for, and is stretched linearly to others, as
    by the authors' code. timm's keeps the table at every size: at a smaller one it reads the wrong end of it, at a
    larger one it runs out of it. `srattn.ops.decomposed` computes with them.

    Args:
        head_dim: channels of a head's query.
        grid, key_grid: (height, width) of the queries and of the keys at the model's image size.
    """

    def __init__(self, head_dim: int, grid: Grid, key_grid: Grid, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        lengths = [table_length(*sides) for sides in zip(grid, key_grid, strict=True)]
        self.rows = nn.Parameter(torch.empty(lengths[0], head_dim, device=device, dtype=dtype))
        self.columns = nn.Parameter(torch.empty(lengths[1], head_dim, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.rows, std=0.02)
        nn.init.trunc_normal_(self.columns, std=0.02)

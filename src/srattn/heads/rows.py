"""What detectors answer: a row of numbers for every place of the image, which says itself where it stands.

A row is float32 and holds, in this order,

    regression (4)      what leads from the reference to the box; the head says how
    reference (4)       a cell or an anchor, x1, y1, x2, y2 in pixels of the image
    size (2)            height and width of the image
    logits (K)          of the classes, each for itself
    centreness (1)      a logit, of heads that have one

so that a loss, a measurement or an answer needs the rows and nothing else of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from srattn.errors import SrattnError

BEFORE_LOGITS = 10


class Rows(NamedTuple):
    """The columns of rows (B, N, ...): (B, N, 4), (B, N, 4), (B, N, 2), (B, N, K), (B, N) or None."""

    regression: Tensor
    reference: Tensor
    size: Tensor
    logits: Tensor
    centreness: Tensor | None


def join_rows(
    regression: Tensor,
    reference: Tensor,
    size: Sequence[int],
    logits: Tensor,
    centreness: Tensor | None = None,
) -> Tensor:
    """Columns (B, N, ...), the reference (N, 4) for all images alike, to float32 (B, N, 10 + K or 11 + K)."""
    batch, count = logits.shape[:2]
    # Coordinates need all digits, also where the network computes in half precision.
    sides = [torch.full((count, 1), side, dtype=torch.float32, device=logits.device) for side in size]
    place = torch.cat([reference.float(), *sides], 1).expand(batch, -1, -1)
    rest = [] if centreness is None else [centreness.float().unsqueeze(2)]
    return torch.cat([regression.float(), place, logits.float(), *rest], 2)


def split_rows(rows: Tensor, num_classes: int) -> Rows:
    """The columns of what `join_rows` made, as views.

    Raises:
        SrattnError: rows of another number of columns, so of other classes.
    """
    rest = rows.shape[-1] - BEFORE_LOGITS - num_classes
    if rows.ndim != 3 or rest not in (0, 1):
        raise SrattnError(
            f"a detector of {num_classes} classes answers (B, N, {BEFORE_LOGITS + num_classes}) or one column more, "
            f"got {tuple(rows.shape)}: were model and task made for the same classes?"
        )
    regression, reference, size, logits = rows[..., : BEFORE_LOGITS + num_classes].split([4, 4, 2, num_classes], 2)
    return Rows(regression, reference, size, logits, rows[..., -1] if rest else None)


def cells(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """The squares of a map's grid in pixels of the image, float32 (height * width, 4), row by row."""
    y = torch.arange(height, dtype=torch.float32, device=like.device) * stride
    x = torch.arange(width, dtype=torch.float32, device=like.device) * stride
    corner = torch.stack([x.repeat(height), y.repeat_interleave(width)], 1)
    return torch.cat([corner, corner + stride], 1)

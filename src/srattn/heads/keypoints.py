"""Joints as targets and back: heatmaps (arXiv:1804.06208) and soft labels along two axes (SimCC, arXiv:2107.03332).

Joints are (B, K, 3): x, y, and visibility. x and y count pixels from the image's left upper corner, so that its first
pixel has its centre at 0.5. Visibility 0 means that a joint is not labelled, and nothing is learnt of it; nor is of one
outside of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.errors import SrattnError


def encode_heatmaps(
    joints: Tensor, size: Sequence[int], grid: Sequence[int], sigma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """A Gaussian of height 1 around each joint, at its exact place (published code rounds it to a cell first).

    Args:
        joints: (B, K, 3).
        size: height and width of the images.
        grid: height and width of the heatmaps.
        sigma: its standard deviation in cells.

    Returns:
        Heatmaps (B, K, *grid), and which joints to learn from, (B, K), 1 or 0.
    """
    _check(joints, sigma)
    place = joints[..., :2]
    columns = _distances(place[..., 0] * (grid[1] / size[1]), grid[1])  # (B, K, columns)
    rows = _distances(place[..., 1] * (grid[0] / size[0]), grid[0])
    squares = rows.square().unsqueeze(-1) + columns.square().unsqueeze(-2)
    weights = _learnt(joints, size)
    return torch.exp(squares / (-2 * sigma**2)) * weights[..., None, None], weights


def decode_heatmaps(heatmaps: Tensor, size: Sequence[int]) -> Tensor:
    """The highest cell of each heatmap, moved a quarter of a cell towards its higher neighbour along each axis.

    At the border there is no neighbour, and no move.

    Args:
        heatmaps: (B, K, rows, columns).
        size: height and width of the images.

    Returns:
        (B, K, 3): x, y in pixels of the images, and the value of the highest cell.
    """
    rows, columns = heatmaps.shape[2:]
    score, index = heatmaps.flatten(2).max(-1)
    row, column = index // columns, index % columns
    along = heatmaps.gather(2, row[..., None, None].expand(-1, -1, 1, columns)).squeeze(2)  # (B, K, columns)
    across = heatmaps.gather(3, column[..., None, None].expand(-1, -1, rows, 1)).squeeze(3)  # (B, K, rows)
    x = (column + 0.5 + _quarter(along, column)) * (size[1] / columns)
    y = (row + 0.5 + _quarter(across, row)) * (size[0] / rows)
    return torch.stack([x, y, score.to(x.dtype)], -1)


def encode_simcc(
    joints: Tensor, size: Sequence[int], split: float = 2.0, sigma: float = 6.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of the classes along each axis, a Gaussian around each joint's exact place that sums to one.

    Args:
        joints: (B, K, 3).
        size: height and width of the images.
        split: classes a pixel.
        sigma: its standard deviation in classes.

    Returns:
        Shares of the columns (B, K, width * split) and of the rows (B, K, height * split), and which joints to learn
        from, (B, K), 1 or 0.
    """
    _check(joints, sigma)
    columns = _distances(joints[..., 0] * split, bins(size[1], split)).square() / (-2 * sigma**2)
    rows = _distances(joints[..., 1] * split, bins(size[0], split)).square() / (-2 * sigma**2)
    return columns.softmax(-1), rows.softmax(-1), _learnt(joints, size)


def decode_simcc(columns: Tensor, rows: Tensor, split: float = 2.0) -> Tensor:
    """The likeliest class along each axis.

    Args:
        columns: logits (B, K, width * split).
        rows: logits (B, K, height * split).

    Returns:
        (B, K, 3): x, y in pixels of the images, and the smaller of the two probabilities.
    """
    (p_x, x), (p_y, y) = columns.float().softmax(-1).max(-1), rows.float().softmax(-1).max(-1)
    return torch.stack([(x + 0.5) / split, (y + 0.5) / split, torch.minimum(p_x, p_y)], -1)


def bins(size: int, split: float) -> int:
    """Classes along an axis of `size` pixels."""
    count = size * split
    if split <= 0 or count != int(count):
        raise SrattnError(f"split must be above 0 and {size} times it a whole number, got {split}")
    return int(count)


def _distances(place: Tensor, cells: int) -> Tensor:
    """From each place (...), counted in cells from the first one's edge, to the centres of all cells: (..., cells)."""
    return torch.arange(cells, device=place.device, dtype=place.dtype) + 0.5 - place.unsqueeze(-1)


def _learnt(joints: Tensor, size: Sequence[int]) -> Tensor:
    x, y, visible = joints.unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x <= size[1]) & (y <= size[0])
    return (inside & (visible > 0)).to(joints.dtype)


def _quarter(values: Tensor, at: Tensor) -> Tensor:
    """A quarter towards the higher neighbour of cell `at` (...) in (..., cells); 0 at either end."""
    last = values.shape[-1] - 1
    after = values.gather(-1, (at + 1).clamp(max=last).unsqueeze(-1)).squeeze(-1)
    before = values.gather(-1, (at - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.sign(after - before) * ((at > 0) & (at < last)) / 4


def _check(joints: Tensor, sigma: float) -> None:
    if joints.ndim != 3 or joints.shape[2] != 3 or not joints.is_floating_point():
        raise SrattnError(f"joints are numbers (B, K, 3): x, y, visibility; got {joints.dtype} {tuple(joints.shape)}")
    if sigma <= 0:
        raise SrattnError(f"sigma must be above 0, got {sigma}")

"""RoIAlign (arXiv:1703.06870, section 3): a map of fixed size from every box of a feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError


def roi_align(
    features: Tensor, boxes: Tensor, size: int | tuple[int, int], scale: float = 1.0, samples: int = 2
) -> Tensor:
    """Bilinear samples of a feature map on a regular grid in each box, averaged in each cell; no rounding anywhere.

    Pixel (i, j) of the map is a sample of the image at its middle, (i + 0.5, j + 0.5) / scale ("aligned" elsewhere). A
    sample less than a pixel outside of the map's outermost samples takes the nearest of them; one further out is 0.
    Differentiable in the features and in the boxes.

    Args:
        features: (B, C, H, W), floating point.
        boxes: (B, R, 4), x1, y1, x2, y2 in pixels of the image, R of each image; fill up with boxes of zeros.
        size: (height, width) of a box's map.
        scale: of the map to the image: 1 / stride.
        samples: for each side of a cell, at least 1; 2 as published.

    Returns:
        (B, R, C, height, width) in the type of the features.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if features.ndim != 4 or boxes.ndim != 3 or boxes.shape[2] != 4 or len(boxes) != len(features):
        raise SrattnError(
            f"features are (B, C, H, W) and boxes (B, R, 4), got {tuple(features.shape)} and {tuple(boxes.shape)}"
        )
    if min(height, width, samples) < 1 or not scale > 0:
        raise SrattnError(
            f"size and samples are at least 1 and scale is above 0, got size=({height}, {width}), {samples=}, {scale=}"
        )
    batch, channels = features.shape[:2]
    count = boxes.shape[1]
    if not batch * count * channels:
        return features.new_zeros(batch, count, channels, height, width)
    # Coordinates in half precision would miss by pixels.
    wide = torch.promote_types(torch.promote_types(features.dtype, boxes.dtype), torch.float32)
    edges = boxes.to(wide) * scale - 0.5  # in units of the map's samples
    ys, inside_y = _places(edges[..., 1], edges[..., 3], height, samples, features.shape[2])
    xs, inside_x = _places(edges[..., 0], edges[..., 2], width, samples, features.shape[3])
    rows, columns = height * samples, width * samples
    grid = torch.stack(
        [xs.unsqueeze(2).expand(-1, -1, rows, -1), ys.unsqueeze(3).expand(-1, -1, -1, columns)], -1
    )  # (B, R, rows, columns, 2)
    found = F.grid_sample(
        features.to(wide),
        grid.reshape(batch, count * rows, columns, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )  # (B, C, R * rows, columns)
    found = found.view(batch, channels, count, rows, columns)
    inside = inside_y.unsqueeze(3) & inside_x.unsqueeze(2)  # (B, R, rows, columns)
    found = found * inside.unsqueeze(1)
    cells = found.view(batch, channels, count, height, samples, width, samples).mean((4, 6))
    return cells.transpose(1, 2).to(features.dtype)


def _places(low: Tensor, high: Tensor, cells: int, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """Samples along one axis of boxes from `low` to `high` (B, R): (B, R, cells * samples), and which count.

    In the units of `grid_sample`, where the edges of the map are -1 and 1.
    """
    count = cells * samples
    steps = (torch.arange(count, dtype=low.dtype, device=low.device) + 0.5) / count
    places = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * steps
    return (2 * places + 1) / length - 1, (places >= -1) & (places <= length)

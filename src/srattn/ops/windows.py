"""Cutting a map into windows and putting it together again.

Eagerly by reshaping. While exporting, sizes are symbols, and a reshape would pin which of them are one and which divide
which: there the tokens are gathered by index instead, the same values at every size.
"""

import torch
from torch import Tensor

from srattn.ops.reduce import fit, reduced_size
from srattn.ops.tracing import is_exporting


def to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, H, W, C) to (B n, h, w, C): the ceil(H / h) * ceil(W / w) windows of each map, row by row.

    Where the window does not divide the map, zeros are appended below and to the right.
    """
    batch, height, width, channels = x.shape
    (h, w), (rows, columns) = window, reduced_size(height, width, window, "pad")
    x = fit(x, window, "pad")
    if is_exporting():
        y, z = _places(rows, h, columns, w, x)  # (n, h w) each
        return x[:, y, z].view(-1, h, w, channels)
    x = x.reshape(batch, rows, h, columns, w, channels).transpose(2, 3)  # (B, rows, columns, h, w, C)
    return x.reshape(batch * rows * columns, h, w, channels)


def from_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`: (B n, h, w, C) to (B, height, width, C); what was padded is cut off."""
    count, h, w, channels = windows.shape
    rows, columns = reduced_size(height, width, (h, w), "pad")
    if is_exporting():
        y = torch.arange(height, device=windows.device).unsqueeze(1)
        x = torch.arange(width, device=windows.device)
        tokens = windows.view(-1, rows * columns, h * w, channels)
        return tokens[:, y // h * columns + x // w, y % h * w + x % w]
    x = windows.reshape(count // (rows * columns), rows, columns, h, w, channels).transpose(2, 3)
    return x.reshape(-1, rows * h, columns * w, channels)[:, :height, :width]


def _places(rows: int, h: int, columns: int, w: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column on the map of each token of each window, (rows columns, h w) each."""
    number = torch.arange(rows * columns, device=like.device).unsqueeze(1)
    token = torch.arange(h * w, device=like.device)
    return number // columns * h + token // w, number % columns * w + token % w

"""The rows of an answer that windows still add to: a ring, whose memory does not grow with the image's height."""

from __future__ import annotations

import torch
from torch import Tensor


class Strip:
    """Rows from the first unfinished one down, (channels, height, width) float32.

    Row y lies at y modulo `height`: a row is free again once it was taken.
    """

    def __init__(self, channels: int, height: int, width: int, device: torch.device) -> None:
        self._rows = torch.zeros(channels, height, width, device=device)

    def add(self, y: int, x: int, values: Tensor) -> None:
        """Adds values (channels, h, w) from row y and column x on; `h` is at most the height of the strip."""
        height, last = self._rows.shape[1], x + values.shape[2]
        first = y % height
        head = min(values.shape[1], height - first)
        self._rows[:, first : first + head, x:last] += values[:, :head]
        self._rows[:, : values.shape[1] - head, x:last] += values[:, head:]

    def rows(self, y: int, most: int) -> Tensor:
        """At most `most` rows from y on, (channels, n, width): those that lie together. A view."""
        first = y % self._rows.shape[1]
        return self._rows[:, first : first + most]

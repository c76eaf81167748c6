"""Feed-forward networks on (batch, height, width, channels) tokens."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, GELU, linear (PVT, arXiv:2102.12122); to `out_dim` channels, where they are not those of the input."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        out_dim: int | None = None,
        drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, dim if out_dim is None else out_dim, device=device, dtype=dtype)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to (B, H, W, out_dim)."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class ConvMlp(nn.Module):
    """Linear, depthwise 3x3 with zero padding, GELU, linear (PVT v2, arXiv:2106.13797, section 3.1).

    `extra_relu` puts a ReLU before the convolution, as the published linear variant (b2_li) does.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        extra_relu: bool = False,
        drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.extra_relu = extra_relu
        self.fc1 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, dim, device=device, dtype=dtype)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape."""
        x = self.fc1(x)
        if self.extra_relu:
            x = F.relu(x)
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # a channels-last view, no copy
        return self.drop(self.fc2(self.drop(F.gelu(x))))

"""Feed-forwards that widen, convolve depthwise and narrow again, on (batch, height, width, channels) tokens."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from srattn.layers.batch_norm import TokenBatchNorm, after_gelu
from srattn.layers.local_perception import LocalPerception, depthwise_of


class InvertedResidual(nn.Module):
    """The inverted residual feed-forward of CMT (arXiv:2107.06263, eq. 5 to 7).

    Linear, GELU, batch norm; x + DWConv(x), GELU, batch norm; linear, batch norm. The published 1x1 convolutions are
    the linear maps.
    """

    def __init__(self, dim: int, hidden: int, *, drop: float = 0.0, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(dim, hidden, **factory)
        self.norm1 = TokenBatchNorm(hidden, **factory)
        self.local = LocalPerception(hidden, **factory)
        self.norm2 = TokenBatchNorm(hidden, **factory)
        self.fc2 = nn.Linear(hidden, dim, **factory)
        self.norm3 = TokenBatchNorm(dim, **factory)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape."""
        x = self.drop(after_gelu(self.norm1, self.fc1(x)))
        x = after_gelu(self.norm2, self.local(x))
        return self.drop(self.norm3(self.fc2(x)))


class InvertedBottleneck(nn.Module):
    """The feed-forward of P2T (arXiv:2106.12011, section 3): linear, hard swish, depthwise 3x3, hard swish, linear."""

    def __init__(self, dim: int, hidden: int, *, drop: float = 0.0, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, dim, device=device, dtype=dtype)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape."""
        x = F.hardswish(depthwise_of(self.dwconv, F.hardswish(self.fc1(x))))
        return self.drop(self.fc2(self.drop(x)))

"""The detail-specific feed-forward network of the Shunted Transformer."""

from typing import Any

from torch import Tensor, nn

from srattn.layers.local_perception import depthwise_of


class DetailFeedForward(nn.Module):
    """Linear, GELU(y + depthwise 3x3 of y), linear (Shunted Transformer, arXiv:2111.15193, section 3.3).

    The depthwise convolution, with zero padding, adds the detail of the neighbourhood to what each token holds.
    """

    def __init__(self, dim: int, hidden: int, *, drop: float = 0.0, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, dim, device=device, dtype=dtype)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape."""
        x = self.fc1(x)
        return self.drop(self.fc2(self.drop(depthwise_of(self.dwconv, x, residual=True, gelu=True))))

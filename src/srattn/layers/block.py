"""The transformer block: attention and feed-forward, each behind a norm and beside a residual."""

from typing import Any

from torch import Tensor, nn

from srattn.layers import native
from srattn.layers.block_kernels import lay_out_block
from srattn.layers.drop import DropPath


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), with stochastic depth on both branches.

    `attn` and `mlp` map (B, H, W, dim) to the same shape.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp: nn.Module,
        *,
        drop_path: float = 0.0,
        eps: float = 1e-6,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        kernels = native.layout_of(self, x, lay_out_block)
        if kernels is not None:
            return kernels(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

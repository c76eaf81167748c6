"""The call forms that people have, over our attention on maps."""

from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.attention import SpatialReductionAttention


class TokenAttention(nn.Module):
    """Takes (batch, tokens, channels) and the grid, as published blocks call their attention.

    Both `attn(x, H, W)` (PVT, SegFormer) and `attn(x, feat_size)` with `feat_size = (H, W)` (timm) work. The parameters
    are those of the wrapped attention, under `attn.`.
    """

    def __init__(self, attn: SpatialReductionAttention) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor, *grid: int | tuple[int, int]) -> Tensor:
        """x (B, H W, C). Returns the same shape."""
        height, width = _grid(grid)
        if x.ndim != 3 or x.shape[1] != height * width:
            raise SrattnError(
                f"tokens are (batch, {height} * {width} = {height * width}, channels), got {tuple(x.shape)}"
            )
        return self.attn(x.unflatten(1, (height, width))).flatten(1, 2)


def _grid(grid: tuple[int | tuple[int, int], ...]) -> tuple[int, int]:
    sizes = grid[0] if len(grid) == 1 else grid
    if isinstance(sizes, (tuple, list)) and len(sizes) == 2 and not any(isinstance(s, (tuple, list)) for s in sizes):
        return sizes[0], sizes[1]  # type: ignore[return-value]
    raise SrattnError(f"the grid is `attn(x, H, W)` or `attn(x, (H, W))`, got {grid!r}")

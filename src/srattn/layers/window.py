"""Locally-grouped self-attention: every window of the map attends within itself."""

import math
from typing import Any

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.layers.attention import HeadsPlan, MapAttention, SpatialReductionAttention
from srattn.layers.reduction import Reduction, as_pair
from srattn.ops.plan import Choice
from srattn.ops.reduce import reduced_size
from srattn.ops.tracing import is_exporting
from srattn.ops.windows import from_windows, to_windows


class LocallyGroupedAttention(MapAttention):
    """LSA of Twins (arXiv:2104.13840, section 3.2): attention inside windows of (h, w) tokens.

    Each window is a small map for one `SpatialReductionAttention` without reduction (`window`), so paths, dropout and
    masks are those of the operator. Absorption serves, but gains only with one head: a window has as many queries as
    keys, and making K' and V' costs as much as the projections that it saves.

    Args:
        dim: channels.
        num_heads: heads; must divide `dim`.
        size: of a window in tokens, an int or (h, w). Where it does not divide the map, zeros are appended below and
            to the right, and cut off afterwards.
        mask_padding: keep those zeros from being attended. Published weights were trained without: their padded keys
            and values are the biases of the projections.
        qkv_bias, attn_drop, proj_drop: as in `SpatialReductionAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        size: int | tuple[int, int],
        *,
        mask_padding: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.dim, self.num_heads, self.ratio = dim, num_heads, (1, 1)
        self.size = as_pair(size, "size")
        self.mask_padding = mask_padding
        self.window = SpatialReductionAttention(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
        """Attends within each window.

        Args:
            x: (B, H, W, dim).
            key_mask: (B, H, W) bool, true where a token may be attended; the padding of windows then is not either. A
                window without any valid token gets the output bias.

        Returns:
            The shape of x.
        """
        mask = self._mask(x, key_mask)
        out = self.window(to_windows(x, self.size), key_mask=mask)
        return from_windows(out, x.shape[1], x.shape[2])

    def count(self, height: int, width: int) -> int:
        """Windows of a map of (height, width) tokens."""
        return math.prod(reduced_size(height, width, self.size, "pad"))

    def _mask(self, x: Tensor, key_mask: Tensor | None) -> Tensor | None:
        """(B n, h, w), true where a token may be attended; None where all may."""
        if x.ndim != 4 or x.shape[-1] != self.dim:
            raise SrattnError(f"tokens are (batch, height, width, {self.dim}), got {tuple(x.shape)}")
        if key_mask is None:
            height, width = x.shape[1:3]
            # While exporting, sizes are symbols: the mask is made at every size.
            padded = is_exporting() or height % self.size[0] or width % self.size[1]
            if not (self.mask_padding and padded):
                return None
            key_mask = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device)
        elif key_mask.shape != x.shape[:3] or key_mask.dtype != torch.bool:
            raise SrattnError(
                f"key_mask is boolean of shape {tuple(x.shape[:3])}, got {key_mask.dtype} {tuple(key_mask.shape)}"
            )
        return to_windows(key_mask.unsqueeze(-1), self.size).squeeze(-1)  # padding is false

    # -- what plans and explanations ask -----------------------------------------------------------------------------

    @property
    def reduction(self) -> Reduction:
        return self.window.reduction

    def reduced_size(self, height: int, width: int) -> tuple[int, int]:
        """Grid of the keys of `attention_map`: the whole map."""
        return height, width

    def attention_map(self, x: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
        """The attention weights over the whole map, (B, num_heads, H W, H W), zero outside of a query's window.

        A row sums to one less the share of the window's padding, which lies on no map.
        """
        batch, height, width = x.shape[:3]
        weights = self.window.attention_map(to_windows(x, self.size), key_mask=self._mask(x, key_mask))
        weights = weights.unflatten(0, (batch, -1)).transpose(1, 2)  # (B, heads, n, l, l)
        rows, columns = reduced_size(height, width, self.size, "pad")
        grid = (rows * self.size[0], columns * self.size[1])
        raster = torch.arange(math.prod(grid), device=x.device).view(1, *grid, 1)
        place = to_windows(raster, self.size).flatten(1)  # (n, l), where each token of each window lies
        whole = weights.new_zeros(batch, self.num_heads, raster.numel(), raster.numel())
        whole[:, :, place.unsqueeze(2), place.unsqueeze(1)] = weights
        whole = whole.unflatten(3, grid).unflatten(2, grid)[:, :, :height, :width, :height, :width]
        return whole.flatten(4, 5).flatten(2, 3)

    def plan_for(self, height: int, width: int, batch: int = 1, **how: Any) -> Choice:
        """The path that `forward` takes for a map of this size, with the cost of all its windows."""
        return self.window.plan_for(*self.size, batch * self.count(height, width), **how)

    def plan_heads(self, height: int, width: int, batch: int = 1, **how: Any) -> list[HeadsPlan]:
        """As `plan_for`, with the keys of one window."""
        return self.window.plan_heads(*self.size, batch * self.count(height, width), **how)

    def extra_repr(self) -> str:
        return f"size={self.size}, mask_padding={self.mask_padding}"

"""E-MHSA of Next-ViT: keys and values are means over runs of the flattened raster (arXiv:2207.05501, section 3.3)."""

from typing import Any

from torch import Tensor

from srattn.errors import SrattnError
from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.batch_norm import TokenBatchNorm
from srattn.layers.reduction import Reduction, check_edge
from srattn.ops import raster


class RasterReduction(Reduction):
    """The mean of every R^2 consecutive tokens in raster order, then batch norm.

    As published, the map is flattened before it is pooled: a reduced token is the mean of a run of R^2 tokens along a
    row, which goes on in the next row where the row ends, and not of an R x R block. What a key sees therefore depends
    on the width of the map, and the order of rows and columns is no symmetry.

    The reduced tokens stand in one row. Where R^2 does not divide the number of tokens, `edge` says what happens to the
    rest: "pad" makes a last, shorter run of it; "floor" loses it, as published; "error". Under a mask a run is the mean
    of its valid tokens; while training, the batch statistics count every run, also one that is masked.
    """

    def __init__(
        self, dim: int, ratio: int, *, edge: str = "pad", eps: float = 1e-5, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        if not isinstance(ratio, int) or ratio < 1:
            raise SrattnError(f"a run of R^2 tokens has one ratio, a positive int, got {ratio!r}")
        self.run, self.edge = ratio**2, check_edge(edge)
        self.norm = TokenBatchNorm(dim, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, H, W, C), mask (B, H, W) true where valid. Returns (B, 1, M, C)."""
        mask = None if mask is None else mask.flatten(1)
        return self.norm(raster.run_means(x.flatten(1, 2), self.run, self.edge, mask).unsqueeze(1))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """One row of all runs."""
        return 1, raster.run_count(height * width, self.run, self.edge)

    def macs(self, height: int, width: int) -> int:
        return height * width * self.norm.num_features

    def sum(self, x: Tensor) -> Tensor:
        return raster.run_sums(x.flatten(1), self.run, self.edge).unsqueeze(1)

    def extra_repr(self) -> str:
        return f"run={self.run}, edge={self.edge!r}"


class RasterAttention(SpatialReductionAttention):
    """E-MHSA: `SpatialReductionAttention` over a `RasterReduction`; at ratio 1 nothing is reduced, as published.

    Args:
        dim: channels.
        ratio: R; keys and values are R^2 times fewer.
        head_dim: channels of a head; must divide `dim`.
        edge, qkv_bias, attn_drop, proj_drop: as in `SpatialReductionAttention`.
    """

    def __init__(
        self,
        dim: int,
        ratio: int = 1,
        *,
        head_dim: int = 32,
        edge: str = "pad",
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        if head_dim < 1 or dim % head_dim:
            raise SrattnError(f"head_dim must divide dim, got {dim=}, {head_dim=}")
        check_edge(edge)
        reduction = Reduction() if ratio == 1 else RasterReduction(dim, ratio, edge=edge, device=device, dtype=dtype)
        super().__init__(dim, dim // head_dim, reduction=reduction, device=device, dtype=dtype, **options)

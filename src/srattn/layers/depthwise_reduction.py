"""The depthwise reduction of CMT: one R x R kernel a channel, then batch norm."""

from typing import Any

from torch import Tensor, nn

from srattn.layers.batch_norm import TokenBatchNorm
from srattn.layers.reduction import Reduction, as_pair, check_edge
from srattn.ops import reduce as ops


class DepthwiseReduction(Reduction):
    """Depthwise convolution with kernel = stride = R, then batch norm (CMT, arXiv:2107.06263, section 3.3).

    Masks are reduced as by `StridedReduction`: invalid tokens contribute nothing. While training, the batch statistics
    count every reduced token, also one that is masked.

    Parameters: `proj.weight` (dim, 1, R_h, R_w) and its bias, and those of the batch norm.
    """

    def __init__(
        self,
        dim: int,
        ratio: int | tuple[int, int],
        *,
        edge: str = "pad",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.ratio = as_pair(ratio, "ratio")
        self.edge = check_edge(edge)
        self.proj = nn.Conv2d(dim, dim, self.ratio, self.ratio, groups=dim, device=device, dtype=dtype)
        self.norm = TokenBatchNorm(dim, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.norm(ops.depthwise(x, self.proj.weight, self.proj.bias, self.edge, mask))

    def size(self, height: int, width: int) -> tuple[int, int]:
        return ops.reduced_size(height, width, self.ratio, self.edge)

    def macs(self, height: int, width: int) -> int:
        rows, columns = self.size(height, width)
        return rows * columns * self.proj.weight.numel()

    def sum(self, x: Tensor) -> Tensor:
        return ops.block_sum(x, self.ratio, self.edge)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}, edge={self.edge!r}"

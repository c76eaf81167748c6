"""A stem of convolutions before the first patch embedding."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.patch_embed import Embedding
from srattn.layers.reduction import check_edge
from srattn.ops.reduce import reduced_size
from srattn.ops.tracing import is_exporting


class ConvolutionalStem(Embedding):
    """A strided 7x7, `num_conv` of 3x3, each with batch norm and ReLU, then patches of 2x2 and a layer norm.

    The patch embedding of the Shunted Transformer's first stage (arXiv:2111.15193, section 3.4). At stride 4 the 7x7
    and the patches halve the grid each; at stride 2 the 7x7 alone does, and at stride 1 nothing, patches being 1x1.

    Where patches do not divide the halved grid, `edge` says what happens, as in `SpatialReductionAttention`.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int = 4,
        *,
        num_conv: int = 0,
        edge: str = "pad",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_conv < 0 or stride not in (1, 2, 4):
            raise SrattnError(
                f"the stem has a stride of 1, 2 or 4 and num_conv of 0 or more, got {stride=}, {num_conv=}"
            )
        factory = {"device": device, "dtype": dtype}
        self.stride, self.edge = stride, check_edge(edge)
        self.first, self.patch = min(stride, 2), max(stride // 2, 1)
        layers: list[nn.Module] = []
        for i in range(num_conv + 1):
            size = (dim, 3, 1) if i else (in_chans, 7, self.first)  # input channels, kernel, stride
            convolution = nn.Conv2d(size[0], dim, size[1], size[2], size[1] // 2, bias=False, **factory)
            layers += [convolution, nn.BatchNorm2d(dim, **factory), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers, nn.Conv2d(dim, dim, self.patch, self.patch, **factory))
        self.norm = nn.LayerNorm(dim, eps=eps, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in any memory format. Returns (B, H', W', dim), the grid of `size`."""
        rows, columns = self.size(x.shape[2], x.shape[3])
        x = self.conv[:-1](x)
        extra_h, extra_w = rows * self.patch - x.shape[2], columns * self.patch - x.shape[3]
        if self.edge == "pad" and (is_exporting() or extra_h or extra_w):
            x = F.pad(x, (0, extra_w, 0, extra_h))
        return self.norm(self.conv[-1](x).permute(0, 2, 3, 1))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Grid of tokens for an input of (height, width)."""
        height, width = -(-height // self.first), -(-width // self.first)
        return reduced_size(height, width, (self.patch, self.patch), self.edge)

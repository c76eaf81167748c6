"""A depthwise convolution beside a residual: what a token learns from its neighbours."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from srattn.layers.hooks import is_listened_to
from srattn.ops import depthwise as ops


class LocalPerception(nn.Module):
    """x + DWConv(x), 3x3 with zero padding: the local perception unit of CMT (arXiv:2107.06263, eq. 1).

    P2T applies it to each of its pooled maps (arXiv:2106.12011, eq. 3). In Twins it is the conditional positional
    encoding (arXiv:2102.10882, section 3.3): the padding tells a token how far the border is, and there is nothing to
    resize whatever the size of the map.
    """

    def __init__(self, dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape."""
        return depthwise_of(self.dwconv, x, residual=True)


def depthwise_of(conv: nn.Module, x: Tensor, residual: bool = False, gelu: bool = False) -> Tensor:
    """What a depthwise convolution makes of tokens (B, H, W, C); it may have been replaced.

    `residual`: with x added; `gelu`: and GELU behind it.
    """
    if is_depthwise_3x3(conv) and not is_listened_to(conv):
        assert isinstance(conv, nn.Conv2d)
        return ops.depthwise(x, conv.weight, conv.bias, residual, gelu)
    y = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # channels-last views, no copy
    y = x + y if residual else y
    return F.gelu(y) if gelu else y


def is_depthwise_3x3(conv: nn.Module | None) -> bool:
    """Whether a convolution is depthwise, 3x3, with zeros around the map, as ours are made."""
    if type(conv) is not nn.Conv2d or conv.groups != conv.in_channels or conv.padding_mode != "zeros":
        return False
    form = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    return form == ((3, 3), (1, 1), (1, 1), (1, 1)) and conv.out_channels == conv.in_channels

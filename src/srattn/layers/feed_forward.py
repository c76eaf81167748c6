"""Feed-forward networks on (batch, height, width, channels) tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.layers.hooks import is_linear, is_listened_to
from srattn.layers.local_perception import depthwise_of, is_depthwise_3x3
from srattn.ops import feed_forward as ops
from srattn.ops import plan
from srattn.ops.reduce import cleared
from srattn.ops.tracing import is_exporting


class FeedForward(nn.Module):
    """fc1, [ReLU], [depthwise 3x3], GELU, fc2, with the setting of how much is kept for backward.

    Attributes:
        memory: "fast", the quickest way to the gradients, or "lean", which never keeps what is hidden; the same
            numbers either way, see `srattn.ops.feed_forward`.
    """

    fc1: nn.Linear
    fc2: nn.Linear
    drop: nn.Dropout
    dwconv: nn.Conv2d | None  # a value here would hide the module of the same name
    extra_relu: bool = False
    memory: str = "fast"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, W, dim) to (B, H, W, out_dim). The convolution sees zeros where the `mask` (B, H, W) is false."""
        if mask is not None and self.dwconv is not None:
            return self._by_parts(x, mask)
        if x.device.type in plan.KERNEL_DEVICES and (hidden := self._convolved(x)) is not None:
            return self.drop(self.fc2(self.drop(hidden)))
        if self._is_read(x) or not self._is_plain():
            return self._by_parts(x)
        drop = self.drop.p if self.drop.training else 0.0
        return self.drop(ops.feed_forward(x, self._weights(), self.extra_relu, drop, self.memory))

    def plan_for(
        self, height: int, width: int, batch: int = 1, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> ops.Choice:
        """How a training step passes a map of this size: the path, the rows of one band, and the reason in words."""
        if not self._is_plain():
            return ops.Choice("plain", 0, "a part was replaced or is listened to by a hook")
        drop = self.drop.p if self.drop.training else 0.0
        shape = (batch, height, width, self.fc1.in_features)
        return ops.planned(shape, self._weights(), self.extra_relu, drop, self.memory, device, dtype)

    @staticmethod
    def _is_read(x: Tensor) -> bool:
        """Whether a compiler sees the parts: on a CPU it is left with the kernel, unless it exports."""
        return torch.compiler.is_compiling() and (x.device.type != "cpu" or is_exporting())

    def _weights(self) -> ops.Weights:
        conv = self.dwconv
        taps = (None, None) if conv is None else (conv.weight, conv.bias)
        return ops.Weights(self.fc1.weight, self.fc1.bias, *taps, self.fc2.weight, self.fc2.bias)

    def _is_plain(self) -> bool:
        """Whether the parts are what they were built as, so that their weights say everything."""
        if type(self.drop) is not nn.Dropout or is_listened_to(self.drop):
            return False
        if self.dwconv is not None and (not is_depthwise_3x3(self.dwconv) or is_listened_to(self.dwconv)):
            return False
        return is_linear(self.fc1) and is_linear(self.fc2)

    def _convolved(self, x: Tensor) -> Tensor | None:
        """What fc2 takes, by the GPU's kernel of convolution and GELU; None where that is not to be had or wanted."""
        conv = self.dwconv
        if conv is None or not is_depthwise_3x3(conv) or is_listened_to(conv):
            return None
        if self.memory == "lean" and torch.is_grad_enabled():
            return None
        from srattn.ops.triton import depthwise  # loads Triton

        if not depthwise.takes(x, conv.weight):
            return None
        return depthwise.depthwise(self.fc1(x), conv.weight, conv.bias, depthwise.Form(relu=self.extra_relu))

    def _by_parts(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The parts one after the other: with a mask, or for parts that were replaced (by an adapter) or have hooks."""
        x = self.fc1(x)
        if self.extra_relu:
            x = F.relu(x)
        if self.dwconv is not None:
            x = depthwise_of(self.dwconv, cleared(x, mask))
        return self.drop(self.fc2(self.drop(F.gelu(x))))


class Mlp(FeedForward):
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
        self.dwconv = None
        self.fc2 = nn.Linear(hidden, dim if out_dim is None else out_dim, device=device, dtype=dtype)
        self.drop = nn.Dropout(drop)


class ConvMlp(FeedForward):
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

"""Batch normalisation of tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.ops import batch_norm as ops


class TokenBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` on (batch, height, width, channels); same parameters, same statistics.

    Training on a CPU goes through a kernel of ours, see `srattn.ops.batch_norm`.
    """

    def forward(self, input: Tensor, gelu: bool = False) -> Tensor:
        """(B, H, W, C) to the same shape; `gelu`: of GELU(input)."""
        if self.training and ops.reason_against(input, self.weight, self.bias) is None:
            return self._by_kernel(input, gelu)
        if gelu:
            input = F.gelu(input)
        # Every token as an image of one pixel: faster than a channels-last map, and it exports at any size.
        return super().forward(input.flatten(0, 2)[:, :, None, None]).view(input.shape)

    def _by_kernel(self, x: Tensor, gelu: bool) -> Tensor:
        self._check_input_dim(x)
        count = x.numel() // x.shape[-1]
        if count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        y, mean, var = ops.batch_norm(x, self.weight, self.bias, self.eps, gelu)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), share)
        return y


def after_gelu(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(GELU(x)), in one pass where `norm` can; it may have been replaced by another module."""
    return norm(x, gelu=True) if type(norm) is TokenBatchNorm else norm(F.gelu(x))

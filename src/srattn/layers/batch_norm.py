"""Batch normalisation of tokens, and of maps by the same kernel."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.layers.hooks import is_listened_to
from srattn.ops import batch_norm as ops
from srattn.ops.tracing import is_exporting


class MapBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that also trains on a single pixel of a single image, as `by_what_it_has_seen` says."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if self.training and not is_exporting() and input.numel() == input.shape[1] and self.running_mean is not None:
            return by_what_it_has_seen(self, input)
        return super().forward(input)


def by_what_it_has_seen(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """norm(x), x (B, C, H, W), by the running statistics, which stay as they are.

    For one value a channel, such as the mean of an epoch's last image: it has no variance of its own, and normalised by
    itself it would be 0 whatever it was.
    """
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class TokenBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` on (batch, height, width, channels); same parameters, same statistics.

    Training goes through kernels of ours, see `srattn.ops.batch_norm`. `nn.SyncBatchNorm` is made of it by
    `convert_sync_batchnorm`.
    """

    def forward(self, input: Tensor, gelu: bool = False) -> Tensor:
        """(B, H, W, C) to the same shape; `gelu`: of GELU(input)."""
        if self.training and not is_exporting() and input.numel() == input.shape[-1] and self.running_mean is not None:
            x = (F.gelu(input) if gelu else input).movedim(-1, 1)
            return by_what_it_has_seen(self, x).movedim(1, -1)
        if self.training and ops.has_kernel(input, self.weight, self.bias):
            return _by_kernel(self, input, gelu)
        if gelu:
            input = F.gelu(input)
        # Every token as an image of one pixel: faster than a channels-last map, and it exports at any size.
        return super().forward(input.flatten(0, 2)[:, :, None, None]).view(input.shape)


def _by_kernel(norm: nn.BatchNorm2d, x: Tensor, gelu: bool) -> Tensor:
    """Of tokens (B, H, W, C), while training."""
    norm._check_input_dim(x)
    count = x.numel() // x.shape[-1]
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    # As rows: torch's compiler would lay out tokens of four dimensions as if they were a map, channels-last, and copy.
    y, mean, var = ops.batch_norm(x.flatten(0, -2), norm.weight, norm.bias, norm.eps, gelu)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
            norm.running_var.lerp_((var * (count / (count - 1))).to(norm.running_var.dtype), share)
    return y.view(x.shape)


def after_gelu(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(GELU(x)), in one pass where `norm` can; it may have been replaced by another module."""
    return norm(x, gelu=True) if type(norm) is TokenBatchNorm else norm(F.gelu(x))


def of_map_after_gelu(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(GELU(x)) of a map (B, C, H, W); by the kernel, channels-last, where one in this memory format trains."""
    if type(norm) is nn.BatchNorm2d and norm.training and not is_listened_to(norm):
        tokens = x.permute(0, 2, 3, 1)
        if tokens.is_contiguous() and ops.has_kernel(tokens, norm.weight, norm.bias):
            return _by_kernel(norm, tokens, gelu=True).permute(0, 3, 1, 2)
    return norm(F.gelu(x))


def convert_sync_batchnorm(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Batch norms over the images of all processes, as `nn.SyncBatchNorm.convert_sync_batchnorm` makes them.

    That one alone does not know that CvT and CMT normalise tokens, whose channels come last. Call this before DDP wraps
    the model; torch synchronises on GPUs alone.

    Args:
        model: changed in place, with the same names in its `state_dict`.
        process_group: of `torch.distributed`; all processes unless given.

    Returns:
        The model.
    """
    of_tokens = {name for name, module in model.named_modules() if isinstance(module, TokenBatchNorm)}
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model, process_group)
    for name, module in model.named_modules():
        if name in of_tokens:
            module.register_forward_pre_hook(_channels_second)
            module.register_forward_hook(_channels_last)
    return model


def _channels_second(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return inputs[0].permute(0, 3, 1, 2)


def _channels_last(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.permute(0, 2, 3, 1)

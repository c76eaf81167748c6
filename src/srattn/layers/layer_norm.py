"""Layer normalisation of tokens, by a kernel where a compiled model trains on a GPU."""

import torch
from torch import Tensor, nn

from srattn.layers.hooks import is_listened_to
from srattn.ops import plan


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x); it may have been replaced.

    In a graph that trains on a GPU the compiler's own layer norm takes several passes each way; the kernel takes one,
    and under autocast its result has the type that the next product would round it to.
    """
    if (
        x.device.type in plan.KERNEL_DEVICES
        and torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and type(norm) is nn.LayerNorm
        and not is_listened_to(norm)
    ):
        from srattn.ops.triton import layer_norm as triton  # loads Triton

        if triton.takes(x, norm.weight, norm.bias):
            device = x.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
            return triton.layer_norm(x, norm.weight, norm.bias, norm.eps, dtype=dtype)[0]
    return norm(x)

"""Batch normalisation of tokens while training, behind GELU where that stands before it.

`plain` is the definition. On a CPU the compiled kernel (`native/kernels/batch_norm.h`) reads its input twice and writes
its result once, forward and backward alike; statistics are summed up in float64, and of GELU nothing is kept. On a GPU
`srattn.ops.triton.batch_norm` does the same.
"""

import ctypes
import functools
from collections.abc import Callable
from ctypes import c_float, c_int, c_long, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.ops import plan
from srattn.ops.native import eager
from srattn.ops.native import library as native
from srattn.ops.native.operator import register


def plain(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5, gelu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition. x (..., C) to its shape; then mean and biased variance (C) of all tokens, float32 or wider."""
    if gelu:
        x = F.gelu(x)
    wide = x if x.dtype == torch.float64 else x.float()
    axes = tuple(range(x.ndim - 1))
    mean, var = wide.mean(axes), wide.var(axes, correction=0)
    y = (wide - mean) * (var + eps).rsqrt()
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(x.dtype), mean.detach(), var.detach()


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5, gelu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain`, by a kernel; only where one is there (`has_kernel`)."""
    if x.device.type in plan.KERNEL_DEVICES:
        from srattn.ops.triton import batch_norm as triton  # loads Triton

        assert weight is not None and bias is not None
        return triton.batch_norm(x, weight, bias, eps, gelu)
    run = _operator if torch.compiler.is_compiling() else _BatchNorm.apply
    y, mean, var, _ = run(x.contiguous(), weight, bias, eps, gelu)  # the copy, if there is one, serves backward too
    return y, mean, var


def has_kernel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether a kernel normalises this: that of a CPU, or on a GPU the one of `srattn.ops.triton.batch_norm`.

    There it is taken where a compiler reads the model, and else for maps that keep a GPU busy for longer than the host.
    """
    if x.device.type in plan.KERNEL_DEVICES:
        from srattn.ops.triton import batch_norm as triton

        large = x.numel() * x.itemsize >= plan.KERNEL_MIN_BYTES or torch.compiler.is_compiling()
        return large and triton.takes(x, weight, bias)
    return reason_against(x, weight, bias) is None


def reason_against(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Why the kernel of a CPU does not normalise this, in words; None where it does."""
    return eager.reason_against(x, weight, bias) or (None if x.numel() else "there is no token")


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, gelu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, mean, biased variance, and what y was multiplied by."""
    x, weight, bias = x.contiguous(), _in_one_piece(weight), _in_one_piece(bias)
    y, mean, var, inverse = made = _forward_like(x, weight, bias, eps, gelu)
    channels, half = x.shape[-1], int(x.dtype == torch.bfloat16)
    sizes = (x.numel() // channels, channels, native.address(weight), native.address(bias), eps, half, int(gelu))
    places = (y.data_ptr(), mean.data_ptr(), var.data_ptr(), inverse.data_ptr(), torch.get_num_threads())
    native.check(_library().srattn_batch_norm_forward(x.data_ptr(), *sizes, *places))
    return made


def _forward_like(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, gelu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), _of_channels(x), _of_channels(x), _of_channels(x)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    x, weight, dy = x.contiguous(), _in_one_piece(weight), dy.to(x.dtype).contiguous()
    dx, dweight, dbias = made = _backward_like(dy, x, weight, mean, inverse, gelu)
    channels, half = x.shape[-1], int(x.dtype == torch.bfloat16)
    sizes = (x.numel() // channels, channels, native.address(weight), mean.data_ptr(), inverse.data_ptr())
    places = (dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr(), torch.get_num_threads())
    native.check(_library().srattn_batch_norm_backward(dy.data_ptr(), x.data_ptr(), *sizes, half, int(gelu), *places))
    return made


def _backward_like(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), _of_channels(x), _of_channels(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, ctx.eps, ctx.gelu = inputs
    _, mean, var, inverse = output
    ctx.save_for_backward(x, weight, bias, mean, inverse)  # x as it came, for gradients of gradients
    ctx.mark_non_differentiable(mean, var, inverse)


def _gradients(ctx: Any, backward: Callable[..., Any], dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, w, b, mean, inverse = ctx.saved_tensors
    wants = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():  # gradients of gradients are torch's
        inputs = [t for t, wanted in zip((x, w, b), wants, strict=True) if wanted]
        y = plain(x, w, b, ctx.eps, ctx.gelu)[0]
        found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
        return *(next(found) if wanted else None for wanted in wants), None, None
    every = backward(dy, x, w, mean, inverse, ctx.gelu)
    return *(gradient if wanted else None for gradient, wanted in zip(every, wants, strict=True)), None, None


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        made = _forward(*inputs)
        _keep(ctx, inputs, made)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, _backward, *gradients)


def _forward_plain(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, gelu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, mean, var = plain(x, weight, bias, eps, gelu)
    return y.contiguous(), mean.clone(), var.clone(), (var + eps).rsqrt()


def _backward_plain(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide = x.float()
    unit, g = ((F.gelu(wide) if gelu else wide) - mean) * inverse, dy.float()
    dweight, dbias = ((g * t).flatten(0, -2).sum(0) for t in (unit, torch.ones_like(unit)))
    scale, count = inverse if weight is None else inverse * weight, x.numel() // x.shape[-1]
    dx = (g - dbias / count - unit * (dweight / count)) * scale
    dx = torch.ops.aten.gelu_backward(dx, wide) if gelu else dx
    return dx.to(x.dtype), dweight, dbias


_operator = register(
    "batch_norm", (_forward, _forward_like), (_backward, _backward_like), (_forward_plain, _backward_plain), _keep,
    _gradients,
)  # fmt: skip


def _in_one_piece(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _of_channels(x: Tensor) -> Tensor:
    """A number for each channel: the kernel writes float32, whatever type torch makes by default."""
    return torch.empty(x.shape[-1], dtype=torch.float32, device=x.device)


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = native.library()
    many = [c_void_p, c_long, c_long]
    library.srattn_batch_norm_forward.argtypes = [
        *many, c_void_p, c_void_p, c_float, c_int, c_int, *[c_void_p] * 4, c_int
    ]  # fmt: skip
    library.srattn_batch_norm_backward.argtypes = [
        c_void_p, *many, *[c_void_p] * 3, c_int, c_int, *[c_void_p] * 3, c_int
    ]  # fmt: skip
    return library

"""Batch normalisation of tokens while training, behind GELU where that stands before it.

`plain` is the definition. The compiled kernel (`native/kernels/batch_norm.h`) reads its input twice and writes its
result once, forward and backward alike; statistics are summed up in float64, and of GELU nothing is kept.
"""

import ctypes
import functools
from ctypes import c_float, c_int, c_long, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError
from srattn.ops.native import library as native


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
    """As `plain`, by the kernel; only where `reason_against` has none."""
    return _BatchNorm.apply(x, weight, bias, eps, gelu)


def reason_against(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Why the kernel does not normalise this, in words; None where it does."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return "a compiler reads the model"
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return f"the kernel is for float32 and bfloat16 on a CPU, not {x.dtype} on {x.device.type}"
    if any(t is not None and (t.dtype != torch.float32 or t.device != x.device) for t in (weight, bias)):
        return "weight and bias are not float32"
    level = torch._C._functorch.maybe_current_level()  # pyright: ignore[reportAttributeAccessIssue]
    if not x.numel() or level is not None:
        return "there is no token" if not x.numel() else "a transformation of torch.func reads the model"
    return None if _library() is not None else native.why_not() or "the compiled library has no batch norm"


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, gelu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        library = _library()
        assert library is not None
        x = x.contiguous()
        w, b = (None if t is None else t.detach().contiguous() for t in (weight, bias))
        y, channels = torch.empty_like(x), x.shape[-1]
        mean, var, inverse = (torch.empty(channels) for _ in range(3))
        half = int(x.dtype == torch.bfloat16)
        sizes = (x.numel() // channels, channels, _at(w), _at(b), eps, half, int(gelu))
        places = (y.data_ptr(), mean.data_ptr(), var.data_ptr(), inverse.data_ptr(), torch.get_num_threads())
        _check(library.srattn_batch_norm_forward(x.data_ptr(), *sizes, *places))
        ctx.save_for_backward(x, w, mean, inverse)
        ctx.gelu = gelu
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, w, mean, inverse = ctx.saved_tensors
        library = _library()
        assert library is not None
        dy = gradients[0].to(x.dtype).contiguous()
        dx, channels = torch.empty_like(x), x.shape[-1]
        dweight, dbias = torch.empty(channels), torch.empty(channels)
        sizes = (x.numel() // channels, channels, _at(w), mean.data_ptr(), inverse.data_ptr())
        places = (dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr(), torch.get_num_threads())
        half = int(x.dtype == torch.bfloat16)
        _check(library.srattn_batch_norm_backward(dy.data_ptr(), x.data_ptr(), *sizes, half, int(ctx.gelu), *places))
        wants = ctx.needs_input_grad
        return dx, dweight if wants[1] else None, dbias if wants[2] else None, None, None


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    if not native.available():
        return None
    library = native.library()
    many = [c_void_p, c_long, c_long]
    library.srattn_batch_norm_forward.argtypes = [
        *many, c_void_p, c_void_p, c_float, c_int, c_int, *[c_void_p] * 4, c_int
    ]  # fmt: skip
    library.srattn_batch_norm_backward.argtypes = [
        c_void_p, *many, *[c_void_p] * 3, c_int, c_int, *[c_void_p] * 3, c_int
    ]  # fmt: skip
    return library


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(failed: int) -> None:
    if failed:
        raise SrattnError("out of memory in the batch norm's kernel: give a smaller batch or image")

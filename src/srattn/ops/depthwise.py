"""A depthwise 3x3 convolution of tokens, and x + that convolution, with gradients.

`plain` is the definition. On a CPU the compiled kernel (`native/kernels/depthwise.h`) walks through the map once
forward and once backward; on a GPU that of `srattn.ops.triton.depthwise` does, which takes a GELU behind it as well.
"""

import ctypes
import functools
from collections.abc import Callable
from ctypes import c_int, c_long, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.ops import plan
from srattn.ops.native import eager
from srattn.ops.native import library as native
from srattn.ops.native.operator import register


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool = False, gelu: bool = False) -> Tensor:
    """The definition. x (B, H, W, C), weight (C, 1, 3, 3), bias (C); zeros stand around the map."""
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[-1])
    y = y.permute(0, 2, 3, 1)  # channels-last views, no copy
    y = x + y if residual else y
    return F.gelu(y) if gelu else y


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool = False, gelu: bool = False) -> Tensor:
    """As `plain`, by a kernel where one can be called, in the precision of x.

    Under autocast a float32 map is convolved in float32, of which only memory would be saved by less.
    """
    if x.device.type in plan.KERNEL_DEVICES:
        from srattn.ops.triton import depthwise as triton  # loads Triton

        if triton.takes(x, weight):
            return triton.depthwise(x, weight, bias, triton.Form(residual=residual, gelu=gelu))
    if reason_against(x, weight, bias) is not None:
        return plain(x, weight, bias, residual, gelu)
    run = _operator if torch.compiler.is_compiling() else _Depthwise.apply
    y = run(x, weight, bias, residual)
    return F.gelu(y) if gelu else y


def reason_against(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why the CPU's kernel does not convolve this, in words; None where it does."""
    if x.ndim != 4 or weight.shape != (x.shape[-1], 1, 3, 3):
        return f"the kernel is for 3x3 and maps of tokens, not {tuple(weight.shape)} and {tuple(x.shape)}"
    return eager.reason_against(x, weight, bias)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    held = None if bias is None else bias.contiguous()
    y = x.new_empty(x.shape)
    if x.numel():
        native.check(
            _library().srattn_depthwise_forward(
                x.data_ptr(), *x.shape, weight.data_ptr(), native.address(held), int(residual), _half(x), y.data_ptr(),
                torch.get_num_threads(),
            )
        )  # fmt: skip
    return y


def _forward_like(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    return x.new_empty(x.shape)


def _backward(dy: Tensor, x: Tensor, weight: Tensor, residual: bool, wants_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x (nothing unless wanted), weight and bias."""
    x, weight, dy = x.contiguous(), weight.contiguous(), dy.to(x.dtype).contiguous()
    dx, dweight, dbias = made = _backward_like(dy, x, weight, residual, wants_x)
    if not x.numel():
        return dx, dweight.zero_(), dbias.zero_()
    native.check(
        _library().srattn_depthwise_backward(
            dy.data_ptr(), x.data_ptr(), *x.shape, weight.data_ptr(), int(residual), _half(x),
            native.address(dx if wants_x else None), dweight.data_ptr(), dbias.data_ptr(), torch.get_num_threads(),
        )
    )  # fmt: skip
    return made


def _backward_like(
    dy: Tensor, x: Tensor, weight: Tensor, residual: bool, wants_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape if wants_x else 0), weight.new_empty(weight.shape), weight.new_empty(x.shape[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.residual = inputs
    ctx.save_for_backward(x, weight, bias)  # as they came, for gradients of gradients


def _gradients(ctx: Any, backward: Callable[..., Any], dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    wants = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():  # gradients of gradients are torch's
        inputs = [t for t, wanted in zip((x, weight, bias), wants, strict=True) if wanted]
        found = iter(torch.autograd.grad(plain(x, weight, bias, ctx.residual), inputs, dy, create_graph=True))
        return (*(next(found) if wanted else None for wanted in wants), None)
    every = backward(dy, x, weight, ctx.residual, wants[0])
    return (*(gradient if wanted else None for gradient, wanted in zip(every, wants, strict=True)), None)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = _forward(*inputs)
        _keep(ctx, inputs, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, _backward, *gradients)


def _forward_plain(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    w, b = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return plain(x, w, b, residual).contiguous()


def _backward_plain(
    dy: Tensor, x: Tensor, weight: Tensor, residual: bool, wants_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    ones, dy = [1, 1], dy.to(x.dtype)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        *(dy.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight.to(x.dtype), None, ones, ones, ones),
        *(False, [0, 0], x.shape[-1], [wants_x, True, False]),
    )
    dx = dx.permute(0, 2, 3, 1).contiguous() if wants_x else x.new_empty(0)
    return dx + dy if residual and wants_x else dx, dw.to(weight.dtype), dy.sum((0, 1, 2), dtype=weight.dtype)


_operator = register(
    "depthwise", (_forward, _forward_like), (_backward, _backward_like), (_forward_plain, _backward_plain), _keep,
    _gradients,
)  # fmt: skip


def _half(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = native.library()
    of_map = [c_long] * 4
    library.srattn_depthwise_forward.argtypes = [
        c_void_p, *of_map, c_void_p, c_void_p, c_int, c_int, c_void_p, c_int
    ]  # fmt: skip
    library.srattn_depthwise_backward.argtypes = [
        c_void_p, c_void_p, *of_map, c_void_p, c_int, c_int, *[c_void_p] * 3, c_int
    ]  # fmt: skip
    return library

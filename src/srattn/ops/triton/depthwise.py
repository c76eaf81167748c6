"""The operator `srattn::depthwise`: a depthwise 3x3 convolution of channels-last maps with what stands round it.

x (B, H, W, C) of any strides, weight (C, 1, 3, 3), bias (C), zeros around the map; `relu` puts a ReLU before it (the
linear variant of PVT v2), `residual` adds what is convolved (CMT, Twins, Shunted), `gelu` is the exact (erf) GELU
behind it. One pass, and saved for backward is x alone: before a GELU the convolution is computed again. fp16, bf16 and
fp32, sums in fp32; on a CPU, and in float64, the definition. Gradients are deterministic.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.ops import plan
from srattn.ops.tracing import is_exporting
from srattn.ops.triton import depthwise_kernels as kernels
from srattn.ops.triton.choices import MAX_PROGRAMS
from srattn.ops.triton.language import INTERPRETED, ceil_div, launch, runs_on
from srattn.ops.triton.strips import STRIPS, Strips, strips_for

WHILE_COMPILING = "open"
"""As in `attention`."""


class Form(NamedTuple):
    """What stands round the convolution."""

    relu: bool = False
    residual: bool = False
    gelu: bool = True


WITH_GELU = Form()


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form = WITH_GELU) -> Tensor:
    """In plain torch, in the arithmetic of x's type."""
    x = (F.relu(x) if form.relu else x).permute(0, 3, 1, 2)
    y = F.conv2d(x, weight.to(x.dtype), _to(bias, x), padding=1, groups=x.shape[1])
    y = x + y if form.residual else y
    return (F.gelu(y) if form.gelu else y).permute(0, 2, 3, 1)


def _to(t: Tensor | None, like: Tensor) -> Tensor | None:
    return None if t is None else t.to(like.dtype)


def definition_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, form: Form = WITH_GELU
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, in plain torch."""
    a = (F.relu(x) if form.relu else x).permute(0, 3, 1, 2)
    w, channels = weight.to(x.dtype), x.shape[-1]
    g = dy.permute(0, 3, 1, 2).to(x.dtype)
    if form.gelu:
        pre = F.conv2d(a, w, _to(bias, x), padding=1, groups=channels)
        g = torch.ops.aten.gelu_backward(g, a + pre if form.residual else pre)
    dx, dw, db = torch.ops.aten.convolution_backward(
        g, a, w, [channels], [1, 1], [1, 1], [1, 1], False, [0, 0], channels, [True, True, True]
    )
    dx = (dx + g if form.residual else dx).permute(0, 2, 3, 1)
    return (dx * (x > 0) if form.relu else dx), dw, db


def _kernels_take(*maps: Tensor) -> bool:
    """Floats of at most 32 bits on a GPU, images whose elements 32-bit offsets reach, and not too many of them."""
    x = maps[0]
    if not runs_on(x) or x.dtype == torch.float64 or x.numel() == 0:
        return False
    if x.shape[0] * ceil_div(int(x.shape[1]), min(strips.rows for strips in STRIPS)) > MAX_PROGRAMS:
        return False
    return all(sum((t.shape[i] + 1) * t.stride(i) for i in (1, 2, 3)) < 2**31 for t in maps)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, residual: bool, gelu: bool) -> Tensor:
    y, form = x.new_empty(x.shape), Form(relu, residual, gelu)
    if x.numel() == 0:  # which a convolution refuses
        return y
    if not _kernels_take(x):
        return y.copy_(definition(x, weight, bias, form))
    convolve(x, weight, bias, y, form)
    return y


def _forward_like(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, residual: bool, gelu: bool) -> Tensor:
    return x.new_empty(x.shape)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, residual: bool, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    form = Form(relu, residual, gelu)
    dx, dw, db = _backward_like(dy, x, weight, bias, *form)
    if x.numel() == 0:
        return dx, dw.zero_(), db.zero_()
    if not _kernels_take(x, dy):
        found = definition_gradients(dy, x, weight, bias, form)
        return dx.copy_(found[0]), dw.copy_(found[1]), db.copy_(found[2])
    g, sums = slopes(dy, x, weight, bias, form)
    convolve(g, weight, None, dx, Form(residual=residual, gelu=False), gate=x if relu else None, turned=True)
    return dx, dw.copy_(sums[:9].t().reshape(weight.shape)), db.copy_(sums[9])


def _backward_like(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, residual: bool, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    db = weight.new_empty((weight.shape[0],)) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), db


def _taps(weight: Tensor) -> Tensor:
    """(C, 1, 3, 3) to (9, C): the small tensor is laid out anew, so that channels are adjacent."""
    return weight.reshape(weight.shape[0], 9).t().contiguous()


def _steps(name: str, t: Tensor) -> dict[str, Any]:
    return dict(zip((f"{name}_{axis}" for axis in "bhwc"), t.stride(), strict=True))


def _walk(x: Tensor, s: Strips) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """The grid, and the sizes that place a program in it."""
    batch, height, width, channels = (int(n) for n in x.shape)
    bands = ceil_div(height, s.rows)
    grid = (ceil_div(channels, s.block_c), ceil_div(width, s.block_w), batch * bands)
    sizes = {"H": height, "W": width, "C": channels, "rows": s.rows, "bands": bands}
    return grid, {**sizes, "BLOCK_W": s.block_w, "BLOCK_C": s.block_c}


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    form: Form,
    *,
    gate: Tensor | None = None,
    turned: bool = False,
    strips: Strips | None = None,
) -> None:
    """Fills y (contiguous); see `depthwise_kernels.forward`."""
    s = strips_for("depthwise", x) if strips is None else strips
    grid, sizes = _walk(x, s)
    arguments = {
        "x_ptr": x,
        "w_ptr": _taps(weight),
        "b_ptr": x if bias is None else bias,
        "gate_ptr": x if gate is None else gate,
        "y_ptr": y,
        **_steps("x", x),
        **_steps("gate", x if gate is None else gate),
        **sizes,
        **_flags(form, bias),
        "GATE": gate is not None,
        "TURNED": turned,
    }
    launch(kernels.forward, grid, arguments, num_warps=s.warps, num_stages=s.stages)


def slopes(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, form: Form, strips: Strips | None = None
) -> tuple[Tensor, Tensor]:
    """The gradient before the GELU, shaped as x, and (10, C): the gradients of the nine taps and of the bias."""
    s = strips_for("depthwise_backward", x) if strips is None else strips
    grid, sizes = _walk(x, s)
    g = x.new_empty(x.shape) if form.gelu else dy
    parts = x.new_empty((grid[1] * grid[2], 10, x.shape[3]), dtype=torch.float32)
    arguments = {
        "x_ptr": x,
        "w_ptr": _taps(weight),
        "b_ptr": x if bias is None else bias,
        "dy_ptr": dy,
        "g_ptr": g,
        "parts_ptr": parts,
        **_steps("x", x),
        **_steps("dy", dy),
        **sizes,
        **_flags(form, bias),
        "strips": grid[1],
    }
    launch(kernels.gradients, grid, arguments, num_warps=s.warps, num_stages=s.stages)
    return g, parts.sum(0)


def _flags(form: Form, bias: Tensor | None) -> dict[str, bool]:
    return {"HAS_B": bias is not None, "GELU": form.gelu, "RELU": form.relu, "RESIDUAL": form.residual}


_FLAGS = (None, None, None)  # have no gradients


def _register(name: str, wrap: Callable[..., Any]) -> Any:
    forward = wrap(f"srattn::{name}", mutates_args=())(_forward)
    backward = wrap(f"srattn::{name}_backward", mutates_args=())(_backward)
    forward.register_fake(_forward_like)
    backward.register_fake(_backward_like)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, *ctx.form = inputs
        ctx.save_for_backward(x, weight, bias)

    def gradients(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of gradients are torch's
            inputs = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
            y = definition(x, weight, bias, Form(*ctx.form))
            found = iter(torch.autograd.grad(y, inputs, dy.to(y.dtype), create_graph=True))
            return *(next(found) if t is not None and t.requires_grad else None for t in (x, weight, bias)), *_FLAGS
        dx, dw, db = backward(dy, x, weight, bias, *ctx.form)
        return dx, dw, None if bias is None else db, *_FLAGS

    forward.register_autograd(gradients, setup_context=setup_context)
    return forward


OPERATORS = {"opaque": _register("depthwise", torch.library.custom_op)}
OPERATORS["open"] = OPERATORS["opaque"] if INTERPRETED else _register("depthwise_open", torch.library.triton_op)


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether a GPU is to compute it by kernel: not where torch's own operators are asked for (a forced path, a graph
    that is exported), and not on what is no map (B, H, W, C) of at most 32 bits a value."""
    if x.device.type not in plan.KERNEL_DEVICES or plan.forced() is not None or is_exporting():
        return False
    return x.ndim == 4 and weight.shape[1:] == (1, 3, 3) and x.itemsize <= 4 and plan.why_not_here() is None


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, form: Form = WITH_GELU) -> Tensor:
    """The convolution in this form, shaped as x and contiguous, in x's type; see the module's docstring."""
    run = OPERATORS[WHILE_COMPILING if torch.compiler.is_compiling() else "opaque"]
    return run(x, weight, bias, *form)

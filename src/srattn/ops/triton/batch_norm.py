"""The operator `srattn::batch_norm`: batch normalisation of tokens while training, behind GELU where one stands there.

x (..., C) contiguous, weight and bias (C); its definition is `srattn.ops.batch_norm.plain`. Forward reads x twice and
writes y once, backward reads x and dy twice and writes dx once; saved for backward are x and two numbers of a channel,
GELU (see `gelu_kernels`) is computed again. fp16, bf16 and fp32, sums in fp32, the same bits in every run; on a CPU,
and in float64, the definition.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.ops import plan
from srattn.ops.batch_norm import plain as definition
from srattn.ops.tracing import is_exporting
from srattn.ops.triton import batch_norm_kernels as kernels
from srattn.ops.triton.choices import multiprocessors
from srattn.ops.triton.language import INTERPRETED, ceil_div, launch, power_of_two, runs_on

WHILE_COMPILING = "open"
"""As in `attention`."""

PROGRAMS = 4
"""Walks that are to run at once on each multiprocessor."""
TILE = 2048
"""Values that a program holds at a time: 16 bytes of bf16 for each of its threads."""
WARPS, STAGES = 8, 3


class Walks(NamedTuple):
    """How the rows are shared out: tiles of `block_r` rows and `block_c` channels, `number` walks of `share` rows."""

    block_r: int
    block_c: int
    number: int
    share: int


def spread(rows: int, channels: int, programs: int) -> Walks:
    """The rule of thumb: about so many programs, none without a tile."""
    block_c = min(power_of_two(channels), 64)
    block_r = TILE // block_c
    tiles = ceil_div(rows, block_r)
    share = ceil_div(tiles, min(tiles, ceil_div(programs, ceil_div(channels, block_c)))) * block_r
    return Walks(block_r, block_c, ceil_div(rows, share), share)


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _tokens(x: Tensor) -> tuple[int, ...]:
    """The axes that are summed over."""
    return tuple(range(x.ndim - 1))


def definition_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, in plain torch, which can take gradients of them."""
    hat = (_wide(F.gelu(x) if gelu else x) - mean) * inverse
    g, axes = _wide(dy), _tokens(x)
    dw, db = (g * hat).sum(axes), g.sum(axes)
    dx = (weight * inverse * (g - (db + hat * dw) / (x.numel() // x.shape[-1]))).to(x.dtype)
    dx = torch.ops.aten.gelu_backward(dx, x) if gelu else dx
    return dx, dw.to(weight.dtype), db.to(weight.dtype)


def _kernels_take(x: Tensor) -> bool:
    return runs_on(x) and x.dtype != torch.float64 and x.numel() > 0


def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, mean, biased variance and 1 / sqrt(variance + eps)."""
    if _kernels_take(x):
        made = _forward_like(x, weight, bias, eps, gelu)
        normalise(x.contiguous(), weight.contiguous(), bias.contiguous(), eps, gelu, made)
        return made
    y, mean, var = definition(x, weight, bias, eps, gelu)
    return y.contiguous(), mean, var, (var + eps).rsqrt()


def _forward_like(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, var, inverse = (x.new_empty((x.shape[-1],), dtype=kind) for _ in range(3))
    return x.new_empty(x.shape), mean, var, inverse


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dy, x = dy.contiguous(), x.contiguous()
    if not _kernels_take(x):
        return definition_gradients(dy, x, weight, mean, inverse, gelu)
    made = _backward_like(dy, x, weight, mean, inverse, gelu)
    gradients(dy, x, weight.contiguous(), mean, inverse, gelu, made)
    return made


def _backward_like(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _sizes(x: Tensor) -> tuple[int, int]:
    """Rows and channels."""
    channels = int(x.shape[-1])
    return int(x.numel()) // channels, channels


def _walk(kernel: Any, w: Walks, x: Tensor, gelu: bool, tensors: dict[str, Tensor]) -> None:
    """Launches a kernel that walks over all of x."""
    rows, channels = _sizes(x)
    sizes = {"rows": rows, "C": channels, "share": w.share, "BLOCK_R": w.block_r, "BLOCK_C": w.block_c}
    flags = {"GELU": gelu, "VECTOR": min(channels & -channels, 8), "STAGES": STAGES}
    arguments = {"x_ptr": x, **tensors, **sizes, **flags}
    launch(kernel, (ceil_div(channels, w.block_c), w.number, 1), arguments, num_warps=WARPS, num_stages=STAGES)


def _merge(kernel: Any, w: Walks, parts: Tensor, arguments: dict[str, Any]) -> None:
    """Launches a kernel that puts together what the walks have found."""
    channels, block_c = int(parts.shape[2]), 16
    sizes = {"C": channels, "walks": w.number, "BLOCK_R": min(power_of_two(w.number), 128), "BLOCK_C": block_c}
    arguments = {"parts_ptr": parts, **arguments, **sizes}
    launch(kernel, (ceil_div(channels, block_c), 1, 1), arguments, num_warps=4, num_stages=1)


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool, made: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    """Fills what `_forward` returns; all are contiguous."""
    y, mean, var, inverse = made
    rows, channels = _sizes(x)
    w = spread(rows, channels, PROGRAMS * multiprocessors(x.device))
    parts = x.new_empty((w.number, 2, channels), dtype=torch.float32)
    found = {"mean_ptr": mean, "inverse_ptr": inverse}
    _walk(kernels.statistics, w, x, gelu, {"parts_ptr": parts})
    sizes = {"rows": rows, "share": w.share, "eps": eps}
    _merge(kernels.merged_statistics, w, parts, {**found, "var_ptr": var, **sizes})
    _walk(kernels.normalise, w, x, gelu, {**found, "w_ptr": weight, "b_ptr": bias, "y_ptr": y})


def gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    inverse: Tensor,
    gelu: bool,
    made: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fills what `_backward` returns; all are contiguous."""
    dx, dw, db = made
    rows, channels = _sizes(x)
    w = spread(rows, channels, PROGRAMS * multiprocessors(x.device))
    parts, sums = (x.new_empty(shape, dtype=torch.float32) for shape in ((w.number, 2, channels), (2, channels)))
    given = {"dy_ptr": dy, "mean_ptr": mean, "inverse_ptr": inverse}
    _walk(kernels.gradient_sums, w, x, gelu, {**given, "parts_ptr": parts})
    _merge(kernels.merged_gradients, w, parts, {"sums_ptr": sums, "dw_ptr": dw, "db_ptr": db})
    _walk(kernels.gradient, w, x, gelu, {**given, "w_ptr": weight, "sums_ptr": sums, "dx_ptr": dx})


def _register(name: str, wrap: Callable[..., Any]) -> Any:
    forward = wrap(f"srattn::{name}", mutates_args=())(_forward)
    backward = wrap(f"srattn::{name}_backward", mutates_args=())(_backward)
    forward.register_fake(_forward_like)
    backward.register_fake(_backward_like)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.eps, ctx.gelu = inputs
        _, mean, var, inverse = output
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, var, inverse)
        ctx.set_materialize_grads(False)

    def gradients_of(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 5
        x, weight, mean, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of gradients are torch's, for which statistics depend on x
            a, axes = _wide(F.gelu(x) if ctx.gelu else x), _tokens(x)
            mean, inverse = a.mean(axes), (a.var(axes, correction=0) + ctx.eps).rsqrt()
            return *definition_gradients(dy, x, weight, mean, inverse, ctx.gelu), None, None
        return *backward(dy, x, weight, mean, inverse, ctx.gelu), None, None

    forward.register_autograd(gradients_of, setup_context=setup_context)
    return forward


OPERATORS = {"opaque": _register("batch_norm", torch.library.custom_op)}
OPERATORS["open"] = OPERATORS["opaque"] if INTERPRETED else _register("batch_norm_open", torch.library.triton_op)


def takes(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether a GPU is to compute it by kernel: not where torch's own operators are asked for (a forced path, a graph
    that is exported), and only contiguous tokens of at most 32 bits a value, with both parameters."""
    if x.device.type not in plan.KERNEL_DEVICES or plan.forced() is not None or is_exporting():
        return False
    if weight is None or bias is None or x.ndim < 2 or x.itemsize > 4:
        return False
    return x.numel() > 0 and x.is_contiguous() and plan.why_not_here() is None


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, gelu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """y, shaped as x and contiguous, in x's type; mean and biased variance (C), fp32, without gradients."""
    run = OPERATORS[WHILE_COMPILING if torch.compiler.is_compiling() else "opaque"]
    y, mean, var, _ = run(x, weight, bias, eps, gelu)
    return y, mean, var

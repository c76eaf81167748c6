"""The operator `srattn::layer_norm`: a layer norm over the last axis, and the sum of two tensors before it.

s = x + add in x's type (or x itself), y = (s - mean) / sqrt(var + eps) * weight + bias, in the type that is asked for:
under autocast a residual stream of fp32 gives y in bf16, rounded once. Saved for backward are s, the weight and, for
each row, mean and 1 / sqrt(var + eps). The gradient that s receives from elsewhere is added in the pass that computes
the one through y. fp16, bf16 and fp32, sums in fp32; on a CPU, and in float64, the definition. Gradients are
deterministic.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError
from srattn.ops import plan
from srattn.ops.tracing import is_exporting
from srattn.ops.triton import layer_norm_kernels as kernels
from srattn.ops.triton.choices import multiprocessors
from srattn.ops.triton.language import INTERPRETED, ceil_div, launch, power_of_two, runs_on

WHILE_COMPILING = "open"
"""As in `attention`."""
MAX_CHANNELS = 1024
"""A row is never divided."""
FORWARD_TILE, BACKWARD_TILE = 2048, 1024
"""Values of a tile; a gradient holds five or six times as many in registers."""
PROGRAMS = 4
"""Of `gradients`, on each multiprocessor."""
STAGES = 3
"""Tiles that `gradients` has under way at once."""
WARPS = 4

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def definition(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, add: Tensor | None = None, dtype: torch.dtype | None = None
) -> Outputs:
    """y, s (x itself where nothing is added), and mean and rstd of each row, in plain torch."""
    s = x if add is None else (x + add).to(x.dtype)
    exact = _exact(x)
    mean, rstd = statistics(s, eps)
    y = F.layer_norm(s.to(exact), x.shape[-1:], weight.to(exact), bias.to(exact), eps)
    return y.to(x.dtype if dtype is None else dtype), s, mean, rstd


def statistics(s: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """mean and 1 / sqrt(var + eps) of each row."""
    s = s.to(_exact(s))
    mean = s.mean(-1, keepdim=True)
    return mean.squeeze(-1), ((s - mean).square().mean(-1) + eps).rsqrt()


def definition_gradients(
    dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of s, weight and bias, in plain torch and not yet rounded."""
    exact = _exact(s)
    dy, normed, rstd = dy.to(exact), (s.to(exact) - mean.unsqueeze(-1)) * rstd.unsqueeze(-1), rstd.unsqueeze(-1)
    g = dy * weight.to(exact)
    dx = (g - g.mean(-1, keepdim=True) - normed * (g * normed).mean(-1, keepdim=True)) * rstd
    dx = dx if ds is None else dx + ds
    return dx, (dy * normed).sum_to_size(weight.shape), dy.sum_to_size(weight.shape)


def _exact(x: Tensor) -> torch.dtype:
    """The type in which is computed."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _kernels_take(x: Tensor) -> bool:
    """Floats of at most 32 bits on a GPU, and rows that a tile can hold."""
    return runs_on(x) and x.dtype != torch.float64 and x.numel() > 0 and x.shape[-1] <= MAX_CHANNELS


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, eps: float, dtype: torch.dtype | None
) -> Outputs:
    made = _forward_like(x, weight, bias, add, eps, dtype)
    if _kernels_take(x):
        normalise(x, weight, bias, add, eps, made)
        return made
    y, s, mean, rstd = definition(x, weight, bias, eps, add, dtype)
    made[0].copy_(y)
    if add is not None:
        made[1].copy_(s)
    made[2].copy_(mean)
    made[3].copy_(rstd)
    return made


def _forward_like(
    x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, eps: float, dtype: torch.dtype | None
) -> Outputs:
    """y, s (empty where it is x: an operator returns none of its inputs), mean and rstd."""
    y = x.new_empty(x.shape, dtype=x.dtype if dtype is None else dtype)
    s = x.new_empty((0,) if add is None else x.shape)
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=_exact(x)) for _ in range(2))
    return y, s, mean, rstd


def _backward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    add_dtype: torch.dtype | None,
) -> Outputs:
    made = dx, da, dw, db = _backward_like(dy, ds, s, weight, mean, rstd, add_dtype)
    if _kernels_take(s):
        sums = slopes(dy, ds, s, weight, mean, rstd, dx, da if add_dtype is not None else None)
    else:
        found = definition_gradients(dy, ds, s, weight, mean, rstd)
        dx.copy_(found[0])
        if add_dtype is not None:
            da.copy_(found[0])
        sums = found[1:]
    dw.copy_(sums[0])
    db.copy_(sums[1])
    return made


def _backward_like(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    add_dtype: torch.dtype | None,
) -> Outputs:
    """dx; the same in `add_dtype`, empty where there is none; dweight and dbias in the weight's type."""
    da = s.new_empty((0,)) if add_dtype is None else s.new_empty(s.shape, dtype=add_dtype)
    return s.new_empty(s.shape), da, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _tiles(x: Tensor, values: int) -> tuple[int, dict[str, int]]:
    """How many tiles of about so many values there are, and the sizes that place a program."""
    channels = int(x.shape[-1])
    rows, block_c = int(x.numel()) // channels, power_of_two(channels)
    block_r = max(values // block_c, 1)
    return ceil_div(rows, block_r), {"rows": rows, "C": channels, "BLOCK_R": block_r, "BLOCK_C": block_c}


def normalise(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, eps: float, made: Outputs) -> None:
    """Fills y, s, mean and rstd; see `layer_norm_kernels.forward`."""
    y, s, mean, rstd = made
    tiles, sizes = _tiles(x, FORWARD_TILE)
    arguments = {
        "x_ptr": x.contiguous(),
        "add_ptr": x if add is None else add.contiguous(),
        "w_ptr": weight.contiguous(),
        "b_ptr": bias.contiguous(),
        "y_ptr": y,
        "s_ptr": y if add is None else s,
        "mean_ptr": mean,
        "rstd_ptr": rstd,
        "eps": eps,
        **sizes,
        "ADD": add is not None,
    }
    launch(kernels.forward, (tiles, 1, 1), arguments, num_warps=WARPS)


def slopes(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dx: Tensor,
    da: Tensor | None,
) -> Tensor:
    """Fills dx, and da with the same in another type; returns (2, C), the gradients of weight and bias, in fp32."""
    tiles, sizes = _tiles(s, BACKWARD_TILE)
    programs = min(tiles, PROGRAMS * multiprocessors(s.device))
    parts = s.new_empty((programs, 2, sizes["C"]), dtype=torch.float32)
    arguments = {
        "dy_ptr": dy.contiguous(),
        "ds_ptr": s if ds is None else ds.contiguous(),
        "s_ptr": s.contiguous(),
        "w_ptr": weight.contiguous(),
        "mean_ptr": mean,
        "rstd_ptr": rstd,
        "dx_ptr": dx,
        "da_ptr": dx if da is None else da,
        "parts_ptr": parts,
        **sizes,
        "programs": programs,
        "HAS_DS": ds is not None,
        "HAS_DA": da is not None,
        "STAGES": STAGES,
    }
    launch(kernels.gradients, (programs, 1, 1), arguments, num_warps=WARPS)
    return parts.sum(0)


def _register(name: str, wrap: Callable[..., Any]) -> Any:
    forward = wrap(f"srattn::{name}", mutates_args=())(_forward)
    backward = wrap(f"srattn::{name}_backward", mutates_args=())(_backward)
    forward.register_fake(_forward_like)
    backward.register_fake(_backward_like)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        x, weight, bias, add, ctx.eps, _ = inputs
        _, s, mean, rstd = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean, rstd, *([s] if add is None else []))
        ctx.bias_dtype, ctx.add_dtype = bias.dtype, None if add is None else add.dtype
        ctx.save_for_backward(x if add is None else s, weight, mean, rstd)

    def gradients(ctx: Any, dy: Tensor | None, ds: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        if dy is None:  # s alone was of use
            return ds, None, None, None if ds is None else ds.to(ctx.add_dtype), None, None
        s, weight, mean, rstd = ctx.saved_tensors
        another = None if ctx.add_dtype == s.dtype else ctx.add_dtype
        if torch.is_grad_enabled():  # gradients of gradients are torch's
            exact, dw, db = definition_gradients(dy, ds, s, weight, *statistics(s, ctx.eps))
            dx, da, dw = exact.to(s.dtype), None if another is None else exact.to(another), dw.to(weight.dtype)
        else:
            dx, da, dw, db = backward(dy, ds, s, weight, mean, rstd, another)
        if another is None:
            da = None if ctx.add_dtype is None else dx
        return dx, dw, db.to(ctx.bias_dtype), da, None, None

    forward.register_autograd(gradients, setup_context=setup_context)
    return forward


OPERATORS = {"opaque": _register("layer_norm", torch.library.custom_op)}
OPERATORS["open"] = OPERATORS["opaque"] if INTERPRETED else _register("layer_norm_open", torch.library.triton_op)


def takes(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether a GPU is to compute it by kernel: not where torch's own operators are asked for (a forced path, a graph
    that is exported), and not without parameters, of rows that are too long, of tokens that are not contiguous."""
    if x.device.type not in plan.KERNEL_DEVICES or plan.forced() is not None or is_exporting():
        return False
    if x.ndim == 0 or not x.is_floating_point() or x.itemsize > 4 or not x.is_contiguous():
        return False
    if x.numel() == 0 or x.shape[-1] > MAX_CHANNELS:
        return False
    given = all(t is not None and t.shape == x.shape[-1:] for t in (weight, bias))
    return given and plan.why_not_here() is None


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, add: Tensor | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """y and s, both shaped as x and contiguous (s is x itself where nothing is added); see the module's docstring.

    Args:
        dtype: of y; None for x's.

    Raises:
        SrattnError: `add` is not shaped as x.
    """
    if add is not None and add.shape != x.shape:
        raise SrattnError(f"what is added is shaped as x, {tuple(x.shape)}; got {tuple(add.shape)}")
    run = OPERATORS[WHILE_COMPILING if torch.compiler.is_compiling() else "opaque"]
    y, s, _, _ = run(x, weight, bias, add, eps, dtype)
    return y, x if add is None else s

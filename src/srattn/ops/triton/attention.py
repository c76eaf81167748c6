"""The operator `srattn::attend`: absorbed attention over few keys, read once and written once.

    out = [r +] sum_h softmax(n(x) K'_h^T + c_h + bias_h) V'_h + b

with n the identity or a layer norm without affine part (whose weight and bias the caller absorbs into K' and c).
Shapes: x (B, N, C) or (B, H, W, C) of any strides; K' `keys` (B, h, M, C); V' `values` (B, h, M, D); c `key_bias`
(B, h, M); `bias` (B, h, N, M); b `out_bias` (D); r `residual`, shaped as the output, or x itself with `add_x`. None of
them is copied, and expanded dimensions stay expanded. A query that no key is left to gets r + b.

fp16, bf16 and fp32 (in fp32 arithmetic, unless `torch.set_float32_matmul_precision` allows less); on a CPU, and in
float64, the definition below. Gradients are deterministic. Under `torch.compile` the kernels are visible to Inductor.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from srattn.ops.triton import attention_launch as launches
from srattn.ops.triton.choices import MAX_CHANNELS, MAX_HEADS, MAX_KEYS, MAX_PROGRAMS, norm_fits
from srattn.ops.triton.language import INTERPRETED, runs_on

Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
WHILE_COMPILING = "open"
"""Which registration `torch.compile` sees: "open", whose kernels Inductor launches itself, or "opaque"."""


def out_dtype(x: Tensor, keys: Tensor, residual: Tensor | None, add_x: bool) -> torch.dtype:
    """That of the keys, promoted by what is added."""
    other = x if add_x else residual
    return keys.dtype if other is None else torch.promote_types(keys.dtype, other.dtype)


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _normalised(x: Tensor, eps: float | None) -> tuple[Tensor, Tensor | None]:
    """n(x) and the factor 1 / sqrt(var + eps)."""
    if eps is None:
        return x, None
    x = x - x.mean(-1, keepdim=True)
    factor = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * factor, factor


def _scores(q: Tensor, keys: Tensor, key_bias: Tensor | None, bias: Tensor | None) -> Tensor:
    s = q.unsqueeze(1) @ keys.transpose(2, 3)
    if key_bias is not None:
        s = s + key_bias.unsqueeze(2)
    return s if bias is None else s + bias


def definition(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
    out_bias: Tensor | None = None,
    residual: Tensor | None = None,
    add_x: bool = False,
    norm_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The output and the logarithm to base 2 of the softmax' denominators (B, h, N), in plain torch."""
    dtype = out_dtype(x, keys, residual, add_x)
    x, keys, values = _exact(x), _exact(keys), _exact(values)
    q, _ = _normalised(x.flatten(1, -2), norm_eps)
    s = _scores(q, keys, key_bias, bias)
    if s.shape[-1] == 0:  # no keys at all
        lse = s.new_zeros(s.shape[:-1])
    else:
        lse = s.logsumexp(-1)
        lse = lse.masked_fill(torch.isneginf(lse), 0.0)
    out = ((s - lse.unsqueeze(-1)).exp() @ values).sum(1)
    if out_bias is not None:
        out = out + out_bias
    out = out.reshape(*x.shape[:-1], values.shape[-1])
    if add_x:
        out = out + x
    if residual is not None:
        out = out + residual
    return out.to(dtype), lse / math.log(2)


def definition_gradients(
    grad: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None,
    bias: Tensor | None,
    lse: Tensor,
    add_x: bool,
    norm_eps: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, keys, values, key_bias, bias and out_bias, in plain torch and in the arithmetic's type."""
    k, v, g = _exact(keys), _exact(values), _exact(grad)
    q, factor = _normalised(_exact(x), norm_eps)
    rows, xhat, g_rows = q.flatten(1, -2), q, g.flatten(1, -2).unsqueeze(1)
    p = (_scores(rows, k, key_bias, bias) - lse.unsqueeze(-1) * math.log(2)).exp()
    dp = g_rows @ v.transpose(2, 3)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True))
    dx = (ds @ k).sum(1).view(x.shape)
    if factor is not None:
        dx = dx - dx.mean(-1, keepdim=True) - xhat * (dx * xhat).mean(-1, keepdim=True)
        dx = dx * factor
    if add_x:
        dx = dx + g
    dk, dv = ds.transpose(2, 3) @ rows.unsqueeze(1), p.transpose(2, 3) @ g_rows
    return dx, dk, dv, ds.sum(2), ds, g.flatten(0, -2).sum(0)


def _kernels_take(keys: Tensor, values: Tensor, norm_eps: float | None, x: Tensor, other: Tensor | None) -> bool:
    """Sizes and types within the kernels' limits, on a GPU, and channels of a token that 32-bit offsets reach."""
    batch, heads, count, dim = (int(n) for n in keys.shape)
    if not runs_on(x) or not supported(count, dim, int(values.shape[3]), heads, keys.itemsize):
        return False
    if batch * heads > MAX_PROGRAMS:
        return False
    if norm_eps is not None and not norm_fits(dim, keys.itemsize):
        return False
    return all(t is None or t.shape[-1] * abs(t.stride(-1)) < 2**31 for t in (x, other))


def _forward(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None,
    bias: Tensor | None,
    out_bias: Tensor | None,
    residual: Tensor | None,
    add_x: bool,
    norm_eps: float | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    out, lse = _forward_like(x, keys, values, key_bias, bias, out_bias, residual, add_x, norm_eps, save)
    if not (_kernels_take(keys, values, norm_eps, x, residual) and out.numel() and keys.shape[2]):
        result, kept = definition(x, keys, values, key_bias, bias, out_bias, residual, add_x, norm_eps)
        out.copy_(result)
        if save:
            lse.copy_(kept)
        return out, lse
    launches.forward(x, keys, values, key_bias, bias, out_bias, residual, add_x, norm_eps, out, lse, save)
    return out, lse


def _forward_like(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None,
    bias: Tensor | None,
    out_bias: Tensor | None,
    residual: Tensor | None,
    add_x: bool,
    norm_eps: float | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    dtype = out_dtype(x, keys, residual, add_x)
    tokens = x.shape[1] if x.ndim == 3 else x.shape[1] * x.shape[2]
    exact = torch.float64 if keys.dtype == torch.float64 else torch.float32
    out = x.new_empty((*x.shape[:-1], values.shape[3]), dtype=dtype)
    return out, x.new_empty((x.shape[0], keys.shape[1], tokens) if save else (0,), dtype=exact)


def _backward(
    grad: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None,
    bias: Tensor | None,
    lse: Tensor,
    add_x: bool,
    norm_eps: float | None,
    wants_bias: bool,
    wants_out_bias: bool,
) -> Six:
    made = _backward_like(grad, x, keys, values, key_bias, bias, lse, add_x, norm_eps, wants_bias, wants_out_bias)
    if _kernels_take(keys, values, norm_eps, x, grad) and grad.numel() and keys.shape[2]:
        return launches.backward(grad, x, keys, values, key_bias, bias, lse, add_x, norm_eps, made)
    found = definition_gradients(grad, x, keys, values, key_bias, bias, lse, add_x, norm_eps)
    for to, value in zip(made, found, strict=True):
        if to.numel():
            to.copy_(value)
    return made


def _backward_like(
    grad: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None,
    bias: Tensor | None,
    lse: Tensor,
    add_x: bool,
    norm_eps: float | None,
    wants_bias: bool,
    wants_out_bias: bool,
) -> Six:
    """Gradients in the types of what they belong to; those that nobody wants are empty."""
    return (
        x.new_empty(x.shape),
        keys.new_empty(keys.shape),
        values.new_empty(values.shape),
        x.new_empty((0,)) if key_bias is None else key_bias.new_empty(key_bias.shape),
        bias.new_empty(bias.shape) if bias is not None and wants_bias else x.new_empty((0,)),
        grad.new_empty((values.shape[3] if wants_out_bias else 0,)),
    )


def _register(name: str, wrap: Callable[..., Any]) -> Any:
    forward = wrap(f"srattn::{name}", mutates_args=())(_forward)
    backward = wrap(f"srattn::{name}_backward", mutates_args=())(_backward)
    forward.register_fake(_forward_like)
    backward.register_fake(_backward_like)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, keys, values, key_bias, bias, out_bias, residual, ctx.add_x, ctx.norm_eps, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.has_residual, ctx.out_bias_dtype = residual is not None, None if out_bias is None else out_bias.dtype
        ctx.residual_dtype = None if residual is None else residual.dtype
        ctx.save_for_backward(x, keys, values, key_bias, bias, output[1])

    def gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 10
        x, keys, values, key_bias, bias, lse = ctx.saved_tensors
        wants_out_bias = ctx.out_bias_dtype is not None
        wants_bias = bias is not None and ctx.needs_input_grad[4]
        dx, dk, dv, dc, dbias, db = backward(
            grad, x, keys, values, key_bias, bias, lse, ctx.add_x, ctx.norm_eps, wants_bias, wants_out_bias
        )
        return (
            dx,
            dk,
            dv,
            None if key_bias is None else dc,
            dbias if wants_bias else None,
            db.to(ctx.out_bias_dtype) if wants_out_bias else None,
            grad.to(ctx.residual_dtype) if ctx.has_residual else None,
            None,
            None,
            None,
        )

    forward.register_autograd(gradients, setup_context=setup_context)
    return forward


# In eager mode the opaque one: it is called with less ado. Interpreted kernels cannot be traced.
OPERATORS = {"opaque": _register("attend", torch.library.custom_op)}
OPERATORS["open"] = OPERATORS["opaque"] if INTERPRETED else _register("attend_open", torch.library.triton_op)


def supported(keys: int, dim: int, out_dim: int, heads: int, itemsize: int) -> bool:
    """Whether the kernels take these sizes."""
    return keys <= MAX_KEYS and max(dim, out_dim) <= MAX_CHANNELS and heads <= MAX_HEADS and itemsize <= 4


def attend(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
    out_bias: Tensor | None = None,
    residual: Tensor | None = None,
    add_x: bool = False,
    norm_eps: float | None = None,
) -> Tensor:
    """out of the formula above, (*x.shape[:-1], D), in the type of the keys, promoted by that of what is added.

    Args:
        residual: r, shaped as the output; not together with `add_x`, which needs D = C.
        norm_eps: normalise x inside, with this epsilon; None for no norm.
    """
    given = (x, keys, values, key_bias, bias, out_bias, residual)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    run = OPERATORS[WHILE_COMPILING if torch.compiler.is_compiling() else "opaque"]
    return run(x, keys, values, key_bias, bias, out_bias, residual, add_x, norm_eps, save)[0]

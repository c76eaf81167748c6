"""Attention of N queries over M reduced keys, from the input of the query projection to the output of W^O.

Three paths, one result:

- `plain`: softmax(q k^T) v, the scores kept. The definition, beside the fast ones.
- `sdpa`: `scaled_dot_product_attention` between the two projections.
- `absorbed`: the query projection is absorbed into the keys and the output projection into the values. With
  q = x W_q + b_q and head h,

      q_h k_h^T = x K'_h^T + c_h,      K'_h = k_h W_q,h / sqrt(d),   c_h = k_h b_q,h / sqrt(d)
      output    = sum_h softmax(x K'_h^T + c_h) V'_h + b_o,          V'_h = v_h W_o,h

  Plain re-association: the same parameters, gradients flow, and neither q nor the heads' outputs are ever written.
  Two GEMMs around a softmax over groups of M columns (`grouped`); with one head it is itself an attention whose
  queries are x, and its scores need not be kept (`streamed`).

Shapes: x (B, N, C_in), k (B, M, D), v (B, M, D_v), the keys and values of all heads side by side; bias, of four
dimensions that broadcast to (B, heads, N, M), is added to the logits (minus infinity masks; no query may lose all its
keys). `attention` takes the path that is planned for the shapes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.ops.plan import Shape, cheapest, forced, known, streams, takes_kernel
from srattn.ops.tracing import is_exporting


class Projections(NamedTuple):
    """W^Q and W^O as torch stores them: q_weight (D, C_in), out_weight (C_out, D_v); biases may be absent."""

    q_weight: Tensor
    q_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None


class Norm(NamedTuple):
    """A layer norm over channels, as torch stores it."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float


class Add(NamedTuple):
    """What a block puts around its attention: `residual` (B, N, C_out) is added to the output.

    With a `norm`, x is what that norm makes of the residual, and a kernel may compute it from there itself.
    """

    residual: Tensor
    norm: Norm | None = None


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, h d) to (B, h, L, d)."""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, L, d) to (B, L, h d)."""
    return x.transpose(1, 2).flatten(2)


def _drop(weights: Tensor, probability: float) -> Tensor:
    return F.dropout(weights, probability) if probability else weights


def attention_weights(x: Tensor, k: Tensor, w: Projections, heads: int, scale: float, bias: Tensor | None) -> Tensor:
    """softmax(q k^T scale + bias), (B, heads, N, M)."""
    return weights_of(F.linear(x, w.q_weight, w.q_bias), k, heads, scale, bias)


def weights_of(q: Tensor, k: Tensor, heads: int, scale: float, bias: Tensor | None) -> Tensor:
    """As `attention_weights`, of queries (B, N, D) behind W^Q."""
    logits = split_heads(q, heads) @ split_heads(k, heads).transpose(2, 3) * scale
    if bias is not None:
        logits = logits + bias
    return logits.softmax(-1)


def heads_of(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor | None, dropout: float) -> Tensor:
    """What stands between W^Q and W^O, from queries (B, N, D) to the heads' outputs (B, N, D_v) side by side.

    For projections that are more than a weight and a bias; by `plain` where that is forced, else by `sdpa`.
    """
    if forced() == "plain":
        return merge_heads(_drop(weights_of(q, k, heads, scale, bias), dropout) @ split_heads(v, heads))
    bias = None if bias is None else bias.to(q.dtype)
    q, k, v = (split_heads(t, heads) for t in (q, k, v))
    return merge_heads(F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale))


def plain(
    x: Tensor, k: Tensor, v: Tensor, w: Projections, heads: int, scale: float, bias: Tensor | None, dropout: float
) -> Tensor:
    """Returns (B, N, C_out); `dropout` is the probability with which an attention weight is dropped."""
    weights = _drop(attention_weights(x, k, w, heads, scale, bias), dropout)
    return F.linear(merge_heads(weights @ split_heads(v, heads)), w.out_weight, w.out_bias)


def sdpa(
    x: Tensor, k: Tensor, v: Tensor, w: Projections, heads: int, scale: float, bias: Tensor | None, dropout: float
) -> Tensor:
    """As `plain`, by `torch.nn.functional.scaled_dot_product_attention`."""
    q = split_heads(F.linear(x, w.q_weight, w.q_bias), heads)
    bias = None if bias is None else bias.to(q.dtype)
    out = F.scaled_dot_product_attention(q, split_heads(k, heads), split_heads(v, heads), bias, dropout, scale=scale)
    return F.linear(merge_heads(out), w.out_weight, w.out_bias)


def _absorb(k: Tensor, v: Tensor, w: Projections, heads: int, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """K' (B, h, M, C_in), V' (B, h, M, C_out) and, where queries have a bias, c (B, h, 1, M)."""
    k = k.unflatten(-1, (heads, k.shape[-1] // heads)) * scale  # (B, M, h, d)
    v = v.unflatten(-1, (heads, v.shape[-1] // heads))
    w_q, w_out = w.q_weight.unflatten(0, (heads, -1)), w.out_weight.unflatten(1, (heads, -1))
    keys = torch.einsum("bmhd,hdc->bhmc", k, w_q)
    values = torch.einsum("bmhd,chd->bhmc", v, w_out)
    if w.q_bias is None:
        return keys, values, None
    return keys, values, torch.einsum("bmhd,hd->bhm", k, w.q_bias.unflatten(0, (heads, -1))).unsqueeze(2)


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def absorbed_grouped(
    x: Tensor, k: Tensor, v: Tensor, w: Projections, heads: int, scale: float, bias: Tensor | None, dropout: float
) -> Tensor:
    """As `plain`: two GEMMs around a softmax over groups of M columns; keeps N x (h M) scores."""
    keys, values, key_bias = _absorb(k, v, w, heads, scale)
    if bias is not None and bias.shape[2] == 1:  # the same for every query: it goes into the GEMM
        key_bias, bias = _add(key_bias, bias), None
    keys = keys.flatten(1, 2).transpose(1, 2)  # (B, C_in, h M)
    if key_bias is None:
        scores = x @ keys
    else:
        scores = torch.baddbmm(key_bias.expand(x.shape[0], heads, 1, -1).flatten(1).unsqueeze(1), x, keys)
    scores = scores.unflatten(-1, (heads, k.shape[1]))  # (B, N, h, M)
    if bias is not None:
        scores = scores + bias.transpose(1, 2)
    weights = _drop(scores.softmax(-1), dropout).flatten(2).to(values.dtype)
    if w.out_bias is None:
        return weights @ values.flatten(1, 2)
    return torch.baddbmm(w.out_bias, weights, values.flatten(1, 2))


def absorbed_streamed(
    x: Tensor, k: Tensor, v: Tensor, w: Projections, heads: int, scale: float, bias: Tensor | None, dropout: float
) -> Tensor:
    """As `plain`, for one head: an attention whose queries are x itself; keeps no scores."""
    keys, values, key_bias = _absorb(k, v, w, heads, scale)
    bias = _add(key_bias, bias)
    x, bias = x.unsqueeze(1).to(keys.dtype), None if bias is None else bias.to(keys.dtype)
    out = F.scaled_dot_product_attention(x, keys, values, bias, dropout, scale=1.0).squeeze(1)
    return out if w.out_bias is None else out + w.out_bias.to(out.dtype)


def absorbed_kernel(
    x: Tensor, k: Tensor, v: Tensor, w: Projections, heads: int, scale: float, bias: Tensor | None, add: Add | None
) -> Tensor:
    """As `plain`, and what `add` asks for, by one kernel on a GPU; keeps no scores."""
    from srattn.ops.triton.attention import attend  # loads Triton
    from srattn.ops.triton.choices import norm_fits

    keys, values, key_bias = _absorb(k, v, w, heads, scale)
    if add is not None and add.norm is not None and not norm_fits(x.shape[2], keys.itemsize):
        add = Add(add.residual)
    if add is not None and add.norm is not None:  # the norm's affine part goes into the keys as well
        weight, shift = add.norm.weight, add.norm.bias
        if shift is not None:
            key_bias = _add(key_bias, (keys @ shift.to(keys.dtype)).unsqueeze(2))
        keys = keys if weight is None else keys * weight.to(keys.dtype)
    if bias is not None and bias.shape[2] == 1:
        key_bias, bias = _add(key_bias, bias), None
    each = (x.shape[0], heads, -1)
    return attend(
        x if add is None or add.norm is None else add.residual,
        keys,
        values,
        None if key_bias is None else key_bias.squeeze(2).expand(*each),
        None if bias is None else bias.expand(*each, -1),
        w.out_bias,
        None if add is None or add.norm is not None else add.residual,
        add is not None and add.norm is not None,
        None if add is None or add.norm is None else add.norm.eps,
    )


def shape_of(x: Tensor, k: Tensor, w: Projections, heads: int, bias: Tensor | None, dropout: float = 0.0) -> Shape:
    """What the choice of a path depends on, read off the tensors."""
    # A fused attention has no gradient for its bias, and under absorption the query bias becomes one.
    wanted = torch.is_grad_enabled() and (k.requires_grad or (bias is not None and bias.requires_grad))
    keeps_scores = wanted and (w.q_bias is not None or bias is not None)
    kernel = dropout == 0.0 and not is_exporting()
    sizes = (x.shape[0], x.shape[1], k.shape[1], x.shape[2], heads, k.shape[2])
    return Shape(*sizes, k.itemsize, k.device.type, keeps_scores, kernel, wanted)


def attention(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    w: Projections,
    heads: int,
    scale: float,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    add: Add | None = None,
) -> Tensor:
    """As `plain`, by the path that `srattn.ops.plan` chooses for these shapes; and adds what `add` asks for."""
    shape = shape_of(x, k, w, heads, bias, dropout)
    # Symbolic sizes while exporting: the path that is right at every size.
    path = cheapest(shape) if known(shape.batch, shape.queries, shape.keys) else "sdpa"
    if path == "absorbed" and takes_kernel(shape):
        return absorbed_kernel(x, k, v, w, heads, scale, bias, add)
    if path == "plain":
        run = plain
    elif path == "sdpa":
        run = sdpa
    else:
        run = absorbed_streamed if streams(path, shape) else absorbed_grouped
    out = run(x, k, v, w, heads, scale, bias, dropout)
    return out if add is None else add.residual + out

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

Shapes: x (B, N, C_in), k (B, M, D), v (B, M, D_v), the keys and values of all heads side by side; key_bias (B, M)
is added to the logits of every query and head (minus infinity masks; no query may lose all its keys).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Projections(NamedTuple):
    """W^Q and W^O as torch stores them: q_weight (D, C_in), out_weight (C_out, D_v); biases may be absent."""

    q_weight: Tensor
    q_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, h d) to (B, h, L, d)."""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, L, d) to (B, L, h d)."""
    return x.transpose(1, 2).flatten(2)


def _drop(weights: Tensor, probability: float) -> Tensor:
    return F.dropout(weights, probability) if probability else weights


def attention_weights(
    x: Tensor, k: Tensor, w: Projections, heads: int, scale: float, key_bias: Tensor | None
) -> Tensor:
    """softmax(q k^T scale + key_bias), (B, heads, N, M)."""
    q = split_heads(F.linear(x, w.q_weight, w.q_bias), heads)
    logits = q @ split_heads(k, heads).transpose(2, 3) * scale
    if key_bias is not None:
        logits = logits + key_bias[:, None, None, :]
    return logits.softmax(-1)


def plain(
    x: Tensor, k: Tensor, v: Tensor, w: Projections, heads: int, scale: float, key_bias: Tensor | None, dropout: float
) -> Tensor:
    """Returns (B, N, C_out); `dropout` is the probability with which an attention weight is dropped."""
    weights = _drop(attention_weights(x, k, w, heads, scale, key_bias), dropout)
    return F.linear(merge_heads(weights @ split_heads(v, heads)), w.out_weight, w.out_bias)


def sdpa(
    x: Tensor, k: Tensor, v: Tensor, w: Projections, heads: int, scale: float, key_bias: Tensor | None, dropout: float
) -> Tensor:
    """As `plain`, by `torch.nn.functional.scaled_dot_product_attention`."""
    q = split_heads(F.linear(x, w.q_weight, w.q_bias), heads)
    bias = None if key_bias is None else key_bias[:, None, None, :].to(q.dtype)
    out = F.scaled_dot_product_attention(q, split_heads(k, heads), split_heads(v, heads), bias, dropout, scale=scale)
    return F.linear(merge_heads(out), w.out_weight, w.out_bias)


def _absorb(
    k: Tensor, v: Tensor, w: Projections, heads: int, scale: float, key_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """K' (B, h, M, C_in), V' (B, h, M, C_out) and the logit bias (B, h, M) or None."""
    k = k.unflatten(-1, (heads, -1)) * scale  # (B, M, h, d)
    keys = torch.einsum("bmhd,hdc->bhmc", k, w.q_weight.unflatten(0, (heads, -1)))
    values = torch.einsum("bmhd,chd->bhmc", v.unflatten(-1, (heads, -1)), w.out_weight.unflatten(1, (heads, -1)))
    bias = None if w.q_bias is None else torch.einsum("bmhd,hd->bhm", k, w.q_bias.unflatten(0, (heads, -1)))
    if key_bias is not None:
        bias = key_bias.unsqueeze(1).expand(-1, heads, -1) if bias is None else bias + key_bias.unsqueeze(1)
    return keys, values, bias


def absorbed_grouped(
    x: Tensor, k: Tensor, v: Tensor, w: Projections, heads: int, scale: float, key_bias: Tensor | None, dropout: float
) -> Tensor:
    """As `plain`: two GEMMs around a softmax over groups of M columns; keeps N x (h M) scores."""
    keys, values, bias = _absorb(k, v, w, heads, scale, key_bias)
    keys = keys.flatten(1, 2).transpose(1, 2)  # (B, C_in, h M)
    scores = x @ keys if bias is None else torch.baddbmm(bias.flatten(1).unsqueeze(1), x, keys)
    weights = _drop(scores.unflatten(-1, (heads, k.shape[1])).softmax(-1), dropout).flatten(2).to(values.dtype)
    if w.out_bias is None:
        return weights @ values.flatten(1, 2)
    return torch.baddbmm(w.out_bias, weights, values.flatten(1, 2))


def absorbed_streamed(
    x: Tensor, k: Tensor, v: Tensor, w: Projections, heads: int, scale: float, key_bias: Tensor | None, dropout: float
) -> Tensor:
    """As `plain`, for one head: an attention whose queries are x itself; keeps no scores."""
    keys, values, bias = _absorb(k, v, w, heads, scale, key_bias)
    bias = None if bias is None else bias.unsqueeze(2).to(keys.dtype)  # (B, 1, 1, M)
    out = F.scaled_dot_product_attention(x.unsqueeze(1).to(keys.dtype), keys, values, bias, dropout, scale=1.0).squeeze(
        1
    )
    return out if w.out_bias is None else out + w.out_bias.to(out.dtype)

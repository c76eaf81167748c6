"""Weights of a linear map that take in what stands before or behind it, so that the graph has one step less.

Everything here is exact algebra; the tests compare it in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Affine(NamedTuple):
    """What a norm does after it has normalised: times `weight`, plus `bias`, both (C,)."""

    weight: Tensor
    bias: Tensor


class Linear(NamedTuple):
    """weight (out, in) and bias (out,)."""

    weight: Tensor
    bias: Tensor


def affine_of(norm: nn.LayerNorm) -> Affine:
    """The affine part of a layer norm; ones and zeros where it has none."""
    weight = torch.ones(norm.normalized_shape) if norm.weight is None else norm.weight.detach()
    return Affine(weight, torch.zeros_like(weight) if norm.bias is None else norm.bias.detach())


def behind(linear: nn.Linear, affine: Affine | None) -> Linear:
    """The linear map as a function of what is before the affine part."""
    weight = linear.weight.detach()
    bias = weight.new_zeros(weight.shape[0]) if linear.bias is None else linear.bias.detach()
    if affine is None:
        return Linear(weight, bias)
    return Linear(weight * affine.weight, bias + weight @ affine.bias)


def behind_blocks(linear: nn.Linear, affine: Affine | None, blocks: int) -> Linear:
    """The same for a map that reads `blocks` tokens end to end, each of which went through the affine part."""
    if affine is None:
        return behind(linear, None)
    return behind(linear, Affine(affine.weight.repeat(blocks), affine.bias.repeat(blocks)))


def centred(linear: Linear) -> Linear:
    """The map whose output lacks its mean over the channels."""
    return Linear(linear.weight - linear.weight.mean(0), linear.bias - linear.bias.mean())


class Absorbed(NamedTuple):
    """Keys and values of an absorbed attention as maps of the reduced tokens z (B, M, C_z).

    With x the queries' input before any projection, the logits of head h are x (z keys_h^T)^T + z shift_h, and the
    output is the sum over heads of softmax(...) (z values_h^T + bias_h).
    """

    keys: Tensor
    """(h C, C_z)."""
    shift: Tensor
    """(h, C_z)."""
    values: Tensor
    """(h C_out, C_z)."""
    bias: Tensor
    """(h C_out,): an equal part of the output's bias for each head, whose weights sum to one."""


def absorb(q: Linear, k: Linear, v: Linear, out: Linear, heads: int, scale: float) -> Absorbed:
    """W^Q goes into the keys and W^O into the values.

    The bias of k adds the same to all logits of a query, which a softmax does not see; that of v passes the weights,
    whose sum is one, and joins the output's bias, which moves before the weights for the same reason.
    """
    w_q, w_k = q.weight.unflatten(0, (heads, -1)), k.weight.unflatten(0, (heads, -1))  # (h, d, C)
    w_v, w_out = v.weight.unflatten(0, (heads, -1)), out.weight.unflatten(1, (heads, -1))  # (h, d, C), (C, h, d)
    keys = torch.einsum("hdc,hdz->hcz", w_q, w_k) * scale
    shift = torch.einsum("hd,hdz->hz", q.bias.unflatten(0, (heads, -1)), w_k) * scale
    values = torch.einsum("chd,hdz->hcz", w_out, w_v)
    bias = ((out.bias + out.weight @ v.bias) / heads).repeat(heads)
    return Absorbed(keys.flatten(0, 1), shift, values.flatten(0, 1), bias)


def absorbed_macs(queries: int, keys: int, dim: int, heads: int) -> int:
    """Multiply-adds of an absorbed attention from x and z to the output, the maps of `absorb` made beforehand."""
    return 2 * keys * dim * heads * dim + 2 * queries * heads * keys * dim


def split_macs(queries: int, keys: int, dim: int, width: int) -> int:
    """The same with all four projections; `width` is of all heads side by side."""
    return 2 * queries * dim * width + 2 * keys * dim * width + 2 * queries * keys * width

"""The float64 truth that every fast path is measured against, and the tolerance that follows from it."""

from __future__ import annotations

import torch
from torch import Tensor

from srattn import SpatialReductionAttention
from srattn.ops.reference import spatial_reduction_attention

DOUBLE = torch.float64


def definition(
    attn: SpatialReductionAttention,
    x: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    params: dict[str, Tensor] | None = None,
) -> Tensor:
    """The published formula in float64 with the module's own parameters."""
    key = x if key is None else key
    value = key if value is None else value
    params = dict(attn.named_parameters()) if params is None else params
    return spatial_reduction_attention(
        x.to(DOUBLE),
        key.to(DOUBLE),
        value.to(DOUBLE),
        {name: p.to(DOUBLE) for name, p in params.items()},
        num_heads=attn.num_heads,
        ratio=attn.reduction.ratio,
        cells=attn.reduction.cells,
        edge=attn.reduction.edge,
        scale=attn.scale,
        key_mask=key_mask,
        key_bias=None if key_bias is None else key_bias.to(DOUBLE),
    )


def error(result: Tensor, truth: Tensor) -> float:
    """Largest absolute distance from the truth."""
    return (result.to(DOUBLE) - truth).abs().max().item() if truth.numel() else 0.0


def spread_out(attn: torch.nn.Module) -> torch.nn.Module:
    """Gives every parameter a value of its own: zeros and ones of a fresh module would hide a wrong bias or norm."""
    with torch.no_grad():
        for p in attn.parameters():
            p.add_(torch.randn_like(p) * (0.3 / max(p.shape[-1] / 8, 1) ** 0.5))
    return attn

"""Muon (Jordan, 2024): steps along orthogonal matrices, for many matrices in few products.

`torch.optim.Muon` takes one matrix at a time and always computes in bfloat16: hundreds of small launches a step on a
GPU, and emulated products on a processor without instructions for it.
"""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.engine.precision import has_bf16

MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7


def muon_step(
    matrices: list[Tensor], grads: list[Tensor], buffers: list[Tensor], rate: float | Tensor, weight_decay: float
) -> None:
    """Moves the matrices, and the running means of their gradients in `buffers` (Nesterov's, as torch.optim.Muon).

    The length of a step is that of AdamW's typical one (arXiv:2502.16982, equation 4): 0.2 root mean square. `rate` may
    be a tensor of one number on the device.
    """
    if not matrices:
        return
    torch._foreach_lerp_(buffers, grads, 1 - MOMENTUM)
    directions = orthogonal(torch._foreach_lerp(grads, buffers, MOMENTUM))
    torch._foreach_mul_(directions, [-0.2 * math.sqrt(max(matrix.shape)) for matrix in matrices])
    torch._foreach_mul_(directions, rate)
    torch._foreach_mul_(matrices, 1 - rate * weight_decay)
    torch._foreach_add_(matrices, directions)


def orthogonal(matrices: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """U S V^T for each matrix U D V^T, with singular values S of about 0.7 to 1.2, by Newton-Schulz iterations.

    Args:
        dtype: of the products; bfloat16 by default where the device has units for it, else that of the matrices.
    """
    found: list[Tensor] = list(matrices)
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, matrix in enumerate(matrices):
        alike.setdefault(tuple(sorted(matrix.shape)), []).append(place)
    for places in alike.values():
        wide = torch.stack([_wide(matrices[place]) for place in places])
        if wide.numel():
            own = torch.bfloat16 if has_bf16(wide.device) else wide.dtype
            wide = _newton_schulz(wide.to(dtype or own)).to(wide.dtype)
        for place, one in zip(places, wide, strict=True):
            found[place] = one if one.shape == matrices[place].shape else one.mT
    return found


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def _newton_schulz(x: Tensor) -> Tensor:
    """Of a stack (n, a, b), a <= b: an odd polynomial, again and again, that drives singular values towards one."""
    a, b, c = _QUINTIC
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x

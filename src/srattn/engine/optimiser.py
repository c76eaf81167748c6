"""AdamW with the usual exemptions from decay, and the learning rate of every step."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW


def make_optimiser(model: nn.Module, lr: float, weight_decay: float) -> AdamW:
    """AdamW (Loshchilov and Hutter, 2019) in two groups: matrices decay; vectors and what the model exempts do not."""
    exempt: set[str] = set(getattr(model, "no_weight_decay", set)())
    decay, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name in exempt else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=lr, fused=True)


def learning_rate(step: int, total: int, warmup: int, highest: float, lowest: float) -> float:
    """The rate of `step` (from 0): linear over `warmup` steps, then half a cosine from `highest` to `lowest`."""
    if step < warmup:
        return highest * (step + 1) / warmup
    done = (step - warmup) / max(1, total - 1 - warmup)
    return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

"""Losses that look at each pixel by itself: cross-entropy and focal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError
from srattn.tasks.losses.common import VOID, matched


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = VOID,
) -> Tensor:
    """The mean over valid pixels of the negative log likelihood.

    Args:
        weight: (K,), of the classes; the mean is then weighted, as `torch.nn.functional.cross_entropy` has it.
        label_smoothing: part of each target that is spread over all classes.
    """
    logits = matched(logits, target)
    valid = target != ignore_index
    weight = None if weight is None else weight.to(logits)
    options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    total = F.cross_entropy(logits, target, reduction="none", **options).sum()
    if weight is None:
        return total / valid.sum().clamp(min=1)
    share = torch.where(valid, weight[torch.where(valid, target, 0)], 0).sum()
    return total / torch.where(share > 0, share, 1)


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = VOID,
) -> Tensor:
    """The mean over valid pixels of -alpha (1 - p)^gamma log p (arXiv:1708.02002, equation 5), p by softmax.

    Args:
        gamma: at least 0; 0 is the cross-entropy.
        weight: (K,), the paper's alpha of each class; 1 without.
    """
    if not gamma >= 0:
        raise SrattnError(f"gamma must be at least 0, got {gamma}")
    logits = matched(logits, target)
    valid = target != ignore_index
    own = torch.where(valid, target, 0)
    log = logits.log_softmax(1).gather(1, own.unsqueeze(1)).squeeze(1)  # (B, H, W)
    miss = (1 - log.exp()).clamp(min=torch.finfo(log.dtype).tiny)  # at 0 the slope of its power below 1 is infinite
    values = -(miss**gamma) * log
    if weight is not None:
        values = values * weight.to(logits)[own]
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)

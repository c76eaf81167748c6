"""What every loss does first: one grid, one precision, and which classes are there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError

VOID = 255
"""The class of pixels that count nowhere, as in PASCAL VOC and in Cityscapes' training labels."""


def two_logits(logits: Tensor) -> Tensor:
    """(B, 1, h, w), the logit of a foreground, to (B, 2, h, w) with the same answer; others as they are.

    The softmax of (0, x) is the sigmoid of x.
    """
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def matched(logits: Tensor, target: Tensor) -> Tensor:
    """Logits (B, K, h, w) of at least two classes on the target's grid (B, K, H, W), in float32 or float64.

    Raises:
        SrattnError: shapes that do not fit, or a target that is not int64.
    """
    if logits.ndim != 4 or target.ndim != 3 or len(logits) != len(target):
        raise SrattnError(
            f"a segmentation loss takes logits (B, K, h, w) and a target (B, H, W), got {tuple(logits.shape)} and "
            f"{tuple(target.shape)}"
        )
    if target.dtype != torch.int64:
        raise SrattnError(f"the target holds class numbers: int64, got {target.dtype}; use target.long()")
    logits = two_logits(logits if logits.dtype == torch.float64 else logits.float())
    if logits.shape[2:] == target.shape[1:]:
        return logits
    return F.interpolate(logits, size=tuple(target.shape[1:]), mode="bilinear", align_corners=False)


def present_classes(target: Tensor, valid: Tensor, classes: int) -> list[int]:
    """The classes that `target` (B, H, W) holds where `valid`; waits for the device."""
    counts = torch.bincount(target[valid], minlength=classes)
    return counts[:classes].nonzero().flatten().tolist()

"""The loss of the polyp models: two terms for one foreground, with more weight around its contour."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError
from srattn.tasks.losses.common import VOID, matched


def structure(
    logits: Tensor,
    target: Tensor,
    *,
    window: int = 31,
    strength: float = 5.0,
    ignore_index: int = VOID,
) -> Tensor:
    """PraNet's loss (arXiv:2006.11392): weighted IoU and weighted binary cross-entropy, mean over images.

    A pixel weighs 1 + strength |mean of the mask in its window - mask|; what is void or beyond the frame counts there
    as background. The published code passes `reduce='none'`, which takes the mean before the weights and so cancels
    them in the cross-entropy; here they count, as the paper says.

    Args:
        logits: (B, 2, h, w), background and foreground, or (B, 1, h, w), the foreground's alone.
        target: (B, H, W), 1 in the foreground.
        window: odd, in pixels of the target.
    """
    if window < 1 or window % 2 == 0:
        raise SrattnError(f"window must be an odd number of pixels, got {window}")
    logits = matched(logits, target)
    if logits.shape[1] != 2:
        raise SrattnError(
            f"the structure loss knows one foreground: 1 or 2 logits a pixel, got {logits.shape[1]}; use ce or dice"
        )
    logit = logits[:, 1] - logits[:, 0]  # (B, H, W)
    valid = target != ignore_index
    mask = (valid & (target == 1)).to(logit.dtype)
    around = F.avg_pool2d(mask.unsqueeze(1), window, stride=1, padding=window // 2).squeeze(1)
    weight = (1 + strength * (around - mask).abs()) * valid
    entropy = F.binary_cross_entropy_with_logits(logit, mask, reduction="none")
    entropy = (weight * entropy).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)
    share = logit.sigmoid()
    both = (weight * share * mask).sum((1, 2))
    either = (weight * (share + mask)).sum((1, 2)) - both
    losses = entropy + 1 - (both + 1) / (either + 1)  # 0 where all is void
    return losses.sum() / valid.flatten(1).any(1).sum().clamp(min=1)

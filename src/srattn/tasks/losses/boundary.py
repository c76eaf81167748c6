"""A loss that weighs mistakes by how far they lie from the true contour."""

from __future__ import annotations

import torch
from torch import Tensor

from srattn.tasks.losses.common import VOID, matched, present_classes
from srattn.tasks.losses.distance import FAR, squared_distance


def boundary(logits: Tensor, target: Tensor, *, ignore_index: int = VOID) -> Tensor:
    """The boundary loss (arXiv:1812.07032): the softmax's shares on the level sets of the true classes.

    The mean over valid pixels, and over the classes that the target of the batch holds, of phi p, where phi is the
    signed distance in pixels to the contour of the class in that image: negative inside, 0 throughout an image without
    such a contour. Contours run between pixels, half a pixel from the centres on either side. Of two classes this is
    the paper's foreground term up to a constant.

    It can be negative, and by itself it is flat: add it to a loss of regions, as in "dice+0.01*boundary". It takes one
    distance transform a class, and waits for the device to learn which classes there are.
    """
    shares = matched(logits, target).softmax(1).unbind(1)
    valid = target != ignore_index
    present = present_classes(target, valid, len(shares))
    total = shares[0].sum() * 0.0
    nearest = torch.full_like(target, FAR, dtype=torch.int32)  # from each pixel to another class
    for number in present:
        own = target == number
        distance = squared_distance(own)
        total = total + (_level(distance, valid & ~own, shares[0].dtype) * shares[number]).sum()
        nearest = torch.where(own, nearest, torch.minimum(nearest, distance))
    for number in present:
        inside = _level(nearest, target == number, shares[0].dtype)
        total = total - (inside * shares[number]).sum()
    return total / (valid.sum().clamp(min=1) * max(len(present), 1))


def _level(squared: Tensor, there: Tensor, dtype: torch.dtype) -> Tensor:
    """Distances to the contour (B, H, W) at the pixels that are meant; 0 elsewhere and where there is no contour."""
    return torch.where(there & (squared < FAR), squared.to(dtype).sqrt() - 0.5, 0)

"""A loss that weighs mistakes by how far they lie from the true contour."""

from __future__ import annotations

import torch
from torch import Tensor

from srattn.tasks.losses.common import VOID, matched, present_classes
from srattn.tasks.losses.distance import signed_distance


def boundary(logits: Tensor, target: Tensor, *, ignore_index: int = VOID) -> Tensor:
    """The boundary loss (arXiv:1812.07032): the softmax's shares on the level sets of the true classes.

    The mean over valid pixels, and over the classes that the target of the batch holds, of phi p, where phi is the
    signed distance in pixels to the contour of the class in that image (negative inside, 0 throughout an image without
    such a contour). Of two classes this is the paper's foreground term up to a constant. It can be negative, and by
    itself it is flat: add it to a loss of regions, as in "dice+0.01*boundary". Waits for the device to learn which
    classes there are.
    """
    shares = matched(logits, target).softmax(1).unbind(1)
    valid = target != ignore_index
    present = present_classes(target, valid, len(shares))
    total = shares[0].sum() * 0.0
    for number in present:
        own = valid & (target == number)
        level = signed_distance(own, valid & ~own, shares[number].dtype)
        total = total + (torch.where(valid, level, 0) * shares[number]).sum()
    return total / (valid.sum().clamp(min=1) * max(len(present), 1))

"""Losses that look at each class as a region of the whole batch: soft Dice and Lovasz-softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from srattn.tasks.losses.common import VOID, matched, present_classes


def dice(logits: Tensor, target: Tensor, *, ignore_index: int = VOID) -> Tensor:
    """1 - 2 sum(p g) / (sum(p) + sum(g)), the mean over the classes that the target of the batch holds.

    p are the softmax's shares, g is 1 in the class and 0 elsewhere; sums go over the valid pixels of the batch. It is
    V-Net's coefficient (arXiv:1606.04797, section 3) with sums in place of sums of squares.
    """
    shares = matched(logits, target).softmax(1)
    valid = (target != ignore_index).unsqueeze(1)
    numbers = torch.arange(shares.shape[1], device=target.device).view(1, -1, 1, 1)
    truth = (target.unsqueeze(1) == numbers) & valid  # (B, K, H, W)
    both = torch.where(truth, shares, 0).sum((0, 2, 3))  # (K,)
    said, true = torch.where(valid, shares, 0).sum((0, 2, 3)), truth.sum((0, 2, 3))
    present = true > 0
    misses = 1 - 2 * both / torch.where(present, said + true, 1)
    return torch.where(present, misses, 0).sum() / present.sum().clamp(min=1)


def lovasz(logits: Tensor, target: Tensor, *, ignore_index: int = VOID) -> Tensor:
    """Lovasz-softmax (arXiv:1705.08790): the Jaccard loss made continuous, the mean over the classes present.

    Each class takes the Lovasz extension of its Jaccard loss (equations 8 and 9) at the vector of its pixels' errors,
    1 - p in the class and p elsewhere, pixels of the whole batch together. Sorts them once a class, and waits for the
    device to learn which classes there are.
    """
    shares = matched(logits, target).softmax(1).unbind(1)
    valid = target != ignore_index
    present = present_classes(target, valid, len(shares))
    total = shares[0].sum() * 0.0
    for number in present:
        own, share = valid & (target == number), shares[number]
        errors = torch.where(own, 1 - share, torch.where(valid, share, 0)).flatten()
        total = total + (errors * _increments(errors.detach(), own.flatten())).sum()
    return total / max(len(present), 1)


def _increments(errors: Tensor, own: Tensor) -> Tensor:
    """By how much each pixel (N,) raises the Jaccard loss when pixels turn wrong in the order of falling errors.

    The paper's algorithm 1 takes differences of the losses; written out they lose no digits. A pixel of the class
    leaves the intersection, I to I - 1 over U: 1 / U. Another joins the union, U - 1 to U: I / (U (U - 1)).
    Void pixels have no error: they come last and multiply theirs with 0.
    """
    order = errors.argsort(descending=True)
    leaves = own[order]
    size = own.sum()
    intersection = (size - leaves.cumsum(0)).to(errors.dtype)
    union = (size + (~leaves).cumsum(0)).to(errors.dtype)
    steps = torch.where(leaves, 1 / union, intersection / (union * (union - 1)))
    return torch.empty_like(errors).scatter_(0, order, steps)

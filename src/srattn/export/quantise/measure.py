"""What answers in whole numbers are worth beside those in float."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.export.answers import parts_of

MOST = 120.0
"""Decibels of what does not differ."""
_STEP = 4.0
"""Pixels of the input: a cell of a heatmap."""


def decibels(found: Sequence[list[Tensor]], truth: Sequence[list[Tensor]], answer: str) -> float:
    """How far the noise is below the signal over all images, of the worst part of the answer.

    Of class maps, which have no noise, how far the share of pixels that differ is below one.
    """
    if answer == "classes":
        return _below(1 - same(found, truth, answer), 1.0)
    pairs = [(parts_of(f, answer), parts_of(t, answer)) for f, t in zip(found, truth, strict=True)]
    values = []
    for number in range(len(pairs[0][0])):
        noise = sum(float((f[number].double() - t[number].double()).pow(2).sum()) for f, t in pairs)
        signal = sum(float(t[number].double().pow(2).sum()) for _, t in pairs)
        values.append(_below(noise, signal))
    return min(values)


def same(found: Sequence[list[Tensor]], truth: Sequence[list[Tensor]], answer: str) -> float:
    """The share of images, or pixels, of which the same class is the likeliest; 1 where there is no such choice.

    Of joints the share that lies within `_STEP` of the same place.
    """
    hits = total = 0
    for f, t in zip(found, truth, strict=True):
        if answer == "logits":
            hit = f[0].argmax(1) == t[0].argmax(1) if t[0].shape[1] > 1 else (f[0] > 0) == (t[0] > 0)
        elif answer == "classes":
            hit = f[0] == t[0]
        elif answer == "joints":
            hit = (f[0][..., :2] - t[0][..., :2]).norm(dim=2) <= _STEP
        else:
            continue
        hits, total = hits + int(hit.sum()), total + hit.numel()
    return hits / total if total else 1.0


def _below(noise: float, signal: float) -> float:
    if not math.isfinite(noise):
        return -MOST
    if noise <= signal * 10 ** (-MOST / 10):
        return MOST
    return max(-MOST, 10 * math.log10(signal / noise)) if signal > 0 else -MOST


def run_all(run: object, images: Sequence[Tensor]) -> list[list[Tensor]]:
    """The answers to each batch of images."""
    with torch.inference_mode():
        return [run(each) for each in images]  # type: ignore[operator]

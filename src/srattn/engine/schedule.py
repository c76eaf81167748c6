"""The learning rate of every step."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, warmup: int, highest: float, lowest: float) -> float:
    """The rate of `step` (from 0): linear over `warmup` steps, then half a cosine from `highest` to `lowest`."""
    if step < warmup:
        return highest * (step + 1) / warmup
    done = (step - warmup) / max(1, total - 1 - warmup)
    return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def warmup_steps(epochs: float, steps_per_epoch: int, total: int) -> int:
    """`epochs` of warm-up in steps, at most half of all."""
    return min(round(epochs * steps_per_epoch), total // 2)

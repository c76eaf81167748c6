"""The learning rate of every step."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, warmup: int, highest: float, lowest: float, elapsed: float = 0.0) -> float:
    """The rate of `step` (from 0): linear over `warmup` steps, then half a cosine from `highest` to `lowest`.

    `elapsed`: the part of the time given that is over; where that is further on than the steps, the cosine goes by it
    (M. Li, E. Yumer, D. Ramanan: Budgeted Training, arXiv:1905.04753).
    """
    done = max((step - warmup) / max(1, total - 1 - warmup), elapsed, 0.0)
    rate = lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return min(rate, highest * (step + 1) / warmup) if step < warmup else rate


def warmup_steps(epochs: float, steps_per_epoch: int, total: int) -> int:
    """`epochs` of warm-up in steps, at most half of all."""
    return min(round(epochs * steps_per_epoch), total // 2)

"""Whether a model is right as often as it claims."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from srattn.errors import SrattnError


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Answers in bins of equal width of their confidence (Guo et al., arXiv:1706.04599).

    Attributes:
        edges: bins + 1 numbers from 0 to 1; a bin holds its upper edge.
        counts: answers in each bin.
        confidence, accuracy: their means in each bin; 0 in an empty one.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def error(self) -> float:
        """The expected calibration error: |accuracy - confidence|, weighted by counts."""
        rows = zip(self.counts, self.confidence, self.accuracy, strict=True)
        return sum(n * abs(a - c) for n, c, a in rows) / max(1, sum(self.counts))

    @property
    def largest(self) -> float:
        """The largest |accuracy - confidence| of a bin that holds answers."""
        rows = zip(self.counts, self.confidence, self.accuracy, strict=True)
        return max((abs(a - c) for n, c, a in rows if n), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """Bins of the confidence of the likeliest class.

    Args:
        probabilities: (N, K).
        labels: (N,) class numbers.
    """
    if bins < 1:
        raise SrattnError(f"bins must be at least 1, got {bins}")
    confidence, answers = probabilities.double().max(1)
    right = (answers == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(confidence, edges[1:-1])  # (low, high], as torchmetrics has it but for equality
    counts = torch.bincount(place, minlength=bins)
    total = counts.clamp(min=1)
    means = [torch.bincount(place, weights=x, minlength=bins) / total for x in (confidence, right)]
    return Reliability(
        tuple(edges.tolist()), tuple(counts.tolist()), tuple(means[0].tolist()), tuple(means[1].tolist())
    )


def best_temperature(log_probabilities: Tensor, labels: Tensor) -> float:
    """The T from 1/20 to 20 for which log p / T, normalised again, has the least negative log likelihood.

    Above 1 the model claims too much, below 1 too little.

    Args:
        log_probabilities: (N, K).
        labels: (N,).
    """
    scores = log_probabilities.double().clamp(min=-1e4)
    truth = scores.gather(1, labels.unsqueeze(1)).squeeze(1)

    def slope(t: float) -> float:
        """The derivative with respect to 1 / T, which rises with 1 / T (the loss is convex in it)."""
        weights = (scores / t).softmax(1)
        return float(((weights * scores).sum(1) - truth).mean())

    low, high = 0.05, 20.0
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) < 0 else (middle, high)
    return (low * high) ** 0.5

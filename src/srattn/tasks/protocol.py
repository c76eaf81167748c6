"""The protocol between the engine and a task."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Metrics(Protocol):
    """Collects a whole pass over the validation data, batch by batch."""

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...

    def compute(self) -> dict[str, float]:
        """The figures of an epoch, "loss" among them."""
        ...

    def details(self) -> dict[str, Any]:
        """Plain values that are too large for a line of the history (per class, confusion)."""
        ...


class Task(Protocol):
    """From a model's outputs to a loss, to figures and to answers."""

    name: str
    headline: str
    """The metric that names a run's result, a key of `compute` and of `summary`."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What training minimises: a scalar, the mean over the batch."""
        ...

    def tally(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Sums over a training batch that may be added to those of other batches; kept in checkpoints."""
        ...

    def summary(self, sums: dict[str, float]) -> dict[str, float]:
        """The figures of the added tallies of an epoch, "loss" among them."""
        ...

    def metrics(self) -> Metrics:
        """An empty collector."""
        ...

    def postprocess(self, outputs: Tensor) -> Tensor:
        """Answers that a person can read: for classes, probabilities."""
        ...

"""The protocol between the engine and a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

Sum = Callable[[Tensor], Tensor]
"""Adds a tensor in main memory over all processes."""


class Metrics(Protocol):
    """Collects a whole pass over the validation data, batch by batch.

    One that says how good each image is has `per_image` besides, in the order of `update`: numbers, and None where
    there is nothing to measure. `details` has them too, where one process has seen all images.
    """

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...

    def reduce(self, add: Sum) -> None:
        """Takes in what the other processes have collected: sums alone, so that the figures are those of one."""
        ...

    def compute(self) -> dict[str, float]:
        """The figures of an epoch, "loss" among them."""
        ...

    def details(self) -> dict[str, Any]:
        """Plain values that are too large for a line of the history (per class, confusion)."""
        ...


class Task(Protocol):
    """From a model's outputs to a loss, to figures and to answers.

    One whose loss is a mean over other things than images has `weigh(targets)` besides: how many there are, a scalar.
    Then the parts of a step, and the processes, count by them.

    A model with a true `needs_targets` is called with inputs and targets in training, as `runner(inputs, targets)`, and
    its task takes what it then answers; see `srattn.tasks.detection.stages`.
    """

    name: str
    headline: str
    """The metric that names a run's result, a key of `compute` and where it is cheap of `summary`; more is better."""

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor | None = None) -> Tensor:
        """What training minimises: a scalar, the mean over the batch; `inputs` are what the model was given."""
        ...

    def tally(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over a training batch, scalars, "count" among them, that are added over steps and processes.

        Always the same keys in the same order; left on the device, so that no step waits for them.
        """
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

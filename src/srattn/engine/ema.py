"""An exponential moving average of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows the trained parameters of `model`; buffers are the model's own.

    The decay of update t is min(`decay`, (1 + t) / (10 + t)), so that the first weights are soon forgotten.

    Attributes:
        tensors: the average of every trained parameter by its name, in the parameter's own form (divided, if it is).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._followed = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._followed.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after `step` updates."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        means, values = list(self.tensors.values()), [value.detach() for value in self._followed.values()]
        if any(hasattr(mean, "full_tensor") for mean in means):  # divided over processes
            for mean, value in zip(means, values, strict=True):
                mean.lerp_(value, weight)
        elif means:
            torch._foreach_lerp_(means, values, weight)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average and the model's weights, in place; twice is nothing."""
        for mean, value in zip(self.tensors.values(), self._followed.values(), strict=True):
            kept = mean.clone()
            mean.copy_(value)
            value.copy_(kept)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

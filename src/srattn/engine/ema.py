"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch

from srattn.models.backbone import Backbone


class WeightAverage:
    """Follows `model` with weights of its own.

    The decay of update t is min(`decay`, (1 + t) / (10 + t)), so that the first weights are soon forgotten.
    """

    def __init__(self, model: Backbone, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Backbone, step: int) -> None:
        """Takes in the weights after `step` updates."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, weight)
        for mean, value in zip(self.model.buffers(), model.buffers(), strict=True):
            mean.copy_(value)

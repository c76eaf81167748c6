"""One pass over the validation data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from srattn.data.loader import Loader
from srattn.tasks.protocol import Task


@dataclasses.dataclass
class Evaluation:
    """`figures` as in the history, `details` as in result.json, and the answers (N, ...) in the order of the data."""

    figures: dict[str, float]
    details: dict[str, Any]
    answers: Tensor


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    task: Task,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Measures `model` in eval mode; None if `stop` said so on the way."""
    training = model.training
    model.eval()
    metrics = task.metrics()
    answers = []
    try:
        for batch in loader.val():
            outputs = model(batch.inputs.to(device))
            metrics.update(outputs, batch.labels)
            answers.append(task.postprocess(outputs).cpu())
            if stop():
                return None
    finally:
        model.train(training)
    return Evaluation(metrics.compute(), metrics.details(), torch.cat(answers))

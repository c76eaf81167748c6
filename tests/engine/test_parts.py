"""A step in parts whose masks have unlike numbers of void pixels."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from srattn.data.loader import Batch
from srattn.engine import TrainConfig
from srattn.engine.defaults import resolve
from srattn.engine.distributed import World
from srattn.engine.learner import Learner
from srattn.tasks.segmentation import VOID, Segmentation


def step(batch: Batch, accumulate: int) -> tuple[Tensor, Tensor]:
    """The loss of a step of a 1x1 convolution, and its gradient."""
    config = resolve(TrainConfig(accumulate=accumulate, batch_size=len(batch.inputs), clip_grad=0.0))
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 1)
    task = Segmentation(["a", "b", "c", "d"])
    learner = Learner(config, cast(Any, model), cast(Any, task), World(torch.device("cpu")))
    loss, _, _ = learner.step(batch, len(batch.inputs), 0, 0.0)
    assert model.weight.grad is not None
    return loss, model.weight.grad.clone()


def test_every_valid_pixel_counts_the_same() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (5, 6, 6), generator=generator)
    labels[0] = VOID
    labels[1, :5] = VOID
    labels[4, 2:] = VOID
    batch = Batch(torch.randn(5, 3, 6, 6, generator=generator), labels, torch.arange(5))
    whole, wanted = step(batch, 1)
    for parts in (2, 5):
        loss, gradient = step(batch, parts)
        torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


def test_nothing_but_void_is_no_step() -> None:
    batch = Batch(torch.randn(2, 3, 4, 4), torch.full((2, 4, 4), VOID), torch.arange(2))
    loss, gradient = step(batch, 2)
    assert loss == 0 and not gradient.any()

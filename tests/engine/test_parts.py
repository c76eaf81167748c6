"""A step in parts that weigh unlike: masks with void pixels, images of classes with weights."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from srattn.data.loader import Batch
from srattn.engine import TrainConfig
from srattn.engine.defaults import resolve
from srattn.engine.distributed import World
from srattn.engine.learner import Learner
from srattn.tasks.classification import Classification
from srattn.tasks.segmentation import VOID, Segmentation

ALONE = World(torch.device("cpu"))


def step(batch: Batch, accumulate: int, task: Any = None, world: World = ALONE) -> tuple[Tensor, Tensor]:
    """The loss of a step of a 1x1 convolution (of images without extent: a linear map), and its gradient."""
    config = resolve(TrainConfig(accumulate=accumulate, batch_size=len(batch.inputs), clip_grad=0.0))
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 1) if batch.inputs.ndim == 4 else nn.Linear(3, 4)
    learner = Learner(config, cast(Any, model), task or Segmentation(["a", "b", "c", "d"]), world)
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


@dataclasses.dataclass(frozen=True)
class Beside(World):
    """A process beside another whose images weigh `others`."""

    others: float = 0.0

    def sum(self, values: Tensor) -> Tensor:
        return values + self.others


WEIGHTS = torch.tensor([1e-3, 2e-3, 5.0, 0.0])


def of_classes(numbers: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(2)
    labels = torch.tensor(numbers)
    return Batch(torch.randn(len(labels), 3, 1, generator=generator)[..., 0], labels, torch.arange(len(labels)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_a_step_of_light_classes_is_a_whole_step(smoothing: float, scale: float) -> None:
    light = of_classes([0, 0, 0, 0, 0])
    unweighted = step(light, 1, Classification([*"abcd"], smoothing))
    weighted = Classification([*"abcd"], smoothing, weights=scale * WEIGHTS)
    for parts in (1, 2, 5):
        for found, wanted in zip(step(light, parts, weighted), unweighted, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_processes_count_by_the_weights_of_their_images(scale: float) -> None:
    task = Classification([*"abcd"], 0.1, weights=scale * WEIGHTS)
    whole = of_classes([0, 1, 1, 3, 0, 0])
    wanted = step(whole, 1, task)
    found = []
    for own, rest in ((slice(0, 2), slice(2, 6)), (slice(2, 6), slice(0, 2))):
        batch = Batch(whole.inputs[own], whole.labels[own], whole.indices[own])
        others = float(task.weights[whole.labels[rest]].sum())  # type: ignore[index]
        found.append(step(batch, 2, task, Beside(torch.device("cpu"), size=2, others=others)))
    (loss, gradient), (other_loss, other_gradient) = found
    torch.testing.assert_close(loss + other_loss, wanted[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((gradient + other_gradient) / 2, wanted[1], rtol=1e-5, atol=1e-6)


def test_images_that_do_not_count_are_no_step() -> None:
    loss, gradient = step(of_classes([3, 3]), 2, Classification([*"abcd"], 0.1, weights=WEIGHTS))
    assert loss == 0 and not gradient.any()

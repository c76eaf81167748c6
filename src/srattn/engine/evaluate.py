"""One pass over the validation data."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from srattn.data.loader import Batch, Loader
from srattn.engine.distributed import World
from srattn.errors import SrattnError
from srattn.tasks.protocol import Task


@dataclasses.dataclass
class Evaluation:
    """`figures` as in the history, `details` as in result.json, and the answers (N, ...) in the order of the data.

    `indices` (N,) say of which validation images: of all but those that could not be read any more.

    Of several processes the first has all answers, and in the details what was measured of each image, where a task
    measures that ("per_image"); each of the others has its own answers.
    """

    figures: dict[str, float]
    details: dict[str, Any]
    answers: Tensor
    indices: Tensor


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    task: Task,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
    *,
    world: World | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Evaluation | None:
    """Measures `model` in eval mode; None if `stop` said so on the way (asked in a run of one process alone).

    Raises:
        SrattnError: none of the images can be read.
    """
    world = world or World(device)
    training = model.training
    model.eval()
    metrics = task.metrics()
    answers, indices = [], []
    try:
        for batch in _in_step(loader, world):
            if batch is None:
                _run_along(model, loader, device)
                continue
            with autocast():
                outputs = model(batch.inputs.to(device, memory_format=memory_format))
            metrics.update(outputs, batch.labels)
            answers.append(task.postprocess(outputs).cpu())
            indices.append(batch.indices)
            if world.size == 1 and stop():
                return None
    finally:
        model.train(training)
    if not world.any(bool(answers)):
        raise SrattnError(f"no image to measure with can be read any more{': '.join(['', *loader.lost[:1]])}")
    own: list[float | None] | None = getattr(metrics, "per_image", None) if world.size > 1 else None
    metrics.reduce(world.sum)
    details = metrics.details()
    if own is not None:
        details |= _per_image(own, indices, world)
    return Evaluation(metrics.compute(), details, _in_order(answers, indices, world), _measured(indices, world))


def _per_image(own: list[float | None], indices: list[Tensor], world: World) -> dict[str, list[float | None]]:
    """What the first process adds to the details: the values of all images in the order of the data."""
    values = torch.tensor([math.nan if value is None else value for value in own], dtype=torch.float64)
    together = _in_order([values], indices, world).tolist()
    return {"per_image": [None if math.isnan(value) else value for value in together]} if world.first else {}


def _in_step(loader: Loader, world: World) -> Iterator[Batch | None]:
    """This process's batches; where weights are divided, None as long as another process still has one."""
    batches = iter(loader.val())
    if world.kind != "fsdp":
        yield from batches
        return
    while True:
        batch = next(batches, None)
        if not world.any(batch is not None):
            return
        yield batch


def _run_along(model: nn.Module, loader: Loader, device: torch.device) -> None:
    """One image for nothing: the processes put divided weights together for each other."""
    preprocess = loader.data.preprocess
    model(torch.zeros(1, preprocess.channels, *preprocess.size, device=device))


def _in_order(answers: list[Tensor], indices: list[Tensor], world: World) -> Tensor:
    own = torch.cat(answers) if answers else torch.empty(0)
    if world.size == 1:
        return own
    shape = world.tell(list(own.shape[1:]))  # of the first process, which has the first image
    own = own.contiguous() if answers else torch.empty(0, *shape)
    gathered, order = world.gather(own), world.gather(_places(indices))
    if not world.first:
        return own
    together = torch.cat(gathered)
    return together[torch.cat(order).argsort()]


def _measured(indices: list[Tensor], world: World) -> Tensor:
    """Of which images the answers are, in their order."""
    gathered = world.gather(_places(indices))
    return torch.cat(gathered).sort().values if world.first else _places(indices)


def _places(indices: list[Tensor]) -> Tensor:
    return torch.cat(indices) if indices else torch.zeros(0, dtype=torch.int64)

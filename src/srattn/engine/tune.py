"""The learning-rate range test (Smith, arXiv:1506.01186): one short sweep in place of many trainings."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from srattn.data.loader import Batch, Loader
from srattn.engine.config import TrainConfig
from srattn.engine.defaults import resolve
from srattn.engine.device import pick_device
from srattn.engine.distributed import World
from srattn.engine.progress import Silent
from srattn.engine.run import _prepare, _settings_of
from srattn.errors import SrattnError

_DECADES = 0.12  # the width of the smoothing, in powers of ten of the rate
_DIVERGED = 3.0  # the sweep ends at this many times the first loss
_FELL = 0.03  # a loss that fell by less than this part of itself says nothing


@dataclasses.dataclass(frozen=True)
class LRRange:
    """The result of `lr_range`.

    Attributes:
        rates, losses: of each step; the loss is that of the batch before the step, with label smoothing.
        smoothed: the losses, each averaged with its neighbours in log rate.
        suggestion: a highest rate for training, or None.
        best: the rate at which the smoothed loss is lowest, or None.
        steepest: the rate at which it falls fastest, or None.
        reason: of the suggestion, or why there is none, in words.
        facts: data, model, batch and steps.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    best: float | None
    steepest: float | None
    reason: str
    facts: dict[str, Any]


def lr_range(
    config: TrainConfig,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 200,
    notify: Callable[[int, int, float, float], None] | None = None,
) -> LRRange:
    """Trains a fresh model for `steps` steps while the rate rises from `lowest` to `highest`; keeps nothing.

    Model, data, augmentation, optimiser and clipping are those of `srattn train` with this configuration. The sweep
    ends early once the loss is three times what it was, or no number.

    Args:
        steps: at least 20; the data is gone through as often as needed.
        notify: told the steps done, all steps, the rate and the loss.

    Raises:
        SrattnError: numbers out of range, or what `train` would refuse.
    """
    if not 0 < lowest < highest < math.inf:
        raise SrattnError(f"the rates must be 0 < lowest < highest, got {lowest:g} and {highest:g}")
    if steps < 20:
        raise SrattnError(f"steps must be at least 20, got {steps}")
    resolved = resolve(config)
    rates: list[float] = []
    losses: list[float] = []
    with _settings_of(resolved):
        trainer = _prepare(resolved, World(pick_device(resolved.device)), Silent(), None, weights=True)
        growth = (highest / lowest) ** (1 / (steps - 1))
        for step, batch in enumerate(itertools.islice(_endless(trainer.loader), steps)):
            rate = lowest * growth**step
            loss, _, _ = trainer.learner.step(batch, len(batch.labels), step, rate)
            rates.append(rate)
            losses.append(float(loss))
            if notify:
                notify(step + 1, steps, rate, losses[-1])
            if not math.isfinite(losses[-1]) or _lately(losses) > _DIVERGED * _first(losses):
                break
        facts = {
            "data": resolved.data,
            "model": resolved.model,
            "size": resolved.size,
            "batch_size": resolved.batch_size,
            "lowest": lowest,
            "highest": highest,
            "steps": len(rates),
            "planned_steps": steps,
        }
    return _judged(rates, losses, facts)


def _endless(loader: Loader) -> Iterator[Batch]:
    """Whole batches, epoch after epoch; a smaller last one would stand out in the curve."""
    for epoch in itertools.count():
        for batch in loader.train(epoch):
            if len(batch.labels) == loader.batch_size or loader.steps_per_pass == 1:
                yield batch


def _first(losses: Sequence[float]) -> float:
    start = losses[:10]
    return sum(start) / len(start)


def _lately(losses: Sequence[float]) -> float:
    end = losses[-3:]
    return sum(end) / len(end)


def smooth(rates: Sequence[float], losses: Sequence[float]) -> list[float]:
    """Each loss averaged with its neighbours, weighted by a Gaussian of their distance in log rate."""
    place = torch.tensor(rates, dtype=torch.float64).log10()
    weights = torch.exp(-(((place[:, None] - place[None]) / _DECADES) ** 2) / 2)
    values = torch.tensor(losses, dtype=torch.float64)
    return ((weights @ values) / weights.sum(1)).tolist()


def _judged(rates: list[float], losses: list[float], facts: dict[str, Any]) -> LRRange:
    """The sweep and what follows from it."""
    whole = [(rate, loss) for rate, loss in zip(rates, losses, strict=True) if math.isfinite(loss)]
    if len(whole) < 10:
        reason = f"the loss was no number after {len(whole)} steps, at a rate of {rates[-1]:.2g}: begin lower"
        return LRRange(rates, losses, losses, None, None, None, reason, facts)
    rates, losses = [rate for rate, _ in whole], [loss for _, loss in whole]
    smoothed = smooth(rates, losses)
    at = min(range(len(smoothed)), key=smoothed.__getitem__)
    start = smoothed[0]
    if smoothed[at] > (1 - _FELL) * start:
        reason = (
            f"the loss never fell ({start:.3f} at first, {smoothed[at]:.3f} at best): take more steps or higher rates"
        )
        return LRRange(rates, losses, smoothed, None, None, None, reason, facts)
    slopes = [smoothed[i + 1] - smoothed[i] for i in range(at)]
    steepest = rates[min(range(len(slopes)), key=slopes.__getitem__)]
    best = rates[at]
    suggestion = float(f"{math.sqrt(steepest * best):.2g}")
    reason = (
        f"the loss falls fastest at {steepest:.2g} and is lowest at {best:.2g}, above which it rises; half way between "
        "the two, on the logarithm, it still falls with some room before it rises"
    )
    if at == len(smoothed) - 1 and facts["steps"] == facts["planned_steps"]:
        reason = (
            f"the loss falls fastest at {steepest:.2g} and still fell at {best:.2g}, where the sweep ended: a higher "
            "end would say more"
        )
    return LRRange(rates, losses, smoothed, suggestion, best, steepest, reason, facts)

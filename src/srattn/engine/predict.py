"""A trained run on image files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.decode import BadImage, decode
from srattn.engine.weights import LoadedRun

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Source:
    """An image to classify: the `name` that its record carries, and its file or bytes."""

    name: str
    data: Path | bytes


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one image: every class with its probability, the likeliest first."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def classify(
    run: LoadedRun,
    sources: Iterable[Source | Path | str],
    batch_size: int = 64,
    workers: int = 0,
    on_bad_image: Callable[[BadImage], None] | None = None,
) -> Iterator[Prediction]:
    """Predictions in the order of `sources`, as they become known.

    Args:
        workers: threads that decode ahead of the model.
        on_bad_image: told of an unreadable image, which then has no prediction; without it the error is raised.

    Raises:
        BadImage: see `on_bad_image`.
    """
    device = next(run.model.parameters()).device
    for group in _grouped(map(_as_source, sources), batch_size):
        names, pixels = [], []
        for source, result in zip(group, ahead(lambda source: _pixels(run, source), group, workers), strict=True):
            if isinstance(result, Tensor):
                names.append(source.name)
                pixels.append(result)
            elif on_bad_image is None:
                raise result
            else:
                on_bad_image(result)
        if pixels:
            images = torch.stack(pixels).to(device).float() / 255
            yield from _answers(run, names, run.preprocess.normalise(images))


@torch.inference_mode()
def _answers(run: LoadedRun, names: Sequence[str], inputs: Tensor) -> list[Prediction]:
    probabilities, order = run.model(inputs).float().softmax(1).sort(dim=1, descending=True, stable=True)
    return [
        Prediction(name, tuple(run.classes[index] for index in indices), tuple(values))
        for name, indices, values in zip(names, order.tolist(), probabilities.tolist(), strict=True)
    ]


def _pixels(run: LoadedRun, source: Source) -> Tensor | BadImage:
    try:
        return run.preprocess.pixels(decode(source.data, run.preprocess.channels, source.name))
    except BadImage as error:
        return error


def _as_source(source: Source | Path | str) -> Source:
    return source if isinstance(source, Source) else Source(str(source), Path(source))


def _grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group

"""A trained model on image files and on whole data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.decode import BadImage
from srattn.engine.open_model import boxed_model as boxed_model
from srattn.engine.rows.answer import grouped, pixels_of
from srattn.engine.rows.base import Source as Source
from srattn.engine.weights import LoadedRun

if TYPE_CHECKING:
    import pyarrow as pa


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
    for group in grouped(map(_as_source, sources), batch_size):
        names, pixels = [], []
        for source, result in zip(group, ahead(lambda source: pixels_of(run, source), group, workers), strict=True):
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
    probabilities, order = _likeliest(run, inputs)
    return [
        Prediction(name, tuple(run.classes[index] for index in indices), tuple(values))
        for name, indices, values in zip(names, order.tolist(), probabilities.tolist(), strict=True)
    ]


def _likeliest(run: LoadedRun, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (B, K), falling, and the class numbers that they are of."""
    probabilities, order = run.model(inputs).float().softmax(1).sort(dim=1, descending=True, stable=True)
    return probabilities.cpu(), order.cpu()


class Classes:
    """An `Output`: class, its probability, and the `top` likeliest classes with theirs."""

    def __init__(self, run: LoadedRun, top: int = 5) -> None:
        self._run, self.top = run, min(top, len(run.classes))

    def facts(self) -> dict[str, Any]:
        return {"output": "classes", "top": self.top, "classes": self._run.classes}

    def compute(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        probabilities, order = _likeliest(self._run, inputs)
        return probabilities[:, : self.top], order[:, : self.top]

    def columns(self, values: tuple[Tensor, ...], missing: Tensor) -> dict[str, pa.Array]:
        import pyarrow as pa

        probabilities, order = (value.tolist() for value in values)
        rows = list(zip(order, probabilities, missing.tolist(), strict=True))
        names = self._run.classes
        return {
            "class": pa.array([None if none else names[o[0]] for o, _, none in rows], pa.string()),
            "probability": pa.array([None if none else p[0] for _, p, none in rows], pa.float32()),
            "top_classes": pa.array([None if none else [names[i] for i in o] for o, _, none in rows], _list("string")),
            "top_probabilities": pa.array([None if none else p for _, p, none in rows], _list("float")),
        }


def _list(kind: str) -> Any:
    import pyarrow as pa

    return pa.list_(pa.type_for_alias(kind))


def _as_source(source: Source | Path | str) -> Source:
    return source if isinstance(source, Source) else Source(str(source), Path(source))

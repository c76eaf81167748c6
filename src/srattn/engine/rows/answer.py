"""From the rows of a part to their answers: decoded ahead of the model, batched, one output row for each input row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.decode import BadImage, decode
from srattn.data.preprocess import to_image
from srattn.data.sources import file_of
from srattn.engine.rows.base import Source
from srattn.engine.weights import LoadedRun
from srattn.errors import missing_extra

if TYPE_CHECKING:
    import pyarrow as pa

Item = TypeVar("Item")


class Output(Protocol):
    """What is computed for each image, and how a table holds it."""

    def facts(self) -> dict[str, Any]:
        """The options that define it; plain values."""
        ...

    def compute(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """From images (B, C, H, W) as the model takes them to values, each (B, ...), on the CPU."""
        ...

    def columns(self, values: tuple[Tensor, ...], missing: Tensor) -> dict[str, pa.Array]:
        """From the values of N rows to columns of N entries, null where `missing` (N,)."""
        ...


class Answers:
    """The rows of one model and one output: name, label, what `output` computes, and error.

    Every row of the data has its row here; where an image cannot be read `error` says why and the rest is null.

    Args:
        on_bad_image: told of each unreadable image; it may raise the error instead.
    """

    def __init__(
        self,
        run: LoadedRun,
        output: Output,
        batch_size: int = 64,
        workers: int = 0,
        on_bad_image: Callable[[BadImage], None] | None = None,
    ) -> None:
        self.run, self.output = run, output
        self._batch_size, self._workers, self._on_bad_image = batch_size, workers, on_bad_image
        self._device = next(run.model.parameters()).device
        blank = torch.zeros(1, run.preprocess.channels, *run.preprocess.size, device=self._device)
        # The shapes of the values, which a part without a readable image has to have too.
        self.like = [value[:0] for value in _compute(output, run.preprocess.normalise(blank))]

    def schema(self) -> pa.Schema:
        return self([], 0, lambda rows: None).schema

    def __call__(self, sources: Iterable[Source], count: int, advance: Callable[[int], None]) -> pa.Table:
        """The answers for `count` sources, which are held a batch at a time; `advance` is told of each batch."""
        try:
            import pyarrow as pa
        except ImportError:
            raise missing_extra("pyarrow", "train") from None
        values = [torch.zeros(count, *like.shape[1:], dtype=like.dtype) for like in self.like]
        names: list[str] = []
        labels: list[str | None] = []
        errors: list[str | None] = []
        for group in grouped(sources, self._batch_size):
            good, pixels = [], []
            decoded = ahead(lambda source: pixels_of(self.run, source), group, self._workers)
            for source, result in zip(group, decoded, strict=True):
                if isinstance(result, BadImage):
                    if self._on_bad_image:
                        self._on_bad_image(result)
                else:
                    good.append(len(names))
                    pixels.append(result)
                names.append(shown(source.name))
                labels.append(None if source.label is None else shown(source.label))
                errors.append(shown(str(result)) if isinstance(result, BadImage) else None)
            if pixels:
                inputs = self.run.preprocess.normalise(torch.stack(pixels).to(self._device).float() / 255)
                for whole, part in zip(values, _compute(self.output, inputs), strict=True):
                    whole[good] = part
            advance(len(group))
        missing = torch.tensor([error is not None for error in errors], dtype=torch.bool)
        columns = {
            "name": pa.array(names, pa.string()),
            "label": pa.array(labels, pa.string()),
            **self.output.columns(tuple(values), missing),
            "error": pa.array(errors, pa.string()),
        }
        return pa.table(columns)


def pixels_of(run: LoadedRun, source: Source) -> Tensor | BadImage:
    """uint8 (C, H, W) as the run's preprocessing makes them, or why there are none."""
    if isinstance(source.data, BadImage):
        return source.data
    try:
        if isinstance(source.data, Tensor):
            return run.preprocess.pixels(to_image(source.data).convert("L" if run.preprocess.channels == 1 else "RGB"))
        return run.preprocess.pixels(decode(file_of(source.data), run.preprocess.channels, shown(source.name)))
    except BadImage as error:
        return error


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one of what is left."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def shown(text: str) -> str:
    """Text without what is no UTF-8: a file name may hold any bytes, and must not break the output half way."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@torch.inference_mode()
def _compute(output: Output, inputs: Tensor) -> tuple[Tensor, ...]:
    return output.compute(inputs)

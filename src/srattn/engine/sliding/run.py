"""An image from top to bottom in overlapping windows. What is kept is the strip of rows that windows still add to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srattn.data.strips import Parts, as_parts
from srattn.engine.sliding.grid import Grid, grids
from srattn.engine.sliding.options import Sliding, training_window
from srattn.engine.sliding.strip import Strip
from srattn.engine.sliding.windows import Model, Windows
from srattn.errors import SrattnError

KINDS = ("classes", "values")
_AT_ONCE = 64  # rows that are finished together: the class numbers of more would be a large tensor of 64 bits


class Rows(NamedTuple):
    """Finished rows of an image."""

    y: int
    """The first of them."""
    values: Tensor
    """(n, W): numbers of classes as uint8, or values as float32. In the CPU's memory."""
    confidence: Tensor | None
    """(n, W) float32: the probability of the class, where it was asked for."""


class Answer(NamedTuple):
    """The answer for a whole image; as in `Rows`, with n = H."""

    values: Tensor
    confidence: Tensor | None


def slide_rows(
    model: Model,
    image: Tensor | Parts,
    *,
    normalise: Callable[[Tensor], Tensor],
    kind: str = "classes",
    confidence: bool = False,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Iterator[Rows]:
    """The answer for every pixel of an image of any size, in rows from top to bottom as they are finished.

    Beside the model's own, the memory is that of K x (height of a window) x W float32 values, whatever the height of
    the image is; a window at scale s covers 1 / s times its height. Over all windows, flips and scales the weights of
    every pixel sum to one.

    Args:
        model: (B, C, h, w) to logits (B, K, h', w') on any grid, enlarged bilinearly; or for values (B, h', w') or
            (B, 1, h', w'). A module, which is in eval mode for each batch, or any other callable.
        image: uint8 (C, H, W), or what hands out its parts, such as `srattn.data.strips.PictureParts`.
        normalise: what stands between (B, C, h, w) in [0, 1] and the model: `Preprocess.normalise`.
        kind: "classes" gives the likeliest class, "values" the output itself (depths).
        confidence: give the probability of the class too.
        device: where the model computes; by default where its parameters are.
        progress: told (done, total) of windows, after each batch.
        options: those of `Sliding`.

    Raises:
        SrattnError: an option, image or output that does not fit. Those of options come before anything is computed.
    """
    if kind not in KINDS:
        raise SrattnError(f"kind must be one of {KINDS}, got {kind!r}")
    if confidence and kind == "values":
        raise SrattnError("values have no confidence: use confidence=False")
    chosen, parts = Sliding.of(options), as_parts(image)
    size = (parts.shape[1], parts.shape[2])
    tiling = grids(size, training_window(model) if chosen.window is None else None, chosen)
    windows = Windows(model, parts, normalise, kind, device, chosen)
    return _run(windows, tiling, size, kind, confidence, progress, chosen)


def slide(model: Model, image: Tensor | Parts, **arguments: Any) -> Answer:
    """The answer for every pixel of an image, as a whole; see `slide_rows` for the arguments."""
    parts, values, probabilities = as_parts(image), None, None
    _, height, width = parts.shape
    for rows in slide_rows(model, parts, **arguments):
        if values is None:
            values = torch.empty(height, width, dtype=rows.values.dtype)
            probabilities = None if rows.confidence is None else torch.empty(height, width)
        here = slice(rows.y, rows.y + len(rows.values))
        values[here] = rows.values
        if probabilities is not None and rows.confidence is not None:
            probabilities[here] = rows.confidence
    assert values is not None
    return Answer(values, probabilities)


def _run(
    windows: Windows,
    tiling: list[Grid],
    size: tuple[int, int],
    kind: str,
    confidence: bool,
    progress: Callable[[int, int], None] | None,
    options: Sliding,
) -> Iterator[Rows]:
    height, width = size
    # Rows of windows of all scales by their first pixel: above the next one's, nothing is added any more.
    order = sorted((start, n, row) for n, grid in enumerate(tiling) for row, start in enumerate(grid.rows.starts))
    total = sum(len(tiling[n].columns.starts) for _, n, _ in order)
    tallest = min(height, max(grid.rows.source for grid in tiling))
    strip: Strip | None = None
    done = 0
    for (top, n, row), end in zip(order, [start for start, _, _ in order[1:]] + [height], strict=True):
        rows, columns = tiling[n].rows, tiling[n].columns
        for first in range(0, len(columns.starts), options.batch_size):
            batch = range(first, min(first + options.batch_size, len(columns.starts)))
            answers = windows.answers(tiling[n], row, batch)
            if strip is None:
                strip = Strip(answers.shape[1], tallest, width, answers.device)
            for answer, column in zip(answers, batch, strict=True):
                weight = rows.weights[row][:, None] * columns.weights[column] / len(tiling)  # (h, w)
                left = columns.starts[column]
                shares = answer * weight.to(answer.device)  # not in place: it may be a tensor of the model's own
                strip.add(top, left, shares[:, : height - top, : width - left])
            done += len(batch)
            if progress is not None:
                progress(done, total)
        assert strip is not None
        yield from _finished(strip, top, end, kind, confidence, options)


def _finished(strip: Strip, y: int, end: int, kind: str, confidence: bool, options: Sliding) -> Iterator[Rows]:
    """The rows from y to before `end`, a few at a time; their place in the strip is free afterwards."""
    while y < end:
        sums = strip.rows(y, min(_AT_ONCE, end - y))  # (K, n, W)
        if kind == "values":
            rows = Rows(y, sums[0].to("cpu", copy=True), None)
        else:
            best, number = (sums.softmax(0) if confidence and options.average == "logits" else sums).max(0)
            rows = Rows(y, number.to(torch.uint8).cpu(), best.clamp(max=1).cpu() if confidence else None)
        sums.zero_()
        y += len(rows.values)
        yield rows

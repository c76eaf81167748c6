"""The report's drawings: training curves, confusion matrix, growth of time and memory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from srattn.explain.canvas import ACCENT, INK, LINE, MUTED, draw, shorten
from srattn.explain.words import bytes_text, seconds_text

_CURVE = (4.4, 2.9)
_NUMBERS_UP_TO = 24
_NAMES_UP_TO = 40


def loss_curve(history: Sequence[Mapping[str, object]]) -> str:
    """Training and validation loss over the epochs, as inline SVG."""
    return _curves(history, ("train_loss", "val_loss"), "Loss")


def accuracy_curve(history: Sequence[Mapping[str, object]]) -> str:
    """Training and validation accuracy (fractions in the records) over the epochs, as inline SVG."""
    return _curves(history, ("train_accuracy", "val_accuracy"), "Accuracy, %", scale=100.0)


def _curves(history: Sequence[Mapping[str, object]], keys: tuple[str, str], title: str, scale: float = 1.0) -> str:
    series = [_series(history, key, scale) for key in keys]
    names = ("training", "validation")

    def paint(axes: Axes) -> None:
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for (epochs, values), name, colour, width in zip(series, names, (MUTED, ACCENT), (1.3, 2.0), strict=True):
            if values:
                mark = "o" if len(values) < 3 else ""
                axes.plot(epochs, values, color=colour, lw=width, label=name, marker=mark, ms=4)
        seen = [epoch for epochs, _ in series for epoch in epochs]
        if len(set(seen)) == 1:
            axes.set_xlim(seen[0] - 1, seen[0] + 1)
        if seen:
            axes.legend(labelcolor=MUTED)
        if keys[0].endswith("accuracy"):
            axes.set_ylim(top=min(100.5, axes.get_ylim()[1]))

    ends = ", ".join(f"{name} ends at {v[-1]:.4g}" for (_, v), name in zip(series, names, strict=True) if v)
    return draw(_CURVE, paint, f"{title} over the epochs: {ends or 'no records'}.")


def _series(history: Sequence[Mapping[str, object]], key: str, scale: float) -> tuple[list[float], list[float]]:
    epochs, values = [], []
    for index, record in enumerate(history):
        value = record.get(key)
        if isinstance(value, (int, float)) and math.isfinite(value):
            epoch = record.get("epoch", index + 1)
            epochs.append(float(epoch) if isinstance(epoch, (int, float)) else float(index + 1))
            values.append(value * scale)
    return epochs, values


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) of int: row the true class, column the predicted one."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> str:
    """The confusion matrix as inline SVG, shaded by the share of each true class.

    Up to 24 classes carry their numbers, up to 40 their names; beyond that the axes count classes.
    """
    size = len(classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with_names = size <= _NAMES_UP_TO
    names = [shorten(name, 14) for name in classes]
    text = 9.0 if size <= 12 else 7.0 if size <= _NUMBERS_UP_TO else 5.5

    def paint(axes: Axes) -> None:
        axes.grid(False)
        axes.imshow(_shades(share, np.eye(size, dtype=bool)), interpolation="none", aspect="equal")
        for spine in axes.spines.values():
            spine.set_visible(size > _NUMBERS_UP_TO)  # smaller ones have a grid
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.tick_params(length=0)
        if with_names:
            rotate = max(map(len, names)) > max(1, 30 // size)
            axes.set_xticks(range(size), names, fontsize=text, rotation=90 if rotate else 0)
            axes.set_yticks(range(size), names, fontsize=text)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if size <= _NUMBERS_UP_TO:
            edges = np.arange(size + 1) - 0.5
            axes.hlines(edges, -0.5, size - 0.5, color=LINE, lw=0.6)
            axes.vlines(edges, -0.5, size - 0.5, color=LINE, lw=0.6)
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if share[row, column] > 0.75 else INK  # on a dark cell in either theme
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=text, color=colour)

    right, total = int(np.trace(counts)), int(counts.sum())
    side = 4.8 if size <= 12 else 6.2
    return draw((side, side), paint, f"Confusion matrix of {size} classes: {right} of {total} images on the diagonal.")


def _shades(share: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """RGBA in which the share is opacity, so that the page's own background shows through."""
    rgba = np.empty((*share.shape, 4))
    rgba[..., :3] = np.where(diagonal[..., None], np.array([13, 128, 118]), np.array([200, 72, 32])) / 255
    # The square root lifts single mistakes out of the background.
    rgba[..., 3] = np.sqrt(share)
    return rgba


def scaling_figure(tokens: Sequence[int], series: Mapping[str, Sequence[float | None]], title: str, unit: str) -> str:
    """Log-log growth over the number of tokens, as inline SVG; the last series is ours and wears the accent.

    Args:
        series: name -> a value per entry of `tokens`, None where it was not measured.
        unit: `"seconds"` or `"bytes"`.
    """
    words = seconds_text if unit == "seconds" else bytes_text
    styles = [(INK, "-", "o"), (MUTED, "--", "s"), (ACCENT, "-", "o")]
    styles = styles[: len(series) - 1] + styles[-1:]

    def paint(axes: Axes) -> None:
        axes.set_title(title)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=10 if unit == "seconds" else 4)  # 4: ticks on whole binary units
        axes.set_xlabel("tokens on a side of the map")
        ends = []
        for (name, values), (colour, dash, mark) in zip(series.items(), styles, strict=True):
            points = [(n, v) for n, v in zip(tokens, values, strict=True) if v]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=colour, ls=dash, marker=mark, ms=3.5, label=name)
                ends.append(max(y) / min(y))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks(list(tokens), [str(math.isqrt(n)) for n in tokens])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: re.sub(r"\.0+ ", " ", words(value))))
        axes.legend(labelcolor=MUTED)

    last = "; ".join(f"{name}: {words(values[-1])}" for name, values in series.items() if values and values[-1])
    return draw(_CURVE, paint, f"{title} as the map grows. At {tokens[-1]} tokens: {last or 'not measured'}.")

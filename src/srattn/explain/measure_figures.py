"""The picture of a measurement: calibration, confusion, classes, robustness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from srattn.engine.calibration import Reliability
from srattn.engine.measure import Measurement
from srattn.explain.canvas import shorten
from srattn.explain.paper import ACCENT, INK, LINE, MUTED, WRONG, sheet

_TOO_MUCH, _TOO_LITTLE = "#e0a892", "#86bfba"
_NUMBERS_UP_TO = 20
_NAMES_UP_TO = 40


def measurement_picture(path: Path, found: Measurement, title: str) -> None:
    """Draws everything on one sheet; `path` must not exist yet (see `srattn.files.atomic_path`)."""
    with sheet(path, (12.0, 9.0)) as figure:
        five = "" if found.top5 is None else f", top-5 {100 * found.top5:.2f} %"
        line = f"top-1 {100 * found.top1:.2f} %{five} on {found.images:,} images"
        figure.suptitle(f"{shorten(title, 100)}\n{line}", x=0.012, ha="left", fontsize=12, color=INK)
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.08))  # type: ignore[misc]
        upper_left, lower_left = left.subfigures(2, 1, height_ratios=(1.15, 1))
        upper_right, lower_right = right.subfigures(2, 1, height_ratios=(1.15, 1))
        _calibration(upper_left, found)
        _confusion(upper_right.subplots(), found)
        _classes(lower_left.subplots(), found)
        if found.corruptions:
            _robustness(lower_right.subplots(), found)
        else:
            _mistakes(lower_right.subplots(), found)


def _calibration(figure: SubFigure, found: Measurement) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    rows: Reliability = found.reliability
    width = 1 / len(rows.counts)
    centres = (np.array(rows.edges[:-1]) + np.array(rows.edges[1:])) / 2
    full = np.array(rows.counts) > 0
    accuracy, confidence = np.array(rows.accuracy), np.array(rows.confidence)
    # Where the bar ends above or below its confidence, the model claims too little or too much.
    upper.bar(centres[full], accuracy[full], 0.92 * width, color=ACCENT)
    low, gap = np.minimum(accuracy, confidence), np.abs(accuracy - confidence)
    over = full & (confidence > accuracy)
    under = full & (confidence <= accuracy)
    upper.bar(centres[over], gap[over], 0.92 * width, low[over], color=_TOO_MUCH)
    upper.bar(centres[under], gap[under], 0.92 * width, low[under], color=_TOO_LITTLE)
    upper.plot((0, 1), (0, 1), color=MUTED, lw=1, ls="--")
    temperature = f", best temperature {found.temperature:.2f}" if 0.05 < found.temperature < 20 else ""
    upper.set_title(f"Calibration: expected error {100 * found.ece:.2f} %{temperature}")
    upper.set_ylabel("accuracy")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    names = {ACCENT: "accuracy", _TOO_MUCH: "claimed too much", _TOO_LITTLE: "claimed too little"}
    handles = [Patch(color=colour, label=name) for colour, name in names.items()]
    upper.legend(handles=handles, labelcolor=MUTED, loc="upper left", fontsize=8)
    lower.bar(centres, np.array(rows.counts) / max(1, found.images), 0.92 * width, color=MUTED)
    lower.set_ylabel("share")
    lower.set_xlabel("confidence of the answer")
    lower.yaxis.set_major_locator(MaxNLocator(3))
    for axes in (upper, lower):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    lower.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _confusion(axes: Axes, found: Measurement) -> None:
    counts = found.confusion.numpy()
    size = len(counts)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rgba = np.ones((size, size, 4))
    colour = np.where(np.eye(size, dtype=bool)[..., None], _rgb(ACCENT), _rgb(WRONG))
    # The square root lifts single mistakes out of the background.
    rgba[..., :3] = 1 - np.sqrt(share)[..., None] * (1 - colour)
    axes.grid(False)
    axes.imshow(rgba, interpolation="none", aspect="equal")
    axes.tick_params(length=0)
    axes.set_title("Confusion: a row for each true class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    text = 8.5 if size <= 12 else 6.5 if size <= _NUMBERS_UP_TO else 5.0
    if size <= _NAMES_UP_TO:
        names = [shorten(name, 14) for name in found.classes]
        rotate = max(map(len, names)) > max(1, 40 // size)
        axes.set_xticks(range(size), names, fontsize=text, rotation=90 if rotate else 0)
        axes.set_yticks(range(size), names, fontsize=text)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if size <= _NUMBERS_UP_TO:
        edges = np.arange(size + 1) - 0.5
        axes.hlines(edges, -0.5, size - 0.5, color=LINE, lw=0.5)
        axes.vlines(edges, -0.5, size - 0.5, color=LINE, lw=0.5)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                dark = share[row, column] > 0.45
                colour_ = "white" if dark else INK
                axes.text(column, row, str(count), ha="center", va="center", fontsize=text, color=colour_)


def _classes(axes: Axes, found: Measurement) -> None:
    """Accuracy of each class, the best first; of many classes the curve alone."""
    ordered = sorted(found.per_class.items(), key=lambda item: -item[1])
    values = [value for _, value in ordered]
    axes.set_title("Accuracy of each class")
    axes.axhline(found.top1, color=MUTED, lw=1, ls="--", zorder=0.5)
    if len(ordered) <= _NAMES_UP_TO:
        names = [shorten(name, 14) for name, _ in ordered]
        axes.bar(range(len(values)), values, 0.72, color=ACCENT)
        rotate = max(map(len, names)) > max(2, 60 // len(names))
        size = 8.5 if len(names) <= 20 else 6.5
        axes.set_xticks(range(len(names)), names, rotation=90 if rotate else 0, fontsize=size)
        axes.grid(axis="x", visible=False)
        if len(values) <= _NUMBERS_UP_TO:
            for place, value in enumerate(values):
                inside = value > 0.1
                where, colour = ("top", "white") if inside else ("bottom", MUTED)
                height = value - 0.01 if inside else value
                axes.text(place, height, f"{100 * value:.1f}", ha="center", va=where, fontsize=7.5, color=colour)
    else:
        axes.plot(range(1, len(values) + 1), values, color=ACCENT)
        axes.set_xlabel("classes, the best first")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.annotate(" mean", (1, found.top1), xycoords=("axes fraction", "data"), color=MUTED, fontsize=7.5, va="center")


def _robustness(axes: Axes, found: Measurement) -> None:
    """A row for each corruption: the clean accuracy and that at each severity, shaded by what is left."""
    kinds = list(found.corruptions)
    severities = sorted({s for row in found.corruptions.values() for s in row})
    table = np.array([[found.top1, *(found.corruptions[kind][s] for s in severities)] for kind in kinds])
    chance = 1 / len(found.classes)
    left = np.clip((table - chance) / max(found.top1 - chance, 1e-9), 0, 1)
    rgb = 1 - left[..., None] * (1 - _rgb(ACCENT)) * 0.85
    axes.grid(False)
    axes.imshow(rgb, interpolation="none", aspect="auto")
    axes.set_xticks(range(len(severities) + 1), ["clean", *(f"severity {s}" for s in severities)])
    axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axes.tick_params(length=0)
    axes.hlines(np.arange(len(kinds) + 1) - 0.5, -0.5, len(severities) + 0.5, color="white", lw=1.5)
    axes.vlines(np.arange(len(severities) + 2) - 0.5, -0.5, len(kinds) - 0.5, color="white", lw=1.5)
    for side in axes.spines.values():
        side.set_visible(False)
    for (row, column), value in np.ndenumerate(table):
        colour = "white" if left[row, column] > 0.55 else INK
        axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", fontsize=8.5, color=colour)
    mean = found.corrupted
    axes.set_title(f"Accuracy under corruptions, %: {100 * mean:.1f} on average" if mean is not None else "")


def _mistakes(axes: Axes, found: Measurement) -> None:
    """The most frequent mistakes, where no corruptions were measured."""
    pairs = found.confused(10)
    axes.set_title("The most frequent mistakes" if pairs else "No mistakes")
    if not pairs:
        axes.set_axis_off()
        return
    names = [f"{shorten(true, 14)} taken for {shorten(predicted, 14)}" for true, predicted, _ in pairs]
    axes.barh(range(len(pairs)), [count for *_, count in pairs], 0.7, color=WRONG)
    axes.set_yticks(range(len(pairs)), names)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("images")
    axes.grid(axis="y", visible=False)


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255

"""The drawings of runs on masks and boxes: headline curves, confusion of pixels, precision over recall, spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from srattn.explain.canvas import ACCENT, INK, LINE, MUTED, draw, shorten
from srattn.explain.compare_figures import COLOURS, STAND_INS, coloured
from srattn.explain.figures import _series, _shades

_CURVE = (4.4, 2.9)
_NUMBERS_UP_TO = 16
_NAMES_UP_TO = 40
_BINS = 20


def share_curve(history: Sequence[Mapping[str, object]], series: Mapping[str, str], title: str) -> str:
    """Shares over the epochs in per cent, as inline SVG.

    Args:
        series: name in the legend -> key of the records; the last one is the subject and wears the accent.
    """
    found = {name: _series(history, key, 100.0) for name, key in series.items()}

    def paint(axes: Axes) -> None:
        axes.set_title(f"{title}, %")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for place, (name, (epochs, values)) in enumerate(found.items(), start=1):
            if values:
                last = place == len(found)
                style: dict[str, Any] = {"color": ACCENT if last else MUTED, "lw": 2.0 if last else 1.3}
                axes.plot(epochs, values, label=name, marker="o" if len(values) < 3 else "", ms=4, **style)
        seen = [epoch for epochs, _ in found.values() for epoch in epochs]
        if len(set(seen)) == 1:
            axes.set_xlim(seen[0] - 1, seen[0] + 1)
        if seen:
            axes.legend(labelcolor=MUTED)
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(-0.5, bottom), min(100.5, top))

    ends = ", ".join(f"{name} ends at {v[-1]:.4g}" for name, (_, v) in found.items() if v)
    return draw(_CURVE, paint, f"{title} over the epochs, in per cent: {ends or 'no records'}.")


def confusion_shares(counts: np.ndarray, classes: Sequence[str]) -> str:
    """Confusion of pixels (K, K) as inline SVG: in every row the shares, in per cent, of that true class.

    Up to 16 classes carry their numbers, up to 40 their names; beyond that the axes count classes.
    """
    size = len(classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [shorten(name, 14) for name in classes]
    text = 9.0 if size <= 8 else 6.5

    def paint(axes: Axes) -> None:
        axes.grid(False)
        axes.imshow(_shades(share, np.eye(size, dtype=bool)), interpolation="none", aspect="equal")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.tick_params(length=0)
        if size <= _NAMES_UP_TO:
            rotate = max(map(len, names)) > max(1, 30 // size)
            axes.set_xticks(range(size), names, fontsize=text, rotation=90 if rotate else 0)
            axes.set_yticks(range(size), names, fontsize=text)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if size <= _NUMBERS_UP_TO:
            for spine in axes.spines.values():
                spine.set_visible(False)
            edges = np.arange(size + 1) - 0.5
            axes.hlines(edges, -0.5, size - 0.5, color=LINE, lw=0.6)
            axes.vlines(edges, -0.5, size - 0.5, color=LINE, lw=0.6)
            for (row, column), part in np.ndenumerate(share):
                if part > 0:
                    colour = "white" if part > 0.75 else INK  # on a dark cell in either theme
                    words = share_text(float(part))
                    axes.text(column, row, words, ha="center", va="center", fontsize=text, color=colour)

    side = 4.8 if size <= 12 else 6.2
    right, total = int(np.trace(counts)), int(counts.sum())
    told = f"{100 * right / total:.1f} % of all pixels" if total else "no pixel"
    return draw((side, side), paint, f"Confusion matrix of {size} classes in per cent; on the diagonal {told}.")


def share_text(part: float) -> str:
    """Per cent without its sign: `0.9996` -> `>99.9`, `0.0004` -> `<0.1`; 0 and 100 are exact."""
    if part in (0.0, 1.0):
        return f"{100 * part:.0f}"
    return "<0.1" if part < 0.001 else ">99.9" if part > 0.999 else f"{100 * part:.1f}"


def precision_recall(
    curves: Mapping[str, Sequence[float]], mean: np.ndarray | None = None, things: str = "objects"
) -> str:
    """Precision over recall of each class, and their mean as a dashed line, as inline SVG.

    Up to 8 classes have colours, the page's variables --run-0 ... in this order, and stand in the legend.

    Args:
        curves: class -> precisions at equal steps of recall from 0 to 1.
        mean: of more than these, (steps,).
        things: what is found.
    """
    lines = {name: np.asarray(values, dtype=np.float64) for name, values in curves.items() if len(values)}
    few = len(lines) <= COLOURS
    alike = len({len(values) for values in lines.values()}) == 1

    def paint(axes: Axes) -> None:
        axes.set_xlabel(f"recall, %: the share of the {things} that are found")
        axes.set_ylabel("precision, %")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        for number, (name, values) in enumerate(lines.items()):
            style: dict[str, Any] = {"color": STAND_INS[number], "lw": 1.4} if few else {"color": MUTED, "lw": 0.5}
            axes.plot(np.linspace(0, 100, len(values)), 100 * values, label=shorten(name, 24) if few else None, **style)
        if mean is not None or (alike and len(lines) > 1):
            whole = np.mean(list(lines.values()), axis=0) if mean is None else mean
            name = "mean of all" if mean is not None else "mean" if few else f"mean of {len(lines)} classes"
            axes.plot(np.linspace(0, 100, len(whole)), 100 * whole, color=INK, lw=2.4, ls=(0, (4, 1.5)), label=name)
        if lines:
            axes.legend(labelcolor=MUTED, loc="best")

    areas = ", ".join(f"{shorten(name, 24)} {100 * values.mean():.1f}" for name, values in list(lines.items())[:20])
    more = f" and {len(lines) - 20} more" if len(lines) > 20 else ""
    return coloured(draw((5.6, 4.2), paint, f"Precision over recall; mean precision in per cent: {areas}{more}."))


def spread(scores: Sequence[float], what: str, units: tuple[str, str] = ("image", "images")) -> str:
    """How many images, or what `units` says, have which score, as inline SVG."""

    def paint(axes: Axes) -> None:
        axes.set_xlabel(f"{what} of one {units[0]}, %")
        axes.set_ylabel(units[1])
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="x", visible=False)
        axes.hist([100 * score for score in scores], bins=_BINS, range=(0, 100), color=ACCENT, rwidth=0.86)
        axes.axvline(100 * float(np.median(scores)), color=INK, lw=1.2, ls="--", label="median")
        axes.legend(labelcolor=MUTED)
        axes.set_xlim(0, 100)

    low, middle, high = (100 * float(each) for each in np.quantile(scores, [0, 0.5, 1]))
    told = f"from {low:.1f} to {high:.1f}, half of them below {middle:.1f}"
    return draw((5.6, 2.4), paint, f"{what} of {len(scores)} {units[1]} in per cent: {told}.")

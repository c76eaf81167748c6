"""The drawings of runs on depths: errors over the epochs and over the distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from srattn.explain.canvas import ACCENT, draw
from srattn.explain.figures import _series

_SIZE = (4.4, 2.9)


def error_curve(history: Sequence[Mapping[str, object]]) -> str:
    """The validation RMSE over the epochs, as inline SVG."""
    epochs, values = _series(history, "val_rmse", 1.0)

    def paint(axes: Axes) -> None:
        axes.set_title("Validation RMSE, m")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.plot(epochs, values, color=ACCENT, lw=2.0, marker="o" if len(values) < 3 else "", ms=4)
        if len(set(epochs)) == 1:
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.set_ylim(bottom=0)

    told = f"ends at {values[-1]:.3g}" if values else "no records"
    return draw(_SIZE, paint, f"Validation RMSE over the epochs, in metres: {told}.")


def distance_bars(edges: Sequence[float], values: Sequence[float | None], title: str, unit: str) -> str:
    """A figure of each step of distance as a bar as wide as the step, as inline SVG.

    Args:
        edges: metres, K + 1 of them.
        values: K of them, None where there is no pixel.
    """

    def paint(axes: Axes) -> None:
        axes.set_title(title)
        axes.set_xlabel("true distance, m")
        axes.grid(axis="x", visible=False)
        for low, high, value in zip(edges, edges[1:], values, strict=False):
            if value is not None:
                room = 0.06 * (high - low)
                axes.bar(low + room, value, high - low - 2 * room, align="edge", color=ACCENT)
        axes.set_xlim(edges[0], edges[-1])

    known = [
        f"{low:g} to {high:g} m {value:.3g} {unit}"
        for low, high, value in zip(edges, edges[1:], values, strict=False)
        if value is not None
    ]
    return draw(_SIZE, paint, f"{title.partition(',')[0]} by true distance: {'; '.join(known) or 'nothing is known'}.")

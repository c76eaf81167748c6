"""The pictures of the searches before a run: the loss over the learning rate, speed and memory over the batch."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from srattn.engine.batch_size import BatchSearch
from srattn.engine.tune import LRRange
from srattn.explain.canvas import shorten
from srattn.explain.paper import ACCENT, INK, MUTED, WRONG, sheet

_DOTS = "#b3b1ab"


def lr_picture(path: Path, found: LRRange, title: str) -> None:
    """Loss over rate, the suggestion marked; `path` must not exist yet (see `srattn.files.atomic_path`)."""
    with sheet(path, (8.0, 4.8)) as figure:
        axes = figure.add_subplot()
        axes.set_title(shorten(title, 90))
        axes.plot(found.rates, found.losses[: len(found.rates)], ".", color=_DOTS, ms=4, label="each step")
        axes.plot(found.rates, found.smoothed, color=ACCENT, label="smoothed")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # not in the notation of maths
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        seen = found.smoothed
        low, high = min(seen), max(seen[: max(1, len(seen) // 2)])
        # What diverged would press the rest of the curve flat.
        axes.set_ylim(low - 0.15 * (high - low + 1e-6), high + 0.5 * (high - low) + 1e-6)
        for rate, name, side in ((found.steepest, "falls fastest", "right"), (found.best, "lowest", "left")):
            if rate is not None:
                value = seen[found.rates.index(rate)]
                axes.plot([rate], [value], "o", color=INK, ms=4)
                axes.annotate(f"{name}, {rate:.2g}", (rate, value), (-8 if side == "right" else 6, -12), ha=side,
                              textcoords="offset points", fontsize=8, color=MUTED)  # fmt: skip
        if found.suggestion is not None:
            axes.axvline(found.suggestion, color=WRONG, lw=1.2, ls="--")
            axes.annotate(f" --lr {found.suggestion:g}", (found.suggestion, 0.97), color=WRONG, va="top",
                          xycoords=("data", "axes fraction"))  # fmt: skip
        axes.legend(labelcolor=MUTED, loc="upper left" if found.suggestion is None else "lower left")


def batch_picture(path: Path, found: BatchSearch, title: str) -> None:
    """Images a second and peak memory over the size of the batch."""
    sizes = [trial.batch for trial in sorted(found.trials, key=lambda trial: trial.batch)]
    with sheet(path, (9.0, 4.2)) as figure:
        figure.suptitle(shorten(title, 100), x=0.012, ha="left", fontsize=10.5, color=INK)
        left, right = figure.subplots(1, 2)
        ordered = sorted(found.trials, key=lambda trial: trial.batch)
        left.plot(sizes, [trial.images_per_second for trial in ordered], "o-", color=ACCENT, ms=4)
        left.set_title("Images a second")
        left.axvline(found.recommended, color=WRONG, lw=1.2, ls="--")
        side = "left" if found.recommended**2 <= sizes[0] * sizes[-1] else "right"
        left.annotate(f" --batch_size {found.recommended} ", (found.recommended, 0.04), color=WRONG, ha=side,
                      xycoords=("data", "axes fraction"))  # fmt: skip
        left.set_ylim(bottom=0)
        right.plot(sizes, [trial.peak / 1e9 for trial in ordered], "o-", color=ACCENT, ms=4, label="measured")
        if not found.measured:
            ends = ([sizes[-1], found.largest], [ordered[-1].peak / 1e9, found.limit / 1e9])
            right.plot(*ends, color=ACCENT, lw=1, ls=":", label="by its growth")
        right.axhline(found.limit / 1e9, color=WRONG, lw=1.2, ls="--", label="limit")
        right.set_title("Peak memory, GB")
        right.set_ylim(bottom=0)
        right.legend(labelcolor=MUTED, loc="center left")
        for axes in (left, right):
            _batches(axes, sizes)


def _batches(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlabel("images in a batch")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes)

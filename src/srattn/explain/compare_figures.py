"""Drawings of several runs over each other: a colour and a stroke for each, hidden and shown by the page's legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from srattn.explain.canvas import LINE, MUTED, draw, shorten

COLOURS = 8
# Stand-in colours as in canvas.py, swapped for the page's variables --run-0 ... in the finished drawing.
STAND_INS = [f"#0{index}0b0c" for index in range(COLOURS)]
_STROKES: list[Any] = ["-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2))]
_SVG_DASHES = ["", "9 4", "2 3", "11 4 2 4"]
_MARKS = ["o", "s", "^", "D"]
_SIZE = (4.6, 3.0)


def variable(number: int) -> str:
    """The CSS variable with the colour of a run."""
    return f"--run-{number % COLOURS}"


def svg_dash(number: int) -> str:
    """The stroke of a run, as SVG writes it; a second round of colours has another one."""
    return _SVG_DASHES[number // COLOURS % len(_SVG_DASHES)]


def overlay(
    series: Sequence[tuple[Sequence[float], Sequence[float]]], names: Sequence[str], title: str, by_time: bool
) -> str:
    """The lines of all runs as inline SVG; the group of run N has an id that ends in `run-N`."""

    def paint(axes: Axes) -> None:
        axes.set_title(title)
        axes.set_xlabel("minutes of training" if by_time else "epoch")
        if not by_time:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for number, (xs, ys) in enumerate(series):
            if xs:
                (line,) = axes.plot(xs, ys, color=STAND_INS[number % COLOURS], ls=_stroke(number), lw=1.7)
                line.set_gid(f"run-{number}")
                if len(xs) < 3:
                    line.set_marker(_MARKS[number // COLOURS % len(_MARKS)])
                    line.set_markersize(4)
        seen = {x for xs, _ in series for x in xs}
        if len(seen) == 1:
            only = seen.pop()
            axes.set_xlim(only - 1, only + 1)
        if ", %" in title:
            axes.set_ylim(top=min(100.5, axes.get_ylim()[1]))

    ends = ", ".join(f"{name} ends at {ys[-1]:.4g}" for (_, ys), name in zip(series, names, strict=True) if ys)
    return coloured(draw(_SIZE, paint, f"{title}: {ends or 'no records'}."))


def per_class(
    rows: Sequence[Mapping[str, Any]],
    numbers: Sequence[int],
    names: Sequence[str],
    what: str = "accuracy",
    share: bool = True,
) -> str:
    """A line a class with a point for each run at its figure `what`, in per cent of a share; as inline SVG."""
    scale, unit = (100, ", %") if share else (1, "")

    def paint(axes: Axes) -> None:
        axes.set_xlabel(f"{what} of the class{unit}")
        axes.set_yticks(range(len(rows)), [shorten(str(row["name"]), 22) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        for at, row in enumerate(rows):
            known = [scale * value for value in row["values"] if value is not None]
            if known:
                axes.plot([min(known), max(known)], [at, at], color=LINE, lw=2.5, zorder=1)
        for place, number in enumerate(numbers):
            found = [(scale * r["values"][place], at) for at, r in enumerate(rows) if r["values"][place] is not None]
            if found:
                xs, ys = zip(*found, strict=True)
                mark = _MARKS[number // COLOURS % len(_MARKS)]
                (dots,) = axes.plot(xs, ys, ls="", marker=mark, ms=5, color=STAND_INS[number % COLOURS], zorder=2)
                dots.set_gid(f"run-{number}")
        axes.spines["left"].set_visible(False)
        axes.xaxis.label.set_color(MUTED)

    height = 0.9 + 0.24 * len(rows)
    worst = rows[0]
    text = f"{what[0].upper()}{what[1:]} of {len(rows)} classes in {len(names)} runs; {worst['name']} differs most, by "
    return coloured(draw((5.0, height), paint, f"{text}{scale * worst['spread']:.3g}{' points' if share else ''}."))


def _stroke(number: int) -> Any:
    return _STROKES[number // COLOURS % len(_STROKES)]


def coloured(svg: str) -> str:
    """A drawing with the variables of the page where the stand-in colours were."""
    for number, colour in enumerate(STAND_INS):
        svg = svg.replace(colour, f"var(--run-{number})")
    return svg

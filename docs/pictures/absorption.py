"""Draws the picture of the absorbed projections: absorption.svg beside this file.

    python docs/pictures/absorption.py

Every bar is a matrix, as tall as it has rows and as wide as it has columns, of the first stage of pvt_v2_b0 at 224
pixels: N = 3,136 tokens (drawn shorter), M = 49 keys, C = 32 channels.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

INK, MUTED, LINE, ACCENT, CARD = "#1d2022", "#5d6468", "#c9c6c0", "#0d7a70", "#fdfcfa"
LARGE = "#c2410c"
TALL, LOW, WIDE = 190, 46, 46  # N, M and C in the picture
WIDTH, HEIGHT = 1200, 470


def matrix(axes: Axes, x: float, y: float, width: float, height: float, name: str, colour: str, shape: str) -> None:
    """A bar with its middle at (x, y), its name inside or above and its shape below."""
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(Rectangle(corner, width, height, facecolor=colour, edgecolor=INK, lw=1, alpha=0.9))
    axes.text(x, y - height / 2 - 15, name, fontsize=15, color=INK, ha="center", va="center")
    axes.text(x, y + height / 2 + 15, shape, fontsize=12, color=MUTED, ha="center", va="center")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = MUTED) -> None:
    style = "-|>,head_length=6,head_width=3.2"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle=style, color=colour, lw=1.4, shrinkA=4, shrinkB=4))


def sign(axes: Axes, x: float, y: float, words: str) -> None:
    axes.text(x, y, words, fontsize=19, color=INK, ha="center", va="center")


def left(axes: Axes, x: float) -> None:
    """Projected queries."""
    axes.text(x + 250, 40, "as written: every token is projected", fontsize=17, color=INK, ha="center")
    matrix(axes, x + 60, 190, WIDE, TALL, "x", "#dbe7e5", "N x C")
    sign(axes, x + 105, 190, "·")
    matrix(axes, x + 150, 190, WIDE, WIDE, "$W^Q$", "#f1e3d3", "C x C")
    sign(axes, x + 200, 190, "=")
    matrix(axes, x + 250, 190, WIDE, TALL, "queries", LARGE, "N x C, written")
    matrix(axes, x + 60, 390, WIDE, LOW, "z = SR(x)", "#dbe7e5", "M x C")
    sign(axes, x + 105, 390, "·")
    matrix(axes, x + 150, 390, WIDE, WIDE, "$W^K$", "#f1e3d3", "C x C")
    sign(axes, x + 200, 390, "=")
    matrix(axes, x + 250, 390, WIDE, LOW, "keys", ACCENT, "M x C")
    matrix(axes, x + 420, 190, LOW, TALL, "scores", "#9bb8b4", "N x M")
    arrow(axes, (x + 280, 190), (x + 392, 190))
    arrow(axes, (x + 280, 380), (x + 400, 300))


def right(axes: Axes, x: float) -> None:
    """Keys that have taken the projection over."""
    axes.text(x + 250, 40, "absorbed: the few keys take $W^Q$ over", fontsize=17, color=INK, ha="center")
    matrix(axes, x + 60, 190, WIDE, TALL, "x", "#dbe7e5", "N x C")
    matrix(axes, x + 60, 390, WIDE, LOW, "z = SR(x)", "#dbe7e5", "M x C")
    sign(axes, x + 112, 390, "·")
    matrix(axes, x + 165, 390, WIDE, WIDE, "$W^K {W^Q}^T$", "#f1e3d3", "C x C")
    sign(axes, x + 215, 390, "=")
    matrix(axes, x + 270, 390, WIDE, LOW, "keys", ACCENT, "M x C, absorbed")
    matrix(axes, x + 420, 190, LOW, TALL, "scores", "#9bb8b4", "N x M")
    arrow(axes, (x + 90, 190), (x + 392, 190))
    arrow(axes, (x + 300, 380), (x + 400, 300))
    axes.text(x + 240, 165, "no queries are written", fontsize=13, color=MUTED, ha="center")


def main() -> None:
    matplotlib.rcParams["svg.hashsalt"] = "srattn"
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), facecolor=CARD)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.axis("off")
    left(axes, 40)
    right(axes, 660)
    axes.plot([WIDTH / 2] * 2, [60, HEIGHT - 30], color=LINE, lw=1)
    path = Path(__file__).with_suffix(".svg")
    FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})


if __name__ == "__main__":
    main()

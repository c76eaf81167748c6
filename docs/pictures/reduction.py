"""Draws the README's picture of the spatial reduction: reduction.svg and reduction.png beside this file.

    python docs/pictures/reduction.py

Needs matplotlib and numpy. Everything shown is computed: the map is a small landscape made of formulas, its tokens are
colours, a key is the mean colour of its block, and the weights are a softmax over likeness of colour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Outline

SIDE, RATIO = 12, 4  # tokens on a side, and R
QUERY = (4, 8)  # row, column
WIDTH, HEIGHT = 1200, 560
INK, MUTED, LINE, ACCENT, CARD = "#1d2022", "#5d6468", "#c9c6c0", "#0d7a70", "#fdfcfa"
QUERY_COLOUR = "#c2410c"


def landscape(side: int) -> np.ndarray:
    """(side, side, 3) in [0, 1]: sky, sun, two hills and a lake."""
    y, x = np.mgrid[0:side, 0:side] / (side - 1)
    image = np.empty((side, side, 3))
    for channel, (top, bottom) in enumerate(((0.42, 0.93), (0.64, 0.86), (0.83, 0.74))):
        image[..., channel] = top + (bottom - top) * (y / 0.62).clip(0, 1)
    sun = np.exp(-(((x - 0.72) ** 2 + (y - 0.36) ** 2) / 0.012))[..., None]
    image = image * (1 - sun) + np.array([1.0, 0.80, 0.32]) * sun
    for base, swing, phase, colour in ((0.56, 0.12, 0.4, (0.42, 0.56, 0.60)), (0.70, 0.10, 2.6, (0.25, 0.45, 0.36))):
        below = y > base + swing * np.sin(5.2 * x + phase)
        image[below] = np.array(colour) * (1.12 - 0.25 * x[below, None])
    lake = y > 0.88
    image[lake] = np.array([0.36, 0.62, 0.74]) * (0.92 + 0.16 * x[lake, None])
    return image.clip(0, 1)


def blocks(image: np.ndarray, ratio: int) -> np.ndarray:
    """The mean of each ratio x ratio block."""
    size = image.shape[0] // ratio
    return image.reshape(size, ratio, size, ratio, -1).mean(axis=(1, 3))


def weights(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(N, M): softmax over the likeness of colours."""
    distance = ((queries[:, None] - keys[None]) ** 2).sum(axis=-1)
    scores = np.exp(-distance / 0.06)
    return scores / scores.sum(axis=1, keepdims=True)


def text(axes: Axes, x: float, y: float, words: str, size: float = 17, colour: str = INK, **options: Any) -> None:
    axes.text(x, y, words, fontsize=size, color=colour, **{"ha": "center", "va": "center", **options})


def tokens(axes: Axes, colours: np.ndarray, x: float, y: float, cell: float, gap: float = 1.5) -> None:
    """A grid of tokens with its top left corner at (x, y)."""
    for (row, column), _ in np.ndenumerate(colours[..., 0]):
        corner = (x + column * cell + gap / 2, y + row * cell + gap / 2)
        axes.add_patch(Rectangle(corner, cell - gap, cell - gap, facecolor=colours[row, column], lw=0))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = MUTED) -> None:
    style = "-|>,head_length=6,head_width=3.2"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle=style, color=colour, lw=1.4, shrinkA=0, shrinkB=0))


def box(axes: Axes, x: float, y: float, width: float, height: float, words: str) -> None:
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=8", facecolor="#e3f1ef")
    shape.set(edgecolor=ACCENT, lw=1.3)
    axes.add_patch(shape)
    text(axes, x + width / 2, y + height / 2 + 1, words, 20, ACCENT)


def paint(axes: Axes) -> None:
    card = FancyBboxPatch((4, 4), WIDTH - 8, HEIGHT - 8, boxstyle="round,pad=0,rounding_size=18", facecolor=CARD)
    card.set(edgecolor=LINE, lw=1.2)
    axes.add_patch(card)

    image = landscape(SIDE)
    few = blocks(image, RATIO)
    flat, keys = image.reshape(-1, 3), few.reshape(-1, 3)
    sparse, dense = weights(flat, keys), weights(flat, flat)
    query = QUERY[0] * SIDE + QUERY[1]

    # The feature map, its blocks, one query.
    cell, left, top = 22.0, 52.0, 148.0
    end = SIDE * cell
    tokens(axes, image, left, top, cell)
    for line in range(0, SIDE + 1, RATIO):
        offset = line * cell
        axes.plot([left + offset] * 2, [top, top + end], color=INK, lw=1.5, solid_capstyle="round")
        axes.plot([left, left + end], [top + offset] * 2, color=INK, lw=1.5, solid_capstyle="round")
    text(axes, left, 52, "Every token asks", 23, weight="bold", ha="left")
    text(axes, left, 84, "$H\\times W$ queries", 18, MUTED, ha="left")
    query_x, query_y = left + (QUERY[1] + 0.5) * cell, top + (QUERY[0] + 0.5) * cell

    # One block, laid end to end.
    strip_x, strip_y, strip = 372.0, 372.0, 11.5
    row, column = SIDE // RATIO - 1, SIDE // RATIO - 1
    block = image[row * RATIO : (row + 1) * RATIO, column * RATIO : (column + 1) * RATIO].reshape(1, -1, 3)
    tokens(axes, block, strip_x, strip_y, strip, gap=1.0)
    axes.add_patch(Rectangle((strip_x, strip_y), strip * RATIO**2, strip, fill=False, edgecolor=INK, lw=1.2))
    text(axes, strip_x + strip * RATIO**2 / 2, strip_y + 36, "$R\\times R$ block, end to end: $R^2C$", 16, MUTED)
    arrow(axes, (left + end + 8, strip_y + strip / 2), (strip_x - 6, strip_y + strip / 2))
    middle = strip_y + strip / 2
    first = strip_x + strip * RATIO**2
    arrow(axes, (first + 7, middle), (first + 34, middle))
    box(axes, first + 38, middle - 24, 62, 48, "$W^S$")
    arrow(axes, (first + 103, middle), (first + 126, middle))
    box(axes, first + 130, middle - 24, 76, 48, "Norm")

    # The few keys and values.
    key, key_x, key_y = 44.0, 682.0, 148.0
    span = key * few.shape[0]
    elbow = Outline(
        [(first + 210, middle), (key_x + span * 5 / 6, middle), (key_x + span * 5 / 6, key_y + span + 8)],
        [Outline.MOVETO, Outline.CURVE3, Outline.CURVE3],
    )
    style = "-|>,head_length=6,head_width=3.2"
    axes.add_patch(FancyArrowPatch(path=elbow, arrowstyle=style, color=MUTED, lw=1.4))
    tokens(axes, few, key_x, key_y, key, gap=3)
    text(axes, key_x, 52, "few keys answer", 23, weight="bold", ha="left")
    text(axes, key_x, 84, "$HW/R^2$ keys and values", 18, MUTED, ha="left")

    # One query's attention: a line to every key, as thick as its weight.
    for index, weight in enumerate(sparse[query]):
        target = (key_x + (index % few.shape[0] + 0.5) * key, key_y + (index // few.shape[0] + 0.5) * key)
        curve = Outline(
            [(query_x, query_y), (query_x + 190, query_y - 96), (target[0] - 200, target[1] - 70), target],
            [Outline.MOVETO, Outline.CURVE4, Outline.CURVE4, Outline.CURVE4],
        )
        strength = float(weight / sparse[query].max())
        axes.add_patch(
            PathPatch(curve, fill=False, edgecolor=ACCENT, lw=0.8 + 4.2 * strength, alpha=0.35 + 0.55 * strength)
        )
        axes.plot(*target, "o", color=ACCENT, ms=3.5 + 4 * strength, mec="white", mew=1)
    corner = (query_x - cell / 2 - 1, query_y - cell / 2 - 1)
    axes.add_patch(Rectangle(corner, cell + 2, cell + 2, fill=False, edgecolor="white", lw=5, zorder=5))
    axes.add_patch(Rectangle(corner, cell + 2, cell + 2, fill=False, edgecolor=QUERY_COLOUR, lw=2.8, zorder=6))

    # The two tables of scores, to scale.
    table, table_x, table_y = 204.0, 948.0, 148.0
    text(axes, table_x, 52, "far fewer scores", 23, weight="bold", ha="left")
    text(axes, table_x, 84, "to scale, $R=4$", 18, MUTED, ha="left")
    area = (table_x, table_x + table, table_y + table, table_y)
    axes.imshow(np.sqrt(dense / dense.max()), cmap="Greys", vmin=0, vmax=1.3, extent=area, aspect="auto", zorder=2)
    axes.add_patch(
        Rectangle((table_x, table_y), table, table, fill=False, edgecolor=MUTED, lw=1.2, ls=(0, (4, 3)), zorder=3)
    )
    narrow = table / RATIO**2
    ours = np.ones((*sparse.shape, 4))
    ours[..., :3] = np.array([13, 122, 112]) / 255
    ours[..., 3] = 0.30 + 0.70 * np.sqrt(sparse / sparse.max())
    axes.add_patch(Rectangle((table_x, table_y), narrow, table, facecolor="white", lw=0, zorder=3))
    strip_area = (table_x, table_x + narrow, table_y + table, table_y)
    axes.imshow(ours, extent=strip_area, aspect="auto", interpolation="none", zorder=4)
    axes.add_patch(Rectangle((table_x, table_y), narrow, table, fill=False, edgecolor=ACCENT, lw=1.8, zorder=5))
    height = table_y + (query + 0.5) * table / SIDE**2
    axes.plot([table_x - 12, table_x - 2], [height] * 2, color=QUERY_COLOUR, lw=2.6)
    below = table_y + table
    text(axes, table_x + table, below + 22, "dense: $(HW)^2$", 18, MUTED, ha="right")
    text(axes, table_x, below + 54, "reduced: $(HW)^2/R^2$", 21, ACCENT, ha="left")

    head = (
        r"$\mathrm{head}_j=\mathrm{softmax}\left(QW_j^Q\,(\mathrm{SR}(K)\,W_j^K)^{\top}/\sqrt{d}\right)"
        r"\,\mathrm{SR}(V)\,W_j^V$"
    )
    text(axes, left, 500, head, 20, INK, ha="left")
    text(axes, WIDTH - left, 500, r"$\mathrm{SR}(x)=\mathrm{Norm}(\mathrm{Reshape}(x,R)\,W^S)$", 20, INK, ha="right")

    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.set_axis_off()


def main() -> None:
    folder = Path(__file__).resolve().parent
    style: dict[Any, Any] = {"svg.hashsalt": "srattn", "mathtext.fontset": "dejavusans", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        axes = figure.add_axes((0, 0, 1, 1))
        paint(axes)
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure).print_svg(folder / "reduction.svg", metadata={"Date": None, "Creator": None})
        figure.set_dpi(108)
        FigureCanvasAgg(figure).print_png(folder / "reduction.png", metadata={"Software": None})


if __name__ == "__main__":
    main()

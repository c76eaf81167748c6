"""Matplotlib without its global state, drawn into picture files on white."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from srattn.explain.style import style

INK, MUTED, LINE, ACCENT, WRONG = "#1d2022", "#5d6468", "#dddbd6", "#0d7a70", "#b8431f"
_DPI = 150


@contextmanager
def sheet(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure of `size` inches to paint on; it is written to `path` (.png, .pdf, .svg ...) when the block ends.

    Characters that the font lacks are drawn as boxes, and said to nobody.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style(INK, MUTED, LINE))
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=_DPI)

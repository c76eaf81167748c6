"""Matplotlib without its global state, drawn into SVG that lives inside a page and takes the page's colours."""

from __future__ import annotations

import io
import itertools
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from srattn.explain.style import style

# Stand-in colours: exact values that nothing else uses, swapped for the page's CSS variables in the finished SVG, so
# that one drawing serves light, dark and print.
INK, MUTED, LINE, ACCENT = "#010203", "#020304", "#030405", "#040506"
_VARIABLES = dict(zip((INK, MUTED, LINE, ACCENT), ("ink", "muted", "line", "accent"), strict=True))

_STYLE: dict[Any, Any] = style(INK, MUTED, LINE) | {
    "axes.titlesize": 9.5,
    "axes.titlepad": 10.0,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.minor.visible": False,
    "svg.fonttype": "none",  # text stays text: it can be found, read aloud and set in the page's font
    "svg.hashsalt": "srattn",
}

_numbers = itertools.count(1)


@contextmanager
def _styled() -> Iterator[None]:
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # The browser draws the text in its own fonts; matplotlib only measures it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def draw(size: tuple[float, float], paint: Callable[[Axes], None], description: str) -> str:
    """One inline `<svg>` of `size` in inches, painted by `paint` on a single pair of axes.

    `description` is what a screen reader says instead.
    """
    with _styled():
        figure = Figure(figsize=size, layout="constrained")
        canvas = FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        canvas.print_svg(buffer)
    return _inline(buffer.getvalue(), description)


def _inline(svg: str, description: str) -> str:
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None, "matplotlib wrote an SVG without a viewBox"
    body = body.replace("xlink:href=", "href=")
    # Several drawings share a page, and ids must be unique in it.
    prefix = f"f{next(_numbers)}-"
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r"url\(#", f"url(#{prefix}", body)
    body = re.sub(r'href="#', f'href="#{prefix}', body)
    body = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*", _font, body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg class="figure" role="img" {view_box[0]} aria-label="{escape(description)}">{body}'


def _font(match: re.Match[str]) -> str:
    weight = f"; font-weight: {match[1]}" if match[1] else ""
    return f"font-size: {match[2]}px{weight}"


def shorten(text: str, width: int) -> str:
    """One printable line of at most `width` characters, cut in the middle: the ends of names tell them apart."""
    line = "".join(" " if unicodedata.category(char).startswith(("C", "Z")) else char for char in text)
    line = " ".join(line.split()) or "(no name)"
    if len(line) <= width:
        return line
    head = (width - 1 + 1) // 2
    tail = width - 1 - head
    return line[:head] + "…" + (line[-tail:] if tail else "")

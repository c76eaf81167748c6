"""Letters in pictures that are drawn pixel by pixel."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
from PIL import ImageFont

from srattn.explain.canvas import shorten

INK, MUTED, PAPER = "#1d2022", "#5d6468", "#ffffff"


@functools.lru_cache(maxsize=16)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The sans-serif font that matplotlib brings along, `size` in pixels."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """One printable line of `text` that is at most `width` pixels wide, cut in the middle; empty if not even "…" is."""
    line = shorten(text, 200)
    if font.getlength(line) <= width:
        return line
    low, high = 0, len(line)  # letters: so many fit, so many do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if font.getlength(shorten(text, middle)) <= width else (low, middle)
    return shorten(text, low) if low else ""

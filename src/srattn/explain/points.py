"""Points of a picture, given by a person, and where they are in what a model sees of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError


@dataclass(frozen=True)
class Asked:
    """A point as it was asked for: whole numbers are pixels, others fractions of width and height."""

    x: float
    y: float
    fraction: bool
    text: str


def read_point(text: str) -> Asked:
    """`"120,80"` is a pixel, `"0.5,0.25"` fractions of the width and of the height.

    Raises:
        SrattnError: it is neither.
    """
    parts = [part.strip() for part in text.split(",")]
    hint = "a point is X,Y: whole numbers are pixels, as in 120,80, others fractions, as in 0.5,0.25"
    if len(parts) != 2:
        raise SrattnError(f"{hint}; got {text!r}")
    try:
        if all(part.lstrip("-").isdecimal() for part in parts):
            return Asked(int(parts[0]), int(parts[1]), False, text)
        x, y = float(parts[0]), float(parts[1])
    except ValueError:
        raise SrattnError(f"{hint}; got {text!r}") from None
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise SrattnError(f"fractions of width and height are from 0 to 1, got {text!r}; whole numbers are pixels")
    return Asked(x, y, True, text)


def seen_point(asked: Asked, preprocess: Preprocess, width: int, height: int, name: str) -> tuple[int, int]:
    """The pixel (x, y) of what the model sees, for a point of a picture of that size.

    Raises:
        SrattnError: the point lies outside the picture, or in what preprocessing cuts off.
    """
    x, y = asked.x, asked.y
    if asked.fraction:
        x, y = min(math.floor(x * width), width - 1), min(math.floor(y * height), height - 1)
    if not (0 <= x < width and 0 <= y < height):
        raise SrattnError(f"point {asked.text} lies outside {name}, which is {width} pixels wide and {height} high")
    left, top, right, bottom = preprocess.part(height, width)
    # The middle of the pixel, so that it falls into the part or out of it as a whole.
    along, down = (x + 0.5 - left) / (right - left), (y + 0.5 - top) / (bottom - top)
    if not (0 <= along < 1 and 0 <= down < 1):
        raise SrattnError(
            f"point {asked.text} of {name} is cut off before the model sees the picture: of its {width}x{height} "
            f"pixels, x from {math.ceil(left)} to {math.floor(right) - 1} and y from {math.ceil(top)} to "
            f"{math.floor(bottom) - 1} are left"
        )
    rows, columns = preprocess.size
    corner = (0, 0)
    if preprocess.fit in ("shorter", "inside"):
        rows, columns = preprocess.sides(height, width)
        corner = preprocess.corner(height, width)
    return corner[1] + math.floor(along * columns), corner[0] + math.floor(down * rows)

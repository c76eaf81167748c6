"""How sizes of images are written on the command line: a side in pixels, or HEIGHTxWIDTH."""

from __future__ import annotations

from srattn.errors import SrattnError


def read_size(text: str) -> tuple[int, int]:
    """(height, width) of "224" or "200x224"."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 10 and int(side) > 0 for side in sides):
        raise SrattnError(f"--size is a side in pixels, or HEIGHTxWIDTH, got {text!r}")
    return int(sides[0]), int(sides[-1])

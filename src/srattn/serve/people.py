"""Boxes of people as they are written in an address."""

from __future__ import annotations

import math

from srattn.serve.fault import Fault


def boxes_of(text: str, most: int) -> list[list[float]]:
    """`10,20,110,220;150,15,240,230` as boxes x1, y1, x2, y2.

    Raises:
        Fault: 422 for other words, or more than `most` boxes.
    """
    parts = [part for part in text.split(";") if part.strip()]
    if not 0 < len(parts) <= most:
        raise Fault(422, f"people: from one to {most} boxes, got {len(parts)}")
    try:
        boxes = [[float(number) for number in part.split(",")] for part in parts]
    except ValueError:
        boxes = []
    if not boxes or not all(len(box) == 4 and all(map(math.isfinite, box)) for box in boxes):
        raise Fault(422, "people: boxes x1,y1,x2,y2 in pixels of the picture, several apart by ;")
    return boxes

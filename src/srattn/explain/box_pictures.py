"""Boxes over images, with labels that stay inside of the picture and can be read."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from srattn.data.palette import UNCOUNTED, Colour, Palette, standard_palette
from srattn.errors import SrattnError
from srattn.explain.lettering import fitted, font_of
from srattn.explain.overlay import rgb_of

_SMALLEST_TEXT, _LARGEST_TEXT = 10, 28
_DASH = 5  # pixels, of a line as wide as one


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    classes: Sequence[str],
    palette: Palette | None = None,
    scores: bool = True,
    ignored: Tensor | None = None,
) -> Image.Image:
    """The image with boxes in the colours of their classes, the surest on top.

    Args:
        image: uint8 (3, H, W) or (1, H, W).
        boxes: (N, 6): x1, y1, x2, y2 in pixels, the image from 0 to its width and height, score, class; boxes of class
            -1 are padding.
        classes: their names.
        palette: by default the standard one.
        scores: write the score beside the name.
        ignored: bool (N,), which of the boxes count nowhere: they are dashed in grey, below the others, and say so.

    Raises:
        SrattnError: boxes of another shape, numbers that are not finite, or a class without a name or colour.
    """
    picture = rgb_of(image)
    palette = standard_palette(max(1, len(classes))) if palette is None else palette
    if boxes.ndim != 2 or boxes.shape[1] != 6:
        raise SrattnError(f"boxes must be (N, 6): x1, y1, x2, y2, score, class; got {tuple(boxes.shape)}")
    if not boxes.isfinite().all():
        raise SrattnError("boxes must be finite numbers, got one that is not")
    every, uncounted = boxes.detach().cpu().double().tolist(), [False] * len(boxes)
    if ignored is not None:
        uncounted = ignored.tolist()
    rows = [(*row, out) for row, out in zip(every, uncounted, strict=True) if row[5] >= 0]
    for row in rows:
        if row[5] >= min(len(classes), len(palette)):
            raise SrattnError(
                f"a box has class {row[5]:g}, there are {len(classes)} names and {len(palette)} colours of classes"
            )
    least = min(picture.size)
    line = max(1, round(least / 200))
    size = min(_LARGEST_TEXT, max(_SMALLEST_TEXT, round(least / 30)))
    brush = ImageDraw.Draw(picture)
    for x1, y1, x2, y2, score, number, out in sorted(rows, key=lambda row: (not row[6], row[4])):
        colour = UNCOUNTED if out else palette.colours[int(number)]
        # Pixels whose centres the box covers, those beyond the border left out, and at least one.
        left, right = _between(x1, x2, picture.width)
        top, bottom = _between(y1, y2, picture.height)
        (_dashed if out else _outlined)(brush, (left, top, right, bottom), colour, line)
        words = f"{classes[int(number)]}, ignored" if out else classes[int(number)]
        words = f"{words} {score:.2f}" if scores else words
        _label(brush, picture.size, (left, top), words, colour, size)
    return picture


def _outlined(brush: ImageDraw.ImageDraw, place: tuple[int, int, int, int], colour: Colour, line: int) -> None:
    brush.rectangle(place, outline=colour, width=line)


def _dashed(brush: ImageDraw.ImageDraw, place: tuple[int, int, int, int], colour: Colour, line: int) -> None:
    """As `_outlined`; on white, so that the dashes are seen on any ground."""
    left, top, right, bottom = place
    _outlined(brush, place, (255, 255, 255), line)
    dash = _DASH * line
    for x in range(left, right + 1, 2 * dash):
        for y in (top, max(top, bottom - line + 1)):
            brush.rectangle((x, y, min(x + dash - 1, right), min(y + line - 1, bottom)), fill=colour)
    for y in range(top, bottom + 1, 2 * dash):
        for x in (left, max(left, right - line + 1)):
            brush.rectangle((x, y, min(x + line - 1, right), min(y + dash - 1, bottom)), fill=colour)


def _between(low: float, high: float, size: int) -> tuple[int, int]:
    """First and last pixel of a side of the box."""
    first = min(size - 1, max(0, round(low)))
    return first, min(size - 1, max(first, round(high) - 1))


def label_place(size: tuple[int, int], corner: tuple[int, int], label: tuple[int, int]) -> tuple[int, int] | None:
    """Where a label (width, height) stands for a box with this upper left corner; None if it is larger than `size`.

    Above the box where there is room, else inside of it; moved to the left as far as the border demands.
    """
    if label[0] > size[0] or label[1] > size[1]:
        return None
    x = max(0, min(corner[0], size[0] - label[0]))
    y = corner[1] - label[1] if corner[1] >= label[1] else corner[1]
    return x, max(0, min(y, size[1] - label[1]))


def _label(
    brush: ImageDraw.ImageDraw, size: tuple[int, int], corner: tuple[int, int], words: str, colour: Colour, text: int
) -> None:
    font = font_of(text)
    margin = max(1, text // 5)
    words = fitted(words, font, size[0] - 2 * margin)
    if not words:
        return
    ascent, descent = font.getmetrics()
    label = (round(font.getlength(words)) + 2 * margin, ascent + descent)
    place = label_place(size, corner, label)
    if place is None:
        return
    x, y = place
    brush.rectangle((x, y, x + label[0] - 1, y + label[1] - 1), fill=colour)
    brush.text((x + margin, y), words, fill=ink_on(colour), font=font)


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever has the greater contrast to `colour` (relative luminance of WCAG 2.2)."""
    levels = [level / 255 for level in colour]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else (255, 255, 255)

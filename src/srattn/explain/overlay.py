"""Masks over images, in pictures for people: class colours, a legend, and prediction beside truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from srattn.data.overlay import edges as edges
from srattn.data.overlay import numbers_over
from srattn.data.overlay import overlay as overlay
from srattn.data.overlay import rgb_of as rgb_of
from srattn.data.palette import Palette
from srattn.errors import SrattnError
from srattn.explain.lettering import INK, MUTED, PAPER, fitted, font_of

WRONG = (200, 40, 20)
_GAP, _LINE = 6, 20
_TEXT = 13


def legend(palette: Palette, numbers: Iterable[int] | None = None, width: int = 640) -> Image.Image:
    """A strip of `width` pixels with colour and name of these classes, or of all, in as many lines as they need."""
    chosen = list(range(len(palette)) if numbers is None else numbers)
    for number in chosen:
        if not 0 <= number < len(palette):
            raise SrattnError(f"class {number} has no colour in a palette of {len(palette)} classes")
    if width < 4 * _LINE:
        raise SrattnError(f"a legend must be at least {4 * _LINE} pixels wide, got {width}")
    font = font_of(_TEXT)
    places: list[tuple[int, int, int, str]] = []
    x, line = _GAP, 0
    for number in chosen:
        name = fitted(palette.names[number], font, width - _LINE - 3 * _GAP)
        needed = _LINE + round(font.getlength(name)) + 3 * _GAP
        if x > _GAP and x + needed > width:
            x, line = _GAP, line + 1
        places.append((x, line, number, name))
        x += needed
    strip = Image.new("RGB", (width, (line + 1) * (_LINE + _GAP) + _GAP), PAPER)
    brush = ImageDraw.Draw(strip)
    for x, line, number, name in places:
        y = _GAP + line * (_LINE + _GAP)
        brush.rectangle((x, y + 3, x + 14, y + 17), fill=palette.colours[number], outline=MUTED)
        brush.text((x + _LINE, y + _LINE // 2), name, fill=INK, font=font, anchor="lm")
    return strip


def side_by_side(
    image: Tensor,
    truth: Tensor,
    prediction: Tensor,
    palette: Palette,
    *,
    ignore: int | None = 255,
    title: str = "",
    side: int = 320,
) -> Image.Image:
    """Image, truth, prediction and errors in a row, with a legend of the classes that occur.

    Args:
        image: uint8 (3, H, W) or (1, H, W).
        truth, prediction: class numbers (H, W). What `truth` ignores is neither right nor wrong.
        title: a line above, such as the name of the file.
        side: pixels of the longer side of each picture; larger images shrink to it.
    """
    whole = rgb_of(image)
    true, found = (numbers_over(mask, palette, ignore, whole) for mask in (truth, prediction))
    counted = np.ones(true.shape, bool) if ignore is None else true != ignore
    wrong = counted & (true != found)
    share = wrong.sum() / max(1, counted.sum())
    occur = sorted({*np.unique(true).tolist(), *np.unique(found).tolist()} - {ignore})
    size = _shrunk(whole.size, side)
    small = whole.resize(size, Image.Resampling.BOX)
    pixels = torch.from_numpy(np.asarray(small).transpose(2, 0, 1).copy())
    covered = [overlay(pixels, _nearest(mask, size), palette, ignore=ignore) for mask in (true, found)]
    row = panels(
        [
            ("image", small),
            ("truth", covered[0]),
            ("prediction", covered[1]),
            (f"wrong: {100 * share:.1f} % of pixels", _errors(small, wrong, counted)),
        ],
        title,
    )
    names = legend(palette, occur, row.width) if occur else Image.new("RGB", (row.width, 1), PAPER)
    sheet = Image.new("RGB", (row.width, row.height + names.height), PAPER)
    sheet.paste(row, (0, 0))
    sheet.paste(names, (0, row.height))
    return sheet


def panels(pictures: Sequence[tuple[str, Image.Image]], title: str = "") -> Image.Image:
    """Pictures with a line above each, in a row on white, and `title` above them all."""
    if not pictures:
        raise SrattnError("a row of pictures needs at least one")
    font, head = font_of(_TEXT), _LINE + 2 * _GAP if title else _GAP
    # A narrow picture still leaves room for a few words.
    widths = [max(picture.width, 100) for _, picture in pictures]
    width = sum(widths) + _GAP * (len(pictures) + 1)
    sheet = Image.new("RGB", (width, head + _LINE + max(picture.height for _, picture in pictures) + _GAP), PAPER)
    brush = ImageDraw.Draw(sheet)
    if title:
        brush.text((_GAP, _GAP + _LINE // 2), fitted(title, font, width - 2 * _GAP), fill=INK, font=font, anchor="lm")
    x = _GAP
    for (words, picture), room in zip(pictures, widths, strict=True):
        brush.text((x, head + _LINE // 2), fitted(words, font, room), fill=MUTED, font=font, anchor="lm")
        sheet.paste(picture, (x, head + _LINE))
        x += room + _GAP
    return sheet


def _shrunk(size: tuple[int, int], side: int) -> tuple[int, int]:
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _nearest(numbers: np.ndarray, size: tuple[int, int]) -> Tensor:
    image = Image.fromarray(numbers).resize(size, Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(image))


def _errors(small: Image.Image, wrong: np.ndarray, counted: np.ndarray) -> Image.Image:
    """The image in pale grey, with the share of wrong pixels in `WRONG`; what is not counted is white."""
    grey = np.asarray(small.convert("L"), np.float32)[..., None] / 2 + 96
    part, valid = (
        np.asarray(Image.fromarray((255 * mask).astype(np.uint8)).resize(small.size, Image.Resampling.BOX), np.float32)
        for mask in (wrong, counted)
    )
    mixed = grey + (part / 255)[..., None] * (np.array(WRONG, np.float32) - grey)
    mixed += (1 - valid / 255)[..., None] * (255 - mixed)
    return Image.fromarray(mixed.round().astype(np.uint8))

"""A stranger's picture, to what the model sees of it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srattn.data.decode import FORMATS, BadImage, decode
from srattn.data.dense.person import person_pixels
from srattn.data.preprocess import Preprocess
from srattn.ops.boxes import clip_boxes
from srattn.serve.fault import Fault

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True)
class Picture:
    """A file as it came, and what errors and answers call it."""

    name: str
    data: bytes


@dataclasses.dataclass(frozen=True)
class Seen:
    """A picture as the model sees it."""

    name: str
    width: int
    height: int
    """Sides of the picture, upright."""
    pixels: Tensor
    """uint8 (C, H, W)."""
    box: tuple[float, float, float, float]
    """Where the edges of `pixels` lie: left, top, right, bottom, as shares of the picture's sides."""
    people: Tensor | None = None
    """Boxes (N, 4) of the people whose windows `pixels` are, then (N, C, H, W)."""
    matrices: Tensor | None = None
    """(N, 2, 3), from the picture to each window."""

    @property
    def inputs(self) -> list[Tensor]:
        """What the model is asked: each (C, H, W)."""
        return [self.pixels] if self.people is None else list(self.pixels)


def see(picture: Picture, preprocess: Preprocess, max_pixels: int) -> Seen:
    """Decodes, crops and resizes.

    Raises:
        Fault: 413 for too many pixels, 422 for what cannot be read.
    """
    image = _decoded(picture, preprocess.channels, max_pixels)
    box = seen_box(preprocess, image.height, image.width)
    if preprocess.fit == "shorter":
        rows, columns = preprocess.sides(image.height, image.width)
        if preprocess.is_too_long(rows, columns):
            raise Fault(
                413,
                f"{picture.name}: {image.width}x{image.height} is too long for its width: the model would see "
                f"{columns}x{rows}, more than the {preprocess.most_pixels:,} pixels that are accepted",
            )
    return Seen(picture.name, image.width, image.height, preprocess.pixels(image), box)


def see_people(
    picture: Picture, preprocess: Preprocess, max_pixels: int, *, boxes: Sequence[Sequence[float]] | None
) -> Seen:
    """Decodes, and cuts a window around each of the boxes x1, y1, x2, y2 in pixels, or around the whole picture.

    Raises:
        Fault: as `see`; and 422 for a box of which nothing lies on the picture.
    """
    image = _decoded(picture, preprocess.channels, max_pixels)
    wide, high = image.width, image.height
    people = torch.tensor([[0.0, 0.0, wide, high]] if boxes is None else boxes, dtype=torch.float64)
    people = clip_boxes(people, high, wide)
    if not bool((people[:, 2:] > people[:, :2]).all()):
        raise Fault(422, f"{picture.name}: people: boxes x1,y1,x2,y2 lie on the picture of {wide}x{high} pixels")
    windows, matrices = person_pixels(image, people, preprocess)
    return Seen(picture.name, wide, high, windows, (0.0, 0.0, 1.0, 1.0), people, matrices)


def _decoded(picture: Picture, channels: int, max_pixels: int) -> Image.Image:
    _check_header(picture, max_pixels)
    try:
        return decode(picture.data, channels, picture.name)
    except BadImage as error:
        raise Fault(422, str(error)) from None


def seen_box(preprocess: Preprocess, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the model's image, as shares of the sides of a picture of that size.

    Beyond [0, 1] where the model's image has a border that is no picture ("inside").
    """
    rows, columns = preprocess.size
    if preprocess.fit == "inside":
        (inner_rows, inner_columns), (top, left) = preprocess.sides(height, width), preprocess.corner(height, width)
        return (
            -left / inner_columns,
            -top / inner_rows,
            (columns - left) / inner_columns,
            (rows - top) / inner_rows,
        )
    left, top, right, bottom = preprocess.part(height, width)
    return (left / width, top / height, right / width, bottom / height)


def _check_header(picture: Picture, max_pixels: int) -> None:
    """Refuses by the header alone; a header that cannot be read is left to the words of `decode`."""
    from PIL import Image

    large = f"more than the {max_pixels:,} pixels that are accepted"
    try:
        with Image.open(io.BytesIO(picture.data), formats=FORMATS) as opened:
            width, height = opened.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Fault(413, f"{picture.name}: {large}") from None
    except Exception:
        return
    if width * height > max_pixels:
        raise Fault(413, f"{picture.name}: {width}x{height} is {large}")

"""Small pictures of a data set's images, as PNG data that lives inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

_LARGEST = 160
_TINT = 0.6


def thumbnail(image: Tensor, side: int = 96) -> str:
    """A `data:` address of the image (C, H, W) in [0, 1], its longer side about `side` pixels.

    Small images grow by a whole factor and keep their pixels sharp; large ones shrink.
    """
    return _data_url(_scaled(_to_pil(image), min(side, _LARGEST)))


def overlay(image: Tensor, heat: Tensor, query_yx: tuple[int, int] | None = None, side: int = 128) -> str:
    """A `data:` address of the image (C, H, W) in grey under a map of attention, the query point ringed.

    Args:
        heat: (H, W), not negative; shown relative to its own largest value.
        query_yx: the pixel whose attention this is.
    """
    return _data_url(heat_over(image, heat, query_yx, min(side, _LARGEST)))


def heat_over(image: Tensor, heat: Tensor, query_yx: tuple[int, int] | None, side: int) -> Image.Image:
    """The picture of `overlay`, with no bound on its size."""
    grey = np.asarray(_to_pil(image).convert("L"), dtype=np.float64)[..., None] / 255
    values = heat.detach().double().cpu().numpy()
    relative = values / max(float(values.max()), 1e-12)
    colours = colormaps["magma"](relative)[..., :3]
    # The picture stays visible under the whole range: dim where nothing is attended, tinted where much is.
    mixed = (1 - _TINT) * grey + _TINT * colours
    picture = _scaled(Image.fromarray((mixed.clip(0, 1) * 255).round().astype(np.uint8)), side)
    if query_yx is not None:
        _ring(picture, query_yx, heat.shape[-2:])
    return picture


def marked(image: Tensor, query_yx: tuple[int, int], side: int = 128) -> str:
    """A `data:` address of the image (C, H, W) with one point ringed."""
    return _data_url(with_ring(image, query_yx, min(side, _LARGEST)))


def with_ring(image: Tensor, query_yx: tuple[int, int] | None, side: int) -> Image.Image:
    """The picture of `marked`, with no bound on its size; without a ring where there is no point."""
    picture = _scaled(_to_pil(image).convert("RGB"), side)
    if query_yx is not None:
        _ring(picture, query_yx, image.shape[-2:])
    return picture


def whole_picture(image: Tensor) -> str:
    """A `data:` address of the image (C, H, W) in [0, 1], pixel by pixel."""
    return _data_url(_to_pil(image))


def _to_pil(image: Tensor) -> Image.Image:
    array = (image.detach().float().cpu().clamp(0, 1).nan_to_num() * 255).round().byte().numpy()
    if array.shape[0] == 1:
        return Image.fromarray(array[0])
    if array.shape[0] >= 3:
        return Image.fromarray(np.ascontiguousarray(array[:3].transpose(1, 2, 0)))
    return Image.fromarray(array.mean(axis=0).round().astype(np.uint8))


def _scaled(picture: Image.Image, side: int) -> Image.Image:
    longer = max(picture.size)
    if longer > side:
        size = tuple(max(1, round(length * side / longer)) for length in picture.size)
        return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    factor = max(1, round(side / longer))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _ring(picture: Image.Image, query_yx: tuple[int, int], size: tuple[int, ...]) -> None:
    y = (query_yx[0] + 0.5) * picture.height / size[0]
    x = (query_yx[1] + 0.5) * picture.width / size[1]
    radius = max(picture.size) / 18
    brush = ImageDraw.Draw(picture)
    # Two rings, so that it stands out on any ground.
    for extra, colour in ((1.5, "black"), (0.0, "#2ee6d0")):
        r = radius + extra
        brush.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=4 if extra else 2)


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

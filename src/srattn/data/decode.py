"""One image file from anybody, made into an 8-bit grey or RGB picture, or refused in words."""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from srattn.errors import SrattnError, missing_extra

if TYPE_CHECKING:
    from PIL import Image, ImageFile

# Only formats that are pictures and nothing else: no EPS (it runs a program), no fonts, no video.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_PIXELS = 64_000_000
"""Larger pictures are refused by their header: 64 megapixels are 192 MB of RGB."""

_EXIF_ORIENTATION = 0x0112
_warnings_lock = threading.Lock()  # warnings.catch_warnings is one for all threads before Python 3.14


class BadImage(SrattnError):
    """A file that is no usable image; the message names the file and the reason."""


def decode(source: Path | bytes, channels: int = 3, name: str | None = None, least: int | None = None) -> Image.Image:
    """Opens and decodes a whole image: the first frame, turned upright by its EXIF tag, without transparency.

    Args:
        source: a path, or the bytes of a file.
        channels: 1 for grey (mode "L") or 3 for "RGB".
        name: what error messages call it; the path if not given.
        least: a JPEG may come out smaller than it is, its shorter side not below this many pixels, where that saves
            decoding time (by the format's own halving; all of the file is still read).

    Transparency is laid over white. Grey levels of 16 bits are scaled to 8.

    Raises:
        BadImage: unreadable, truncated, of an unknown format, or over `MAX_PIXELS`.
    """
    name = name or (str(source) if isinstance(source, Path) else "the image")
    with opened_image(source, name) as opened:
        width, height = opened.size
        if least is not None and opened.format == "JPEG" and min(width, height) >= 2 * least:
            part = least / min(width, height)
            opened.draft(None, (math.ceil(width * part), math.ceil(height * part)))  # type: ignore[arg-type]
        opened.load()
        return upright(opened, _to_mode(opened, "L" if channels == 1 else "RGB"))


@contextlib.contextmanager
def opened_image(source: Path | bytes, name: str) -> Iterator[ImageFile.ImageFile]:
    """An image file, its size known from its header and its pixels not decoded yet.

    Raises:
        BadImage: see `decode`; whatever fails while the file is open becomes one too.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise missing_extra("pillow", "train") from None
    too_large = f"more than the {MAX_PIXELS:,} pixels that are accepted"
    try:
        with _quiet():
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
        with opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadImage(f"{name}: {opened.width}x{opened.height} is {too_large}")
            yield opened
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"{name}: {too_large}") from None
    except UnidentifiedImageError:
        raise BadImage(f"{name}: not an image of the formats {', '.join(FORMATS)}") from None
    except FileNotFoundError:
        raise BadImage(f"{name}: no such file") from None
    # A broken file can make a decoder raise nearly anything: OSError, SyntaxError, struct.error, ValueError, ...
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadImage(f"{name}: unreadable ({reason})") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Pillow warns of large pictures and of damaged tags; the first are refused here, the second do not matter.
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # By way of RGB, since palettes and print colours have no direct way to grey.
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floating point to mode "L".

    16-bit levels keep their scale (65535 is white). Others have no agreed white: values within [0, 1] (floating
    point) or up to 255 or 65535 are taken on that scale, and anything else is stretched from darkest to brightest.
    """
    import numpy as np
    from PIL import Image

    levels = np.asarray(image, dtype=np.float64)
    if not np.isfinite(levels).all():
        raise ValueError("grey levels are not finite")
    low, high = float(levels.min()), float(levels.max())
    if image.mode.startswith("I;16"):
        white = 65535.0
    elif low >= 0 and high <= 65535:
        white = 1.0 if image.mode == "F" and high <= 1 else 255.0 if high <= 255 else 65535.0
    else:
        levels, white = levels - low, high - low
    return Image.fromarray((levels * (255.0 / white)).round().astype(np.uint8))


def upright(opened: Image.Image, image: Image.Image) -> Image.Image:
    """`image`, which was decoded from `opened`, turned as its EXIF tag says."""
    from PIL.Image import Transpose

    if opened.format == "JPEG" and not opened.info.keys() & {"exif", "xmp"}:
        return image  # the usual small image, for which looking closer would cost as much as decoding
    orientation = orientation_of(opened)
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def orientation_of(opened: Image.Image) -> int:
    """The EXIF tag from 1, upright, to 8; from 5 on the picture lies on its side."""
    try:
        with _quiet():
            return int(opened.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a damaged tag: the picture itself is whole
        return 1


def turned_words(path: Path, size: tuple[int, int], other: tuple[int, int]) -> str:
    """What to add where an image's upright (height, width) is not that of what belongs to it: nothing, or that its EXIF
    tag turned it, where that makes the difference."""
    if size != (other[1], other[0]):
        return ""
    try:
        with opened_image(path, str(path)) as opened:
            turned = orientation_of(opened) >= 5
    except BadImage:
        return ""
    if not turned:
        return ""
    return (
        "; its EXIF tag turns the image by a quarter, which was not done where it was labelled: remove the tag "
        "(exiftool -Orientation= FILE), or turn what was drawn on it"
    )


def shrink(image: Image.Image, shorter: int) -> Image.Image:
    """The picture with its shorter side at most `shorter` pixels, its shape kept."""
    from PIL.Image import Resampling

    factor = shorter / min(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, math.floor(side * factor + 0.5)) for side in image.size)
    return image.resize((width, height), Resampling.BICUBIC, reducing_gap=3.0)

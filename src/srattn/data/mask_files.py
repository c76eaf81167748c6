"""Class numbers of pixels as picture files: written as indexed PNG, read from what people have. Never resized."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srattn.data.decode import BadImage, opened_image, upright
from srattn.data.palette import IGNORED, MOST, Palette, class_numbers
from srattn.data.preprocess import to_tensor
from srattn.errors import SrattnError
from srattn.files import atomic_path

if TYPE_CHECKING:
    from PIL import Image

_HALF = 128
_BAND = 256  # rows of colours that are looked up together


class NoPalette(BadImage):
    """A mask of colours, without a palette that says what they mean."""


def write_mask(
    path: str | os.PathLike[str],
    mask: Tensor,
    palette: Palette,
    ignore: int | None = 255,
    overwrite: bool = False,
) -> None:
    """Writes class numbers (H, W) as a PNG whose values are the numbers, and which viewers show in their colours.

    Raises:
        SrattnError: see `srattn.data.palette.class_numbers` and `srattn.files.atomic_path`; or a path of other suffix.
    """
    from PIL import Image

    if Path(path).suffix.lower() != ".png":
        raise SrattnError(f"{path}: masks are written as PNG, which changes no number; end the name in .png")
    numbers = class_numbers(mask, len(palette), ignore).cpu().contiguous()
    if not numbers.numel():
        raise SrattnError(f"{path}: a mask without pixels ({numbers.shape[0]}, {numbers.shape[1]}) cannot be written")
    table = palette.table()
    if ignore is not None and ignore >= len(palette):
        table[ignore] = torch.tensor(IGNORED)
    image = Image.frombytes("P", (numbers.shape[1], numbers.shape[0]), numbers.numpy().tobytes())
    image.putpalette(table.numpy().tobytes())
    with atomic_path(path, overwrite) as aside:
        image.save(aside, "PNG")


def read_mask(
    source: Path | bytes,
    palette: Palette | None = None,
    *,
    classes: int | None = None,
    ignore: int | None = 255,
    binary: bool = False,
    name: str | None = None,
) -> Tensor:
    """The class numbers of a mask file, uint8 (H, W), turned upright by its EXIF tag as images are.

    What the file holds decides: indexed pictures and grey ones of 8 and 16 bits hold the numbers themselves, coloured
    ones the colours of `palette` (and `IGNORED`), those of 1 bit a class 1. JPEG, which keeps no number as it was, is
    taken as 1 from level 128 on.

    Args:
        classes: how many there are; by default as many as the palette has, and without one any number is taken.
        ignore: the number of pixels that belong to no class.
        binary: take grey pictures of 8 and 16 bits from half their range on as class 1, too.
        name: what error messages call it; the path if not given.

    Raises:
        BadImage: unreadable, over `MAX_PIXELS`, or a value or colour that is no class; the message names it.
    """
    name = name or (str(source) if isinstance(source, Path) else "the mask")
    if classes is None and palette is not None:
        classes = len(palette)
    with opened_image(source, name) as opened:
        opened.load()
        lossy = opened.format == "JPEG"
        if lossy and not binary and classes is not None and classes > 2:
            raise BadImage(f"{name}: JPEG changes the numbers of {classes} classes; save masks as PNG")
        numbers = _numbers(upright(opened, opened), palette, ignore, binary or lossy, name)
    try:
        return class_numbers(numbers, MOST if classes is None else classes, ignore, name)
    except SrattnError as error:
        raise BadImage(str(error)) from None


def _numbers(image: Image.Image, palette: Palette | None, ignore: int | None, binary: bool, name: str) -> Tensor:
    """Whole numbers (H, W), not yet compared with the classes."""
    import numpy as np

    mode = image.mode
    if mode == "1":
        return (to_tensor(image.convert("L"))[0] >= _HALF).to(torch.uint8)
    if mode in ("LA", "RGBA", "PA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise BadImage(f"{name}: a mask cannot be transparent (mode {mode}); save it without an alpha channel")
        if mode == "PA":
            return to_tensor(image.getchannel("P"))[0]
        image = image.convert(mode[:-1])
    elif binary and mode in ("CMYK", "YCbCr"):
        image = image.convert("RGB")
    elif mode.startswith("I"):
        levels = torch.from_numpy(np.asarray(image).astype(np.int32))
        return (levels >= 256 * _HALF).to(torch.uint8) if binary else levels
    elif mode not in ("P", "L", "RGB"):
        raise BadImage(f"{name}: a mask of mode {mode} holds no class numbers; save it as an indexed or grey PNG")
    if image.mode == "P" and not binary:
        return to_tensor(image)[0]
    if binary:
        return (to_tensor(image.convert("L"))[0] >= _HALF).to(torch.uint8)
    pixels = to_tensor(image)
    return pixels[0] if len(pixels) == 1 else _by_colour(pixels, palette, ignore, name)


def _by_colour(pixels: Tensor, palette: Palette | None, ignore: int | None, name: str) -> Tensor:
    """uint8 (3, H, W) to the numbers of the classes that have these colours, (H, W)."""
    if palette is None:
        if not torch.equal(pixels[0], pixels[1]) or not torch.equal(pixels[0], pixels[2]):
            raise NoPalette(f"{name}: a coloured mask needs a palette, which says which class has which colour")
        return pixels[0]
    numbers: dict[int, int] = {}
    shared: set[int] = set()
    for number, (red, green, blue) in enumerate(palette.colours):
        code = red << 16 | green << 8 | blue
        if code in numbers:
            shared.add(code)
        numbers[code] = number
    if ignore is not None:
        numbers.setdefault(IGNORED[0] << 16 | IGNORED[1] << 8 | IGNORED[2], ignore)
    codes = torch.tensor(sorted(numbers), dtype=torch.int32)
    values = torch.tensor([numbers[code] for code in codes.tolist()], dtype=torch.uint8)
    unclear = torch.tensor([code in shared for code in codes.tolist()])
    found = torch.empty(pixels.shape[1:], dtype=torch.uint8)
    for top in range(0, pixels.shape[1], _BAND):
        red, green, blue = pixels[:, top : top + _BAND].int()
        code = red << 16 | green << 8 | blue
        place = torch.searchsorted(codes, code).clamp(max=len(codes) - 1)
        wrong = (codes[place] != code) | unclear[place]
        if wrong.any():
            y, x = divmod(int(wrong.flatten().byte().argmax()), pixels.shape[2])
            colour = tuple(pixels[:, top + y, x].tolist())
            why = "several classes" if int(code[y, x]) in shared else "no class"
            raise BadImage(f"{name}: the colour {colour} at (y, x) = ({top + y}, {x}) is that of {why} in the palette")
        found[top : top + _BAND] = values[place]
    return found

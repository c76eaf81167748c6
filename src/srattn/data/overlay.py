"""Class numbers over an image, in their colours."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srattn.data.palette import Palette, class_numbers
from srattn.data.preprocess import to_image
from srattn.errors import SrattnError


def overlay(
    image: Tensor,
    mask: Tensor,
    palette: Palette,
    alpha: float = 0.5,
    boundaries: bool = True,
    ignore: int | None = 255,
) -> Image.Image:
    """The image under the colours of its classes; pixels of `ignore` are left as they are.

    Args:
        image: uint8 (3, H, W) or (1, H, W).
        mask: class numbers (H, W).
        alpha: how much of a colour covers the image, from 0 to 1.
        boundaries: draw the pixels where a class meets another in its full colour.

    Raises:
        SrattnError: shapes, types or values that do not fit.
    """
    if not 0 <= alpha <= 1:
        raise SrattnError(f"alpha must be from 0 to 1, got {alpha!r}")
    picture = rgb_of(image)
    numbers = numbers_over(mask, palette, ignore, picture)
    colours = palette.table().numpy()[numbers]  # (H, W, 3)
    share = np.full((*numbers.shape, 1), alpha, np.float32)
    if boundaries:
        share[edges(numbers)] = 1
    if ignore is not None:
        share[numbers == ignore] = 0
    ground = np.asarray(picture)
    return Image.fromarray((ground + share * (colours.astype(np.float32) - ground)).round().astype(np.uint8))


def edges(numbers: np.ndarray) -> np.ndarray:
    """bool (H, W): pixels with a neighbour of another number beside, above or below."""
    found = np.zeros(numbers.shape, bool)
    below, beside = numbers[1:] != numbers[:-1], numbers[:, 1:] != numbers[:, :-1]
    found[1:] |= below
    found[:-1] |= below
    found[:, 1:] |= beside
    found[:, :-1] |= beside
    return found


def rgb_of(image: Tensor) -> Image.Image:
    """A uint8 tensor (3, H, W) or (1, H, W) as a picture of mode "RGB".

    Raises:
        SrattnError: it is none.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        raise SrattnError(
            f"an image must be a uint8 tensor (3, H, W) or (1, H, W), got {image.dtype} {tuple(image.shape)}"
        )
    return to_image(image.cpu()).convert("RGB")


def numbers_over(mask: Tensor, palette: Palette, ignore: int | None, picture: Image.Image) -> np.ndarray:
    """The numbers of a mask (H, W) that lies over a picture.

    Raises:
        SrattnError: it has another shape, or a number that is neither a class nor `ignore`.
    """
    if tuple(mask.shape) != (picture.height, picture.width):
        raise SrattnError(
            f"the mask must have the shape of the image, ({picture.height}, {picture.width}), got {tuple(mask.shape)}"
        )
    return class_numbers(mask, len(palette), ignore).cpu().numpy()

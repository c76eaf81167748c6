"""Cuts, moves and turns of training images, each by the image's own draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from srattn.data.preprocess import Preprocess, to_image, to_tensor
from srattn.errors import missing_extra

_SHAPES = math.log(4 / 3)  # crops are from 3:4 to 4:3 of the shape of the final picture


def crop_one(pixels: Tensor, preprocess: Preprocess, draws: Sequence[float], area: float) -> Tensor:
    """A random part of one picture, uint8 (C, h, w), at the final size with antialiasing; four `draws` in [0, 1)."""
    from PIL.Image import Resampling

    _, have_height, have_width = pixels.shape
    height, width = preprocess.size
    kept = have_height * have_width * (area + (1 - area) * draws[0])
    shape = width / height * math.exp((2 * draws[1] - 1) * _SHAPES)
    crop_width, crop_height = min(math.sqrt(kept * shape), have_width), min(math.sqrt(kept / shape), have_height)
    left, top = draws[2] * (have_width - crop_width), draws[3] * (have_height - crop_height)
    # Pillow and not kornia here: pictures of many sizes, and it antialiases 8-bit pixels many times faster.
    resampling = Resampling.BICUBIC if preprocess.interpolation == "bicubic" else Resampling.BILINEAR
    box = (left, top, left + crop_width, top + crop_height)
    return to_tensor(to_image(pixels).resize((width, height), resampling, box=box))


def only_enlarges(shape: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether every crop of (..., h, w) is brought to `size` without shrinking, so that nothing needs antialiasing."""
    return shape[-2] <= size[0] and shape[-1] <= size[1]


def crop_together(images: Tensor, size: tuple[int, int], draws: Tensor, area: float) -> Tensor:
    """As `crop_one` for (B, C, h, w) of one shape at once, bilinear and without antialiasing: see `only_enlarges`."""
    count, _, have_height, have_width = images.shape
    kept = have_height * have_width * (area + (1 - area) * draws[:, 0])
    shape = size[1] / size[0] * torch.exp((2 * draws[:, 1] - 1) * _SHAPES)
    widths = (kept * shape).sqrt().clamp(max=have_width) / have_width  # parts of the side, in (0, 1]
    heights = (kept / shape).sqrt().clamp(max=have_height) / have_height
    theta = torch.zeros(count, 2, 3, dtype=torch.float64)
    theta[:, 0, 0], theta[:, 1, 1] = widths, heights
    theta[:, 0, 2] = (1 - widths) * (2 * draws[:, 2] - 1)
    theta[:, 1, 2] = (1 - heights) * (2 * draws[:, 3] - 1)
    grid = F.affine_grid(theta.to(images.dtype), [count, 1, *size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def move(images: Tensor, draws: Tensor, pad: int) -> Tensor:
    """Each of (B, C, H, W) moved by whole pixels, from -`pad` to `pad` down and right; zeros come in at the border."""
    height, width = images.shape[-2:]
    # All windows of the padded pictures without a copy: (B, C, 2 pad + 1, 2 pad + 1, H, W).
    windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    offsets = (draws * (2 * pad + 1)).long()
    return windows[torch.arange(len(images)), :, offsets[:, 0], offsets[:, 1]]


def affine(images: Tensor, symmetric: Tensor, shift: float, zoom: float, rotate: float, border: str) -> Tensor:
    """Each of (B, C, H, W) moved, scaled and turned by its `symmetric` draws (B, 4) in [-1, 1): x, y, scale, angle."""
    transform = kornia_transform()
    count, _, height, width = images.shape
    side = torch.tensor([width, height], dtype=images.dtype)
    matrices = transform.get_affine_matrix2d(
        translations=symmetric[:, :2] * shift * side,
        center=((side - 1) / 2).expand(count, 2),
        scale=(1 + symmetric[:, 2:3] * zoom).expand(count, 2),
        angle=symmetric[:, 3] * rotate,
    )
    return transform.warp_affine(images, matrices[:, :2], (height, width), padding_mode=border, align_corners=True)


def kornia_transform() -> ModuleType:
    """kornia.geometry.transform, or the error that names the extra."""
    try:
        from kornia.geometry import transform
    except ImportError:
        raise missing_extra("kornia", "train") from None
    return transform

"""RandAugment and colour jitter: pictures are grouped by the operation that each has drawn, so nothing runs singly.

E. D. Cubuk et al.: RandAugment: Practical automated data augmentation with a reduced search space, NeurIPS 2020. The
operations and their ranges at full strength are those of the paper's table, moves as a part of the side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from srattn.data.geometry import kornia_transform

MOST_OPS = 8
OPS = (
    "identity", "autocontrast", "equalize", "rotate", "solarize", "colour", "posterize", "contrast", "brightness",
    "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
_ANGLE, _SHEAR, _MOVE, _ENHANCE = 30.0, 0.3, 0.45, 0.9  # at full strength
_GREY = (0.299, 0.587, 0.114)


def randaugment(images: Tensor, draws: Tensor, ops: int, strength: float) -> Tensor:
    """`ops` operations, one after the other, on each of (B, C, H, W) in [0, 1].

    Args:
        draws: (B, 2 `ops` or more) in [0, 1): for each operation its choice, and its direction.
        strength: 0 to 1; magnitude 9 of 10 is 0.9.

    A picture gets the same whatever others are in the batch. Empty corners are filled by the nearest border pixels.
    """
    images = images.clone()
    for number in range(ops):
        choice = (draws[:, 2 * number] * len(OPS)).long()
        sign = torch.where(draws[:, 2 * number + 1] < 0.5, -1.0, 1.0).to(images.dtype)
        warped = (choice == OPS.index("rotate")) | (choice >= OPS.index("shear_x"))
        for op in range(1, len(OPS)):
            if OPS[op] != "rotate" and not OPS[op].startswith(("shear", "translate")):
                chosen = torch.nonzero(choice == op).flatten()
                if len(chosen):
                    images[chosen] = _colour_op(OPS[op], images[chosen], sign[chosen], strength)
        chosen = torch.nonzero(warped).flatten()
        if len(chosen):
            images[chosen] = _warp(images[chosen], choice[chosen], sign[chosen], strength)
    return images


def jitter(images: Tensor, draws: Tensor, most: float) -> Tensor:
    """Brightness, contrast, then saturation of (B, C, H, W), by factors 1 - `most` to 1 + `most`; `draws` (B, 3)."""
    factors = (1 + (2 * draws - 1) * most).to(images.dtype).view(-1, 3, 1, 1, 1)
    images = (images * factors[:, 0]).clamp_(0, 1)
    images = _towards(_mean_grey(images), images, factors[:, 1])
    return _towards(_grey(images), images, factors[:, 2]) if images.shape[1] == 3 else images


def _colour_op(name: str, images: Tensor, sign: Tensor, strength: float) -> Tensor:
    factor = (1 + sign * _ENHANCE * strength).view(-1, 1, 1, 1)
    if name == "autocontrast":
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        spread = high - low
        return torch.where(spread > 0, (images - low) / spread.clamp(min=1e-6), images)
    if name == "equalize":
        return _equalize(images)
    if name == "solarize":
        limit = 1 - strength
        return torch.where(images >= limit, 1 - images, images) if strength > 0 else images
    if name == "posterize":
        levels = 2 ** (8 - round(4 * strength))  # 8 to 4 bits
        return (images * 255).round().mul_(levels / 256).floor_().mul_(256 / levels / 255)
    if name == "colour":
        return _towards(_grey(images), images, factor) if images.shape[1] == 3 else images
    if name == "contrast":
        return _towards(_mean_grey(images), images, factor)
    if name == "brightness":
        return (images * factor).clamp_(0, 1)
    return _towards(_smooth(images), images, factor)  # sharpness


def _towards(origin: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(origin.expand_as(images), images, factor.expand_as(images)).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_GREY, dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _mean_grey(images: Tensor) -> Tensor:
    return _grey(images).mean((1, 2, 3), keepdim=True)


def _smooth(images: Tensor) -> Tensor:
    """The 3x3 filter 1 1 1, 1 5 1, 1 1 1 over 13; the border stays as it is."""
    smooth = images.clone()
    inner = F.avg_pool2d(images, 3, 1) * (9 / 13) + images[:, :, 1:-1, 1:-1] * (4 / 13)
    smooth[:, :, 1:-1, 1:-1] = inner
    return smooth


def _equalize(images: Tensor) -> Tensor:
    """Levels spread so that each is equally frequent, a channel at a time, as in Pillow's ImageOps."""
    count, channels, height, width = images.shape
    levels = (images * 255).round().long().view(count * channels, -1)
    histogram = torch.zeros(count * channels, 256, dtype=torch.long)
    histogram.scatter_add_(1, levels, torch.ones_like(levels))
    last = histogram.gather(1, levels.amax(1, keepdim=True))
    step = (height * width - last) // 255
    before = histogram.cumsum(1) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    spread = table.gather(1, levels).view_as(images).to(images.dtype) / 255
    return torch.where(step.view(count, channels, 1, 1) > 0, spread, images)


def _warp(images: Tensor, choice: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Turns, shears and moves in one resampling, each picture by the matrix of its own operation, about its centre."""
    height, width = images.shape[-2:]
    amount = {"rotate": math.radians(_ANGLE), "shear_x": _SHEAR, "shear_y": _SHEAR}
    by = {name: torch.where(choice == OPS.index(name), sign * strength * most, 0) for name, most in amount.items()}
    moves = [
        torch.where(choice == OPS.index(name), sign * strength * _MOVE * side, 0)
        for name, side in (("translate_x", width), ("translate_y", height))
    ]
    cosine, sine = by["rotate"].cos(), by["rotate"].sin()
    x, y = (width - 1) / 2, (height - 1) / 2
    xx, xy, yx, yy = cosine, by["shear_x"] - sine, by["shear_y"] + sine, cosine
    # About the centre: M (p - c) + c.
    matrices = torch.stack(
        [xx, xy, x - xx * x - xy * y + moves[0], yx, yy, y - yx * x - yy * y + moves[1]], dim=1
    ).view(-1, 2, 3)
    transform = kornia_transform()
    return transform.warp_affine(images, matrices, (height, width), padding_mode="border", align_corners=True)

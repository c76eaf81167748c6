"""Images and masks seen through one affine matrix, so that both stay aligned; by kornia."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.data.dense.target import VOID
from srattn.data.geometry import kornia_transform


def warp_image(image: Tensor, matrix: Tensor, size: tuple[int, int], fill: Tensor) -> Tensor:
    """uint8 (C, h, w) to float32 (C, H, W) in [0, 1], bilinear.

    Args:
        matrix: (2, 3), from (x, y) of the old image to the new one; edges count, so that the first pixel's centre is at
            (0.5, 0.5).
        fill: colour (C,) in [0, 1] where the old image ends.
    """
    shrinks = 1 / math.sqrt(max(abs(float(torch.linalg.det(matrix[:, :2]))), 1e-12))
    pixels = image.unsqueeze(0).float() / 255
    if (factor := int(shrinks)) >= 2:  # means of whole blocks first, since bilinear sampling would skip pixels
        factor = min(factor, *image.shape[1:])
        pixels = F.avg_pool2d(pixels, factor, ceil_mode=True, count_include_pad=False)
        matrix = torch.cat([matrix[:, :2] * factor, matrix[:, 2:]], 1)
    # Outside is transparent: colour and cover are sampled alike, and the rest is the filling.
    covered = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
    found = _warp(covered, matrix, size, "bilinear")[0]
    return found[:-1] + (1 - found[-1:]) * fill.view(-1, 1, 1)


def warp_mask(mask: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Class numbers uint8 (h, w) to (H, W), the nearest pixel's; `VOID` where the old mask ends."""
    levels = mask.float().view(1, 1, *mask.shape) - VOID  # zeros come in from outside
    return (_warp(levels, matrix, size, "nearest")[0, 0] + VOID).round().to(torch.uint8)


def warp_objects(masks: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks bool (N, h, w) to (N, H, W), the nearest pixel's; outside where the old image ends."""
    return _warp(masks.float().unsqueeze(0), matrix, size, "nearest")[0] > 0.5


def warp_depth(depth: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Depths float32 (h, w) to (H, W), the nearest pixel's, since between near and far nothing is; 0 where the old ones
    end."""
    return _warp(depth.view(1, 1, *depth.shape), matrix, size, "nearest")[0, 0]


def _warp(images: Tensor, matrix: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    # kornia counts from centre to centre of pixels.
    half = torch.tensor([0.5, 0.5], dtype=matrix.dtype)
    centred = torch.cat([matrix[:, :2], (matrix[:, 2] + matrix[:, :2] @ half - half).unsqueeze(1)], 1)
    warp = kornia_transform().warp_affine
    # It divides by the sides less one pixel: one more of what is outside, on both images, changes nothing else.
    images, matrices = F.pad(images, (0, 1, 0, 1)), centred.unsqueeze(0).to(images.dtype)
    found = warp(images, matrices, (size[0] + 1, size[1] + 1), mode=mode, align_corners=True)
    return found[..., :-1, :-1]

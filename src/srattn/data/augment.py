"""Random changes to training images, drawn per image from (seed, epoch, index) and nothing else."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srattn.data.decode import shrink
from srattn.data.preprocess import Preprocess, to_image, to_tensor
from srattn.errors import SrattnError, missing_extra

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("none", "affine", "crop")
DRAWS = 8  # random numbers an image; a fixed count keeps every draw in its place when an option changes


@dataclasses.dataclass(frozen=True)
class Augment:
    """How training images are varied.

    Attributes:
        kind: "none"; "affine" turns, moves and scales pictures that are at their final size; "crop" cuts a random part
            out of the larger picture (random resized crop).
        rotate: largest turn in degrees ("affine").
        shift: largest move as a part of the side ("affine").
        zoom: largest change of scale, 0.1 for 0.9 to 1.1 ("affine").
        crop_area: smallest part of the picture's area that a crop keeps ("crop"); its shape varies from 3:4 to 4:3.
        flip: probability of a mirror image, left for right (every kind but "none").
    """

    kind: str
    preprocess: Preprocess
    rotate: float = 10.0
    shift: float = 0.08
    zoom: float = 0.1
    crop_area: float = 0.35
    flip: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SrattnError(f"augment must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 0 <= self.zoom < 1 or not 0 <= self.shift <= 1 or not 0 <= self.rotate <= 180:
            raise SrattnError(
                f"zoom must be in [0, 1), shift in [0, 1] and rotate in [0, 180], "
                f"got {self.zoom}, {self.shift}, {self.rotate}"
            )
        if not 0 < self.crop_area <= 1 or not 0 <= self.flip <= 1:
            raise SrattnError(f"crop_area must be in (0, 1] and flip in [0, 1], got {self.crop_area}, {self.flip}")
        if self.kind == "affine":
            _kornia()  # missed now, and not at the first batch

    def prepare(self, image: Image.Image) -> Tensor:
        """From a decoded picture to what `item` takes, done once: the final size, or for crops a larger whole."""
        if self.kind != "crop":
            return self.preprocess.pixels(image)
        # Larger by half: with this much room most crops still shrink.
        return to_tensor(shrink(self.preprocess.inverted(image), round(1.5 * max(self.preprocess.size))))

    def item(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """One picture at its final size, uint8 (C, H, W); `draws` are `DRAWS` numbers in [0, 1)."""
        if self.kind != "crop":
            return pixels
        from PIL.Image import Resampling

        _, have_height, have_width = pixels.shape
        height, width = self.preprocess.size
        d = draws.tolist()
        area = have_height * have_width * (self.crop_area + (1 - self.crop_area) * d[0])
        shape = width / height * math.exp((2 * d[1] - 1) * math.log(4 / 3))
        crop_width, crop_height = min(math.sqrt(area * shape), have_width), min(math.sqrt(area / shape), have_height)
        left, top = d[2] * (have_width - crop_width), d[3] * (have_height - crop_height)
        # Pillow and not kornia here: pictures of many sizes, and it antialiases 8-bit pixels many times faster.
        bicubic = self.preprocess.interpolation == "bicubic"
        resampling = Resampling.BICUBIC if bicubic else Resampling.BILINEAR
        box = (left, top, left + crop_width, top + crop_height)
        return to_tensor(to_image(pixels).resize((width, height), resampling, box=box))

    def batch(self, images: Tensor, draws: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1], changed; `draws` (B, `DRAWS`): `item` takes the first, this the last five."""
        if self.kind == "none":
            return images
        if self.kind == "affine":
            images = self._affine(images, 2 * draws[:, 3:7].to(images.dtype) - 1)
        mirrored = draws[:, 7] < self.flip
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images) if self.flip else images

    def _affine(self, images: Tensor, symmetric: Tensor) -> Tensor:
        transform = _kornia()
        count, _, height, width = images.shape
        side = torch.tensor([width, height], dtype=images.dtype)
        matrices = transform.get_affine_matrix2d(
            translations=symmetric[:, :2] * self.shift * side,
            center=((side - 1) / 2).expand(count, 2),
            scale=(1 + symmetric[:, 2:3] * self.zoom).expand(count, 2),
            angle=symmetric[:, 3] * self.rotate,
        )
        border = "zeros" if self.preprocess.invert == "auto" else "border"
        return transform.warp_affine(images, matrices[:, :2], (height, width), padding_mode=border, align_corners=True)


def _kornia() -> ModuleType:
    try:
        from kornia.geometry import transform
    except ImportError:
        raise missing_extra("kornia", "train") from None
    return transform

"""Random changes to training images, drawn per image from (seed, epoch, index) and nothing else."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srattn.data import geometry, mix, randaugment
from srattn.data.decode import shrink
from srattn.data.preprocess import Preprocess, to_tensor
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("none", "affine", "crop", "whole")
DRAWS = 40
"""Random numbers an image; a fixed place for each keeps every draw where it is when an option changes.

0-3 crop, 3-6 affine, 7 flip, 8-9 shift, 10-12 jitter, 13-17 erase, 18-22 mix, 24-39 two for each RandAugment operation.
"""


@dataclasses.dataclass(frozen=True)
class Augment:
    """How training images are varied, in this order; `srattn.data.spec.parse_augment` makes one from a short string.

    Attributes:
        kind: "none"; "whole" leaves pictures at their final size to the options below; "affine" turns, moves and scales
            them first; "crop" cuts a random part out of the larger picture (random resized crop).
        rotate: largest turn in degrees ("affine").
        shift: largest move as a part of the side ("affine").
        zoom: largest change of scale, 0.1 for 0.9 to 1.1 ("affine").
        crop_area: smallest part of the picture's area that a crop keeps ("crop"); its shape varies from 3:4 to 4:3.
        flip: probability of a mirror image, left for right (every kind but "none"; so all that follow).
        pad: pixels that a picture is moved by at most, up, down, left and right; black comes in (pad and crop).
        rand_ops, rand_magnitude: RandAugment: that many operations one after the other, at that strength of 10.
        jitter: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter.
        erase: probability that a rectangle of 2 to 33 % of the area is filled with the mean colour.
        mixup: above 0: pictures are blended with their neighbour's, the share drawn from Beta(mixup, mixup).
        cutmix: above 0: a rectangle is the neighbour's, its area drawn from Beta(cutmix, cutmix). With both, half of
            the pictures take the one and half the other.
        mix_part: the part of all pictures that is mixed at all.
    """

    kind: str
    preprocess: Preprocess
    rotate: float = 10.0
    shift: float = 0.08
    zoom: float = 0.1
    crop_area: float = 0.35
    flip: float = 0.0
    pad: int = 0
    rand_ops: int = 0
    rand_magnitude: float = 9.0
    jitter: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_part: float = 1.0

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
        if not 0 <= self.pad <= min(self.preprocess.size):
            raise SrattnError(f"pad must be from 0 to the side of {min(self.preprocess.size)} pixels, got {self.pad}")
        for name, most in {"jitter": 1, "erase": 1, "mix_part": 1, "mixup": 100, "cutmix": 100}.items():
            if not 0 <= getattr(self, name) <= most:
                raise SrattnError(f"{name} must be from 0 to {most}, got {getattr(self, name)}")
        if not 0 <= self.rand_ops <= randaugment.MOST_OPS or not 0 <= self.rand_magnitude <= 10:
            raise SrattnError(
                f"RandAugment takes 0 to {randaugment.MOST_OPS} operations at a strength of 0 to 10, "
                f"got {self.rand_ops} at {self.rand_magnitude}"
            )
        if self.kind == "affine" or self.rand_ops:
            geometry.kornia_transform()  # missed now, and not at the first batch

    @property
    def mixes(self) -> bool:
        """Whether labels are shares of several classes, (B, classes), rather than class numbers."""
        return self.kind != "none" and self.mix_part > 0 and (self.mixup > 0 or self.cutmix > 0)

    def prepare(self, image: Image.Image) -> Tensor:
        """From a decoded picture to what `images` takes, done once: the final size, or for crops a larger whole."""
        if self.kind != "crop":
            return self.preprocess.pixels(image)
        assert self.least is not None
        image = self.preprocess.inverted(image)
        # Only where it saves much: to make a picture a little smaller costs as much time as the crop itself.
        return to_tensor(shrink(image, self.least) if min(image.size) > 1.5 * self.least else image)

    @property
    def least(self) -> int | None:
        """For crops: the shorter side of pictures after `prepare`, if they were much larger; else None."""
        # Larger by half: with this much room most crops still shrink.
        return round(1.5 * max(self.preprocess.size)) if self.kind == "crop" else None

    def images(self, pixels: Tensor | list[Tensor], draws: Tensor) -> Tensor:
        """Pictures after `prepare`, uint8 (B, C, h, w) or a list of (C, h, w), to (B, C, H, W) in [0, 1], changed.

        What becomes of a picture depends on its own `draws`, a row of (B, `DRAWS`) in [0, 1), and not on its company.
        """
        if self.kind == "crop":
            if isinstance(pixels, Tensor) and geometry.only_enlarges(pixels.shape, self.preprocess.size):
                return self.batch(self._crop_together(pixels, draws), draws)
            pixels = [self.item(picture, row) for picture, row in zip(pixels, draws, strict=True)]
        together = pixels if isinstance(pixels, Tensor) else torch.stack(pixels)
        if self.kind in ("none", "affine"):
            return self.batch(together.float().div_(255), draws)
        # Bytes are moved and mirrored four times as fast as floating-point numbers.
        return self._colours(self._mirror(self._move(together, draws), draws).float().div_(255), draws)

    def item(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """One picture at its final size, uint8 (C, H, W); `draws` are `DRAWS` numbers in [0, 1)."""
        if self.kind != "crop":
            return pixels
        return geometry.crop_one(pixels, self.preprocess, draws.tolist(), self.crop_area)

    def batch(self, images: Tensor, draws: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] at the final size, changed by all but the crop; `draws` (B, `DRAWS`)."""
        if self.kind == "none":
            return images
        if self.kind == "affine":
            border = "zeros" if self.preprocess.invert == "auto" else "border"
            symmetric = 2 * draws[:, 3:7].to(images.dtype) - 1
            images = geometry.affine(images, symmetric, self.shift, self.zoom, self.rotate, border)
        return self._colours(self._mirror(self._move(images, draws), draws), draws)

    def _move(self, images: Tensor, draws: Tensor) -> Tensor:
        return geometry.move(images, draws[:, 8:10], self.pad) if self.pad else images

    def _mirror(self, images: Tensor, draws: Tensor) -> Tensor:
        if not self.flip:
            return images
        mirrored = draws[:, 7] < self.flip
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)

    def _colours(self, images: Tensor, draws: Tensor) -> Tensor:
        """What comes after the geometry: RandAugment, jitter and erasing."""
        if self.rand_ops:
            images = randaugment.randaugment(images, draws[:, 24:], self.rand_ops, self.rand_magnitude / 10)
        if self.jitter:
            images = randaugment.jitter(images, draws[:, 10:13], self.jitter)
        if self.erase:
            images = mix.erase(images, draws[:, 13:18], self.erase, self.preprocess.mean)
        return images

    def mix(self, images: Tensor, labels: Tensor, draws: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Mixup and cutmix of a batch: (B, C, H, W) and shares of the classes (B, `classes`), see `mix.mix`."""
        return mix.mix(images, labels, draws[:, 18:23], classes, self.mixup, self.cutmix, self.mix_part)

    def _crop_together(self, pixels: Tensor, draws: Tensor) -> Tensor:
        return geometry.crop_together(pixels.float().div_(255), self.preprocess.size, draws[:, :4], self.crop_area)

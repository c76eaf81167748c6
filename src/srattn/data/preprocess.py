"""What stands between a picture and a model: kept with the weights, so that prediction repeats the evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from srattn.data.decode import MAX_PIXELS, BadImage
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from PIL import Image

_CHOICES = {
    "channels": (1, 3),
    "fit": ("squash", "crop", "centre", "shorter", "inside"),
    "interpolation": ("bilinear", "bicubic"),
    "invert": ("never", "always", "auto"),
}
_MOST = 1e6  # of a mean or deviation; levels go from 0 to 1, or to 255
_NARROWEST = 32  # pixels that a line is as wide as, at least, where models see nothing in less


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From a decoded picture to the numbers that a model takes.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: height and width in pixels.
        mean, std: one number a channel, subtracted from and divided into levels in [0, 1].
        fit: "squash" resizes to `size` whatever the shape; "crop" takes the largest centred part of the shape of
            `size`, times `crop_fraction`, and resizes that; "centre" does so where that part is made smaller, and
            else enlarges nothing for the sake of a crop, which would blur it: of a picture hardly larger than `size`
            it takes the middle as it is, of one no larger the largest part; "shorter" keeps the shape and all of the
            picture, whose shorter side becomes that of `size`, so that results differ in size, but enlarges no line of
            pixels beyond `most_pixels`; "inside" keeps both too and fills up what is left of `size`, around the middle,
            with the mean colour.
        interpolation: "bilinear" or "bicubic", both with antialiasing.
        invert: "auto" turns dark on light into light on dark, judged by the median level of the border.
    """

    channels: int = 3
    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: str = "crop"
    crop_fraction: float = 0.9
    interpolation: str = "bilinear"
    invert: str = "never"

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise SrattnError(f"preprocess: {field} must be one of {choices}, got {getattr(self, field)!r}")
        if len(self.size) != 2 or not all(isinstance(side, int) and 1 <= side <= 8192 for side in self.size):
            raise SrattnError(f"preprocess: size must be two numbers of pixels from 1 to 8192, got {self.size!r}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise SrattnError(f"preprocess: mean and std need {self.channels} numbers, got {self.mean} and {self.std}")
        if not all(abs(value) <= _MOST for value in self.mean) or not all(0 < value <= _MOST for value in self.std):
            got = f"got {self.mean} and {self.std}"
            raise SrattnError(f"preprocess: mean must be finite and std positive, both up to {_MOST:g}, {got}")
        if not 0 < self.crop_fraction <= 1:
            raise SrattnError(f"preprocess: crop_fraction must be above 0 and at most 1, got {self.crop_fraction!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The reverse of `to_dict`, for values from a file that may be wrong in any way.

        Raises:
            SrattnError: unknown or missing names, or values out of range.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise SrattnError(f"preprocess: expected the names {sorted(names)}, got {sorted(map(str, values))}")
        try:
            plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()}
            return cls(**plain)
        except TypeError as error:
            raise SrattnError(f"preprocess: {error}") from None

    def pixels(self, image: Image.Image) -> Tensor:
        """A decoded picture ("L" or "RGB") as uint8 (channels, height, width): inverted, cropped and resized.

        Raises:
            BadImage: a line of pixels that "shorter" would make too large.
        """
        from PIL.Image import Resampling

        image = self.inverted(image)
        if self.fit in ("shorter", "inside"):
            return self._kept_in_shape(image)
        height, width = self.size
        box = self.part(image.height, image.width)
        if image.size == (width, height) and box == (0, 0, width, height):
            return to_tensor(image)
        resampling = Resampling.BICUBIC if self.interpolation == "bicubic" else Resampling.BILINEAR
        return to_tensor(image.resize((width, height), resampling, box=box))

    def part(self, height: int, width: int) -> tuple[float, float, float, float]:
        """What is resized of a picture of that size: (left, top, right, bottom) in its pixels."""
        if self.fit not in ("crop", "centre"):
            return 0.0, 0.0, float(width), float(height)
        rows, columns = self.size
        room = min(width / columns, height / rows)
        scale = self.crop_fraction * room
        if self.fit == "centre":
            scale = max(scale, min(room, 1.0))
        left, top = (width - scale * columns) / 2, (height - scale * rows) / 2
        if self.fit == "centre" and scale == 1:
            left, top = math.floor(left), math.floor(top)  # whole pixels stay what they are
        return left, top, left + scale * columns, top + scale * rows

    def factor(self, height: int, width: int) -> float:
        """What "shorter" and "inside" enlarge an image of that size by; both sides alike."""
        rows, columns = self.size
        if self.fit == "inside":
            return min(rows / height, columns / width)
        wanted = max(rows / height, columns / width)
        enough = max(1.0, math.sqrt(self.most_pixels / (height * width)), _NARROWEST / min(height, width))
        return min(wanted, enough)

    @property
    def most_pixels(self) -> int:
        """Of what "shorter" enlarges: 16 times those of `size`, or a million, whichever is more."""
        return min(MAX_PIXELS, max(16 * self.size[0] * self.size[1], 1_000_000))

    def is_too_long(self, rows: int, columns: int) -> bool:
        """Whether a result of that size has more than `most_pixels`, beyond what rounding adds."""
        return rows * columns > self.most_pixels + max(rows, columns)

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Of an image of that size after "shorter", and of its part of the result of "inside"."""
        factor = self.factor(height, width)
        return max(1, round(height * factor)), max(1, round(width * factor))

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Where "inside" puts the upper left pixel of an image of that size: (y, x)."""
        rows, columns = self.sides(height, width)
        return ((self.size[0] - rows) // 2, (self.size[1] - columns) // 2) if self.fit == "inside" else (0, 0)

    def _kept_in_shape(self, image: Image.Image) -> Tensor:
        from PIL.Image import Resampling

        rows, columns = self.sides(image.height, image.width)
        if rows > image.height and self.fit == "shorter" and self.is_too_long(rows, columns):
            raise BadImage(
                f"{image.width}x{image.height} would become {columns}x{rows}, more than the {self.most_pixels:,} "
                "pixels that are accepted; cut it"
            )
        resampling = Resampling.BICUBIC if self.interpolation == "bicubic" else Resampling.BILINEAR
        pixels = to_tensor(image.resize((columns, rows), resampling))
        if self.fit == "shorter":
            return pixels
        colour = torch.tensor([round(255 * level) for level in self.mean], dtype=torch.uint8)
        whole = colour.view(-1, 1, 1).repeat(1, *self.size)
        top, left = self.corner(image.height, image.width)
        whole[:, top : top + rows, left : left + columns] = pixels
        return whole

    def inverted(self, image: Image.Image) -> Image.Image:
        """The picture, light and dark exchanged where `invert` says so."""
        from PIL import ImageChops

        if self.invert == "always" or (self.invert == "auto" and _border_is_light(image)):
            return ImageChops.invert(image)
        return image

    def normalise(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) in [0, 1] to what the model takes."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(shape)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(shape)
        return (images - mean).div_(std)


def to_tensor(image: Image.Image) -> Tensor:
    """A picture of mode "L" or "RGB" as uint8 (channels, height, width), in memory of its own."""
    channels = len(image.getbands())
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, channels).permute(2, 0, 1).contiguous()


def to_image(pixels: Tensor) -> Image.Image:
    """The reverse of `to_tensor`."""
    from PIL import Image

    channels, height, width = pixels.shape
    data = pixels.permute(1, 2, 0).contiguous().numpy().tobytes()
    return Image.frombytes("L" if channels == 1 else "RGB", (width, height), data)


def _border_is_light(image: Image.Image) -> bool:
    levels = to_tensor(image.convert("L"))[0]
    border = torch.cat([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    return bool(border.float().median() > 127)

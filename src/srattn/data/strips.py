"""Images whose parts are read on demand, so that a large one need not lie in memory as a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, uint8

from srattn.data.preprocess import to_tensor
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from PIL import Image


@runtime_checkable
class Parts(Protocol):
    """An image of `shape` (C, H, W) that hands out its parts."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def crop(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """uint8 (C, bottom - top, right - left), for places inside of the image."""
        ...


class TensorParts:
    """Parts of a uint8 tensor (C, H, W)."""

    def __init__(self, pixels: Tensor) -> None:
        if pixels.dtype != uint8 or pixels.ndim != 3:
            raise SrattnError(f"an image must be a uint8 tensor (C, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
        self._pixels = pixels

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self._pixels.shape
        return channels, height, width

    def crop(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        return self._pixels[:, top:bottom, left:right]


class PictureParts:
    """Parts of a decoded picture of mode "L" or "RGB", without a second copy of the whole."""

    def __init__(self, picture: Image.Image) -> None:
        if picture.mode not in ("L", "RGB"):
            raise SrattnError(f"a picture must have mode L or RGB, got {picture.mode}: use srattn.data.decode.decode")
        self._picture = picture

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self._picture.getbands()), self._picture.height, self._picture.width

    def crop(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        return to_tensor(self._picture.crop((left, top, right, bottom)))


def as_parts(image: Tensor | Parts) -> Parts:
    """Whatever `image` is, as something that hands out parts.

    Raises:
        SrattnError: it is of another kind, or has no pixel.
    """
    if isinstance(image, Tensor):
        image = TensorParts(image)
    elif not isinstance(image, Parts):
        raise SrattnError(
            f"an image must be a uint8 tensor (C, H, W) or have `shape` and `crop` as srattn.data.strips.Parts has, "
            f"got {type(image).__name__}"
        )
    if len(image.shape) != 3 or min(image.shape) < 1:
        raise SrattnError(f"an image must have the shape (C, H, W) without zeros, got {tuple(image.shape)}")
    return image

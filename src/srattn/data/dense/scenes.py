"""Images with their targets, as the loader takes them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srattn.data.decode import BadImage, decode
from srattn.data.dense.target import Target
from srattn.data.palette import Of255, Palette
from srattn.data.samples import ImageData, OnBadImage, Samples
from srattn.data.sources import called, file_of

if TYPE_CHECKING:
    from PIL import Image

    from srattn.data.dense.read import Unread

Resize = Callable[["Image.Image", Target], tuple[Tensor, Target]]
ReadTarget = Callable[[tuple[int, int]], Target]
"""From an image's (height, width) as decoded to its target, in pixels of that image."""


@dataclasses.dataclass
class Scenes(Samples):
    """Samples whose labels are all 0, and whose targets are read beside them.

    Attributes:
        readers: of the targets.
        resized: from a decoded picture and its target to pixels and a target that are kept (for validation the target
            of masks stays at the picture's own size, so that figures are of its own pixels).
        kept: targets of the images that are held in memory.
        shapes: (height, width) of the pixels of each image, and those of its mask or depths, known once it was read.
        example: what a target has, without its numbers.
    """

    readers: Sequence[ReadTarget] = ()
    resized: Resize | None = None
    kept: dict[int, Target] = dataclasses.field(default_factory=dict)
    shapes: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    example: Target = dataclasses.field(default_factory=Target)

    @classmethod
    def of(cls, unread: Sequence[Unread], channels: int, resized: Resize, on_bad_image: OnBadImage) -> Scenes:
        """None of them read yet."""
        return cls(
            [one.name for one in unread],
            torch.zeros(len(unread), dtype=torch.int64),
            [one.image for one in unread],
            channels,
            on_bad_image=on_bad_image,
            readers=[one.target for one in unread],
            resized=resized,
        )

    def scene(self, index: int) -> tuple[Tensor, Target]:
        """uint8 (C, H, W) and its target.

        Raises:
            BadImage: the image or its mask has become unreadable since it was checked.
        """
        source = self.sources[index]
        if isinstance(source, Tensor):
            return source, self.kept[index]
        found = self.read(index)
        if index in self.shapes and shape_of(*found) != self.shapes[index]:
            raise BadImage(f"{called(self.names[index], source)}: of another size than when the run began")
        return found

    def read(self, index: int) -> tuple[Tensor, Target]:
        """As `scene`, from the files."""
        assert self.resized is not None
        source = self.sources[index]
        assert not isinstance(source, Tensor)
        name = called(self.names[index], source)
        image = decode(file_of(source), self.channels, name)
        target = self.readers[index]((image.height, image.width))
        try:
            return self.resized(image, target)
        except BadImage as error:
            raise BadImage(f"{name}: {error}") from None

    def try_scene(self, index: int) -> tuple[Tensor, Target] | None:
        """As `scene`; None, with the reason in `lost`, where `on_bad_image` is "skip"."""
        try:
            return self.scene(index)
        except BadImage as error:
            if self.on_bad_image == "error":
                raise
            self.lost[index] = str(error)
            return None

    def hold(self, index: int, pixels: Tensor, target: Target) -> None:
        """Keeps an image and its target in memory."""
        assert isinstance(self.sources, list)
        self.sources[index] = pixels
        self.kept[index] = target


def shape_of(pixels: Tensor, target: Target) -> tuple[int, ...]:
    """(height, width) of pixels, and again of a mask or depths if there are any."""
    return (*pixels.shape[1:], *target.grid)


@dataclasses.dataclass
class SceneData(ImageData):
    """Training and validation scenes; both parts are `Scenes`."""

    facts: str = ""
    """Of the targets, for the fingerprint."""
    palette: Palette | None = None
    """Colours of the classes, where the data says them."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What a person should know of the data."""
    bones: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Joints by number that a line is drawn between in pictures, where the data says them."""
    of_255: Of255 | None = None
    """What 255 is in masks, where they say it."""

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{super().fingerprint()} {self.facts}".encode()).hexdigest()

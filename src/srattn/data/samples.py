"""The form in which every reader hands over its images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from srattn.data.decode import BadImage, decode
from srattn.data.preprocess import Preprocess
from srattn.data.sources import Source, called, file_of

if TYPE_CHECKING:
    from PIL import Image

OnBadImage = Literal["skip", "error"]


@dataclasses.dataclass
class Samples:
    """Labelled images, each held in memory or decoded from its file at every access (the same pixels either way).

    Attributes:
        names: one an image, for messages and reports.
        labels: class numbers, int64 (N,).
        sources: for each image the prepared pixels, uint8 (C, H, W), or where to decode them from; or all pixels as
            one uint8 tensor (N, C, H, W).
        channels: 1 or 3.
        prepare: from a decoded picture to pixels; not used for images that are held.
        shape: (C, H, W) where all pictures have one shape after `prepare`; found when they are first read, so that it
            does not depend on how many of them are held.
        on_bad_image: what becomes of a file that was whole when the run began and is not any more.
        lost: the reason for every image that has become unreadable, by index.
        least: see `decode`.
        stamps: int64 (N,), what `srattn.data.sources.stamp_of` makes of each file; None where there are no files.
    """

    names: Sequence[str]
    labels: Tensor
    sources: Sequence[Source] | Tensor
    channels: int
    prepare: Callable[[Image.Image], Tensor] | None = None
    shape: tuple[int, int, int] | None = None
    on_bad_image: OnBadImage = "error"
    lost: dict[int, str] = dataclasses.field(default_factory=dict)
    least: int | None = None
    stamps: Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sources, Tensor):
            _, channels, height, width = self.sources.shape
            self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int) -> Tensor:
        """uint8 (C, H, W).

        Raises:
            BadImage: the file has become unreadable since it was checked.
        """
        source = self.sources[index]
        if isinstance(source, Tensor):
            return source
        assert self.prepare is not None
        return self.prepare(decode(file_of(source), self.channels, called(self.names[index], source), self.least))

    def try_pixels(self, index: int) -> Tensor | None:
        """As `pixels`; None, with the reason in `lost`, for an unreadable file where `on_bad_image` is "skip"."""
        try:
            return self.pixels(index)
        except BadImage as error:
            if self.on_bad_image == "error":
                raise
            self.lost[index] = str(error)
            return None

    def gather(self, indices: Tensor) -> tuple[Tensor | list[Tensor], Tensor]:
        """The pictures `indices` (B,): uint8 (B, C, H, W) if all have one shape, else a list; and their indices.

        In the place of one that has become unreadable comes the next (by number) that is whole.

        Raises:
            BadImage: an unreadable file with `on_bad_image` "error", or none in ten that follow it is whole.
        """
        if isinstance(self.sources, Tensor):
            return self.sources[indices], indices
        found, used = [], []
        for wanted in indices.tolist():
            for step in range(11):
                index = (wanted + step) % len(self)
                pixels = self.try_pixels(index)
                if pixels is not None:
                    found.append(pixels)
                    used.append(index)
                    break
            else:
                raise BadImage(f"{self.lost[wanted]}; nor can any of the ten images after it be read")
        together = torch.stack(found) if self.shape is not None and found else found
        return together, torch.tensor(used, dtype=torch.int64)


@dataclasses.dataclass
class ImageData:
    """What a run trains on and is measured by.

    Attributes:
        train: pictures as the augmentation wants them.
        val: pictures after `preprocess.pixels`: all of one size.
        skipped: one line for every file that could not be used.
    """

    classes: list[str]
    train: Samples
    val: Samples
    preprocess: Preprocess
    skipped: list[str]

    def fingerprint(self) -> str:
        """A hash of the names and labels of both parts: says whether a resumed run has the data that it began with.

        Names are relative to the data's folder, but for those that a list has as absolute paths.
        """
        return self._hash(0)

    def rootless(self) -> str:
        """As `fingerprint`, without the folder that all names begin with; empty where they are no absolute paths."""
        root = root_of([*self.train.names, *self.val.names])
        return self._hash(len(root)) if root else ""

    def _hash(self, begin: int) -> str:
        digest = hashlib.sha256()
        for part in (self.train, self.val):
            for name, label in zip(part.names, part.labels.tolist(), strict=True):
                digest.update(f"{label} {name[begin:]}\n".encode(errors="surrogateescape"))
            digest.update(b"\0")
        return digest.hexdigest()

    def contents(self) -> str:
        """A hash of what is in the files of both parts, by their stamps; empty where there are none."""
        if self.train.stamps is None or self.val.stamps is None:
            return ""
        return hashlib.sha256(torch.cat([self.train.stamps, self.val.stamps]).numpy().tobytes()).hexdigest()


def root_of(names: Sequence[str]) -> str:
    """The folder that all names begin with where they are absolute paths, with its last slash; else nothing."""
    if not names or not all(map(os.path.isabs, names)):
        return ""
    common = os.path.commonprefix([min(names), max(names)])  # noqa: RUF071 (cut at a slash below)
    return common[: max(common.rfind("/"), common.rfind(os.sep)) + 1]


def labels_tensor(labels: Sequence[int]) -> Tensor:
    """Class numbers as int64 (N,)."""
    return torch.tensor(list(labels), dtype=torch.int64)

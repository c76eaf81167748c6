"""The form in which every reader hands over its images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srattn.data.decode import decode
from srattn.data.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass
class Samples:
    """Labelled images, each held in memory or decoded from its file at every access (the same pixels either way).

    Attributes:
        names: one an image, for messages and reports.
        labels: class numbers, int64 (N,).
        sources: the prepared pixels, uint8 (C, H, W), or the path to decode them from.
        channels: 1 or 3.
        prepare: from a decoded picture to pixels; not used for images that are held.
    """

    names: list[str]
    labels: Tensor
    sources: list[Tensor | Path]
    channels: int
    prepare: Callable[[Image.Image], Tensor] | None = None

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
        return self.prepare(decode(source, self.channels))


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
        """A hash of the names and labels of both parts: says whether a resumed run has the data that it began with."""
        digest = hashlib.sha256()
        for part in (self.train, self.val):
            for name, label in zip(part.names, part.labels.tolist(), strict=True):
                digest.update(f"{label} {name}\n".encode(errors="surrogateescape"))
            digest.update(b"\0")
        return digest.hexdigest()


def labels_tensor(labels: Sequence[int]) -> Tensor:
    """Class numbers as int64 (N,)."""
    return torch.tensor(list(labels), dtype=torch.int64)

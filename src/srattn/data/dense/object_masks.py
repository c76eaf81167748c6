"""The masks of an image's objects, and what becomes of them when the image is moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.ops.run_lengths import decode_runs, encode_runs

LARGEST = 1 << 24
"""Pixels of an image: up to here float32 holds every length of a run."""
_TOGETHER = 1 << 22  # pixels of masks that are moved at once


@dataclasses.dataclass(frozen=True)
class ObjectMasks:
    """One mask an object, as lengths of runs: exact, and small enough to be kept for a whole data set.

    Attributes:
        size: (height, width) of the image.
        runs: of each object, int32 (L,), see `srattn.ops.run_lengths`; of one whose mask is not known, empty.
    """

    size: tuple[int, int]
    runs: tuple[Tensor, ...]

    @classmethod
    def of(cls, size: tuple[int, int], runs: Sequence[Tensor]) -> ObjectMasks:
        return cls(size, tuple(lengths.int() for lengths in runs))

    def __len__(self) -> int:
        return len(self.runs)

    def bytes(self) -> int:
        """Of memory."""
        return sum(lengths.numel() * lengths.element_size() for lengths in self.runs)

    def only(self, kept: Tensor) -> ObjectMasks:
        """Those where `kept` (N,) is true."""
        pairs = zip(self.runs, kept.tolist(), strict=True)
        return dataclasses.replace(self, runs=tuple(lengths for lengths, wanted in pairs if wanted))

    def gone(self) -> Tensor:
        """bool (N,): which have no pixel in the image, though they are known."""
        return torch.tensor([len(lengths) == 1 for lengths in self.runs], dtype=torch.bool)

    def without_gone(self) -> ObjectMasks:
        """The same, and what is gone is not known: nobody can be asked to find it."""
        pairs = zip(self.runs, self.gone().tolist(), strict=True)
        return dataclasses.replace(self, runs=tuple(lengths[:0] if gone else lengths for lengths, gone in pairs))

    def moved(self, matrix: Tensor, size: tuple[int, int]) -> ObjectMasks:
        """As `srattn.data.dense.target.Target.moved`: the nearest pixel, and outside where the old image ends."""
        from srattn.data.dense.warp import warp_objects

        found = list(self.runs)
        known = [number for number, lengths in enumerate(self.runs) if len(lengths)]
        step = max(1, _TOGETHER // max(1, self.size[0] * self.size[1], size[0] * size[1]))
        for start in range(0, len(known), step):
            some = known[start : start + step]
            masks = torch.stack([decode_runs(self.runs[number], self.size) for number in some])
            for number, mask in zip(some, warp_objects(masks, matrix, size), strict=True):
                found[number] = encode_runs(mask).int()
        return ObjectMasks(size, tuple(found))

    def columns(self, length: int) -> Tensor:
        """float32 (N, 1 + length): the height of the image and the runs, filled up with zeros; where a mask is not
        known zeros alone follow.

        Raises:
            SrattnError: an image too large for its lengths to be float32.
        """
        if self.size[0] * self.size[1] > LARGEST:
            raise SrattnError(f"masks of objects are for images of up to {LARGEST:,} pixels, got {self.size}")
        rows = torch.zeros(len(self.runs), 1 + length)
        rows[:, 0] = self.size[0]
        for row, lengths in zip(rows, self.runs, strict=True):
            row[1 : 1 + len(lengths)] = lengths
        return rows

    @property
    def longest(self) -> int:
        """The most runs of an object."""
        return max((len(lengths) for lengths in self.runs), default=0)

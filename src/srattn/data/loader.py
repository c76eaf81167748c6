"""Batches in an order that the keys choose, starting at any step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.augment import DRAWS, Augment
from srattn.data.keyed import hashed, permutation, uniform
from srattn.data.samples import ImageData

# One number for each purpose, so that no two draw the same hashes.
_ORDER, _AUGMENT = 1, 2


@dataclasses.dataclass(frozen=True)
class Batch:
    """`inputs` (B, C, H, W) normalised, `labels` (B,), and `indices` (B,) into the samples."""

    inputs: Tensor
    labels: Tensor
    indices: Tensor


class Loader:
    """Training and validation batches of `data`.

    Each image comes once an epoch; the last batch of an epoch may be smaller. What batch `step` of `epoch` holds
    depends on (`seed`, `epoch`, `step`) alone: neither on `workers` nor on the batches that went before.
    """

    def __init__(self, data: ImageData, augment: Augment, batch_size: int, seed: int, workers: int = 0) -> None:
        self.data, self.augment = data, augment
        self.batch_size, self.seed, self.workers = batch_size, seed, workers

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.data.train) // self.batch_size)

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from `first_step` (counted within the epoch) on."""
        order = permutation(len(self.data.train), self.seed, _ORDER, epoch)
        chosen = order.split(self.batch_size)[first_step:]
        return ahead(lambda indices: self._train_batch(indices, epoch), chosen, self.workers)

    def val(self) -> Iterator[Batch]:
        """Every validation image once, in order."""
        every = torch.arange(len(self.data.val)).split(self.batch_size)
        return ahead(self._val_batch, every, self.workers)

    def val_pixels(self, indices: Tensor) -> Tensor:
        """Validation images before normalisation, float32 (B, C, H, W) in [0, 1]."""
        return torch.stack([self.data.val.pixels(index) for index in indices.tolist()]).float() / 255

    def _train_batch(self, indices: Tensor, epoch: int) -> Batch:
        draws = uniform(DRAWS, hashed(self.seed, _AUGMENT, epoch, indices))  # (B, DRAWS)
        samples = self.data.train
        rows = zip(indices.tolist(), draws, strict=True)
        pixels = torch.stack([self.augment.item(samples.pixels(index), row) for index, row in rows])
        images = self.augment.batch(pixels.float() / 255, draws)
        return Batch(self.data.preprocess.normalise(images), samples.labels[indices], indices)

    def _val_batch(self, indices: Tensor) -> Batch:
        inputs = self.data.preprocess.normalise(self.val_pixels(indices))
        return Batch(inputs, self.data.val.labels[indices], indices)

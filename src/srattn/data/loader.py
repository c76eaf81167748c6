"""Batches in an order that the keys choose, starting at any step, split over any number of processes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.augment import DRAWS, Augment
from srattn.data.keyed import hashed, permutation, uniform
from srattn.data.samples import ImageData
from srattn.errors import SrattnError

# One number for each purpose, so that no two draw the same hashes.
_ORDER, AUGMENT_KEY = 1, 2


@dataclasses.dataclass(frozen=True)
class Batch:
    """`inputs` (B, C, H, W) normalised, `labels`, and `indices` (B,) into the samples.

    `labels` are class numbers (B,); in training with mixup or cutmix the shares of the classes, float32 (B, classes).
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor


class Loader:
    """Training and validation batches of `data`, or the part of them that process `rank` of `world` computes.

    Each image comes once an epoch; the last batch of an epoch may be smaller. What batch `step` of `epoch` holds
    depends on (`seed`, `epoch`, `step`) alone: neither on `workers` nor on the batches that went before.

    Args:
        batch_size: images of a step in all processes together. Each takes one contiguous piece of every batch, so that
            `world` processes see together what one would see; of a last batch smaller than `world` a piece may be
            empty. With mixup or cutmix the pieces begin at even places, so that the pairs are the same too.
        workers: threads that prepare batches ahead.
        eval_batch_size: validation images at a time in each process; by default `batch_size` over `world`.
        passes: over the training images in an epoch, each in an order and with changes of its own.
        pin: lay training batches into page-locked memory, from which a GPU fetches them while the host goes on.

    Attributes:
        seconds_waiting: how long whoever takes the batches has waited for them, all in all.
    """

    def __init__(
        self,
        data: ImageData,
        augment: Augment,
        batch_size: int,
        seed: int,
        workers: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
        eval_batch_size: int | None = None,
        passes: int = 1,
        pin: bool = False,
    ) -> None:
        if not 0 <= rank < world:
            raise SrattnError(f"rank must be from 0 to world - 1, got rank {rank} of world {world}")
        if batch_size < world:
            raise SrattnError(f"batch_size {batch_size} is below one image for each of the {world} processes")
        self.data, self.augment = data, augment
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.rank, self.world = rank, world
        self.eval_batch_size = max(1, batch_size // world) if eval_batch_size is None else eval_batch_size
        self.passes, self.pin = passes, pin
        self.seconds_waiting = 0.0

    @property
    def steps_per_pass(self) -> int:
        return -(-len(self.data.train) // self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        return self.passes * self.steps_per_pass

    def images_of_step(self, step: int) -> int:
        """How many images all processes together take in a step of an epoch."""
        return min(self.batch_size, len(self.data.train) - step % self.steps_per_pass * self.batch_size)

    @property
    def lost(self) -> list[str]:
        """A line for every image that has become unreadable since the run began, met by this process."""
        return [reason for part in (self.data.train, self.data.val) for reason in part.lost.values()]

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from `first_step` (counted within the epoch) on."""
        numbers = range(epoch * self.passes, (epoch + 1) * self.passes)
        batches = [(indices, number) for number in numbers for indices in self._order(number)][first_step:]
        own = [(self._piece(indices), number) for indices, number in batches]
        return self._timed(ahead(lambda batch: self._laid(self._train_batch(*batch)), own, self.workers))

    def _laid(self, batch: Batch) -> Batch:
        if not self.pin:
            return batch
        return Batch(batch.inputs.pin_memory(), batch.labels.pin_memory(), batch.indices)

    def _order(self, number: int) -> tuple[Tensor, ...]:
        """The global batches of a pass."""
        return permutation(len(self.data.train), self.seed, _ORDER, number).split(self.batch_size)

    def val(self) -> Iterator[Batch]:
        """Every validation image once: of `world` processes this takes number `rank`, `rank` + `world`, and so on.

        One that has become unreadable is left out (or refused: `Samples.on_bad_image`); `Batch.indices` tell.
        """
        own = torch.arange(self.rank, len(self.data.val), self.world).split(self.eval_batch_size)
        own = [indices for indices in own if len(indices)]
        return self._timed(batch for batch in ahead(self._val_batch, own, self.workers) if len(batch.indices))

    def val_pixels(self, indices: Tensor) -> Tensor:
        """Validation images before normalisation, float32 (B, C, H, W) in [0, 1]; black where one is unreadable now."""
        samples = self.data.val
        if isinstance(samples.sources, Tensor):
            return samples.sources[indices].float() / 255
        black = torch.zeros(self.data.preprocess.channels, *self.data.preprocess.size, dtype=torch.uint8)
        found = [samples.try_pixels(index) for index in indices.tolist()]
        return torch.stack([black if pixels is None else pixels for pixels in found]).float() / 255

    def _piece(self, indices: Tensor) -> Tensor:
        """This process's part of one global batch."""
        unit = 2 if self.augment.mixes else 1
        units = -(-len(indices) // unit)
        return indices[unit * (units * self.rank // self.world) : unit * (units * (self.rank + 1) // self.world)]

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                self.seconds_waiting += time.perf_counter() - began
                if batch is None:
                    return
                yield batch
        finally:
            batches.close()  # type: ignore[attr-defined]  # the threads are told to end now, not when memory is tidied

    def _train_batch(self, indices: Tensor, epoch: int) -> Batch:
        if not len(indices):
            return self._nothing()
        draws = uniform(DRAWS, hashed(self.seed, AUGMENT_KEY, epoch, indices))  # (B, DRAWS)
        pixels, indices = self.data.train.gather(indices)
        inputs = self.data.preprocess.normalise(self.augment.images(pixels, draws))
        labels = self.data.train.labels[indices]
        if self.augment.mixes:
            inputs, labels = self.augment.mix(inputs, labels, draws, len(self.data.classes))
        return Batch(inputs, labels, indices)

    def _nothing(self) -> Batch:
        """A batch of no images, in the shapes and types of any other."""
        channels, size, classes = self.data.preprocess.channels, self.data.preprocess.size, len(self.data.classes)
        labels = torch.zeros(0, classes) if self.augment.mixes else torch.zeros(0, dtype=torch.int64)
        return Batch(torch.zeros(0, channels, *size), labels, torch.zeros(0, dtype=torch.int64))

    def _val_batch(self, indices: Tensor) -> Batch:
        pixels = self.val_pixels(indices)
        if self.data.val.lost:
            whole = torch.tensor([index not in self.data.val.lost for index in indices.tolist()])
            pixels, indices = pixels[whole], indices[whole]
        return Batch(self.data.preprocess.normalise(pixels), self.data.val.labels[indices], indices)

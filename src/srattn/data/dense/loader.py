"""Batches of scenes: windows of one size for training, whole images of like sizes for validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.decode import BadImage
from srattn.data.dense.joint import DRAWS, JointAugment
from srattn.data.dense.scenes import SceneData, Scenes
from srattn.data.dense.target import Target, nothing, stacked
from srattn.data.keyed import hashed, uniform
from srattn.data.loader import AUGMENT_KEY, Batch, Loader

_OTHERS = 10  # images after an unreadable one that are tried in its place


class SceneLoader(Loader):
    """As `Loader`; `Batch.labels` are as `srattn.data.dense.target.stacked` makes them.

    Validation images keep their shape. Those that follow one another and have one size come together.
    """

    augment: JointAugment  # type: ignore[assignment]
    data: SceneData

    def val(self) -> Iterator[Batch]:
        own = list(range(self.rank, len(self.data.val), self.world))
        chosen = alike(own, cast(Scenes, self.data.val), self.eval_batch_size)
        batches = ahead(lambda indices: self._val_batch(torch.tensor(indices)), chosen, self.workers)
        return self._timed(batch for batch in batches if len(batch.indices))

    def val_scene(self, index: int) -> tuple[Tensor, Target] | None:
        """One validation image, float32 (C, H, W) in [0, 1], with its target; None where it is unreadable now."""
        found = cast(Scenes, self.data.val).try_scene(index)
        return None if found is None else (found[0].float() / 255, found[1])

    def _train_batch(self, indices: Tensor, epoch: int) -> Batch:
        if not len(indices):
            return self._nothing()
        samples = cast(Scenes, self.data.train)
        used, images, targets = [], [], []
        for wanted in indices.tolist():
            for step in range(_OTHERS + 1):
                index = (wanted + step) % len(samples)
                scene = samples.try_scene(index)
                if scene is not None:
                    break
            else:
                raise BadImage(f"{samples.lost[wanted]}; nor can any of the ten images after it be read")
            draws = uniform(DRAWS, hashed(self.seed, AUGMENT_KEY, epoch, torch.tensor(wanted)))
            image, target = self.augment.scene(*scene, draws)
            used.append(index)
            images.append(image)
            targets.append(target)
        inputs = self.data.preprocess.normalise(torch.stack(images))
        return Batch(inputs, stacked(targets), torch.tensor(used))

    def _nothing(self) -> Batch:
        preprocess = self.augment.preprocess
        inputs = torch.zeros(0, preprocess.channels, *preprocess.size)
        labels = nothing(cast(Scenes, self.data.train).example, preprocess.size)
        return Batch(inputs, labels, torch.zeros(0, dtype=torch.int64))

    def _val_batch(self, indices: Tensor) -> Batch:
        found = [(index, cast(Scenes, self.data.val).try_scene(index)) for index in indices.tolist()]
        whole = [(index, scene) for index, scene in found if scene is not None]
        if not whole:
            return self._nothing()
        images = torch.stack([scene[0] for _, scene in whole]).float() / 255
        labels = stacked([scene[1] for _, scene in whole])
        return Batch(self.data.preprocess.normalise(images), labels, torch.tensor([index for index, _ in whole]))


def alike(indices: Sequence[int], samples: Scenes, most: int) -> list[list[int]]:
    """The indices in their order, in groups of at most `most` neighbours whose images and masks have one shape."""
    groups: list[list[int]] = []
    for index in indices:
        last = groups[-1] if groups else []
        shape = samples.shapes.get(index)
        if last and len(last) < most and shape is not None and samples.shapes.get(last[-1]) == shape:
            last.append(index)
        else:
            groups.append([index])
    return groups

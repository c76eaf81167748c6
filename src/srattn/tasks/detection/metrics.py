"""How good detections are: the measures of COCO, by the package faster_coco_eval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from srattn.tasks.detection.assign import ignored_targets, valid_targets
from srattn.tasks.detection.precision import average_precision as average_precision
from srattn.tasks.protocol import Sum


class DetectionMetrics:
    """Average precision over everything that `update` was given, and the loss.

    "map" is the mean over ten overlaps from 0.5 to 0.95, "map50" and "map75" are those at one; means over the classes
    that have an object. At most 100 detections of an image count. What is ignored (a crowd, a difficult object) is
    COCO's "iscrowd": not to be found, and no mistake to find.

    Args:
        classes: names.
        decode: from a model's outputs to detections (B, D, 6).
        sums: from a model's outputs and targets to the sums of the loss; None where outputs do not tell the loss.
        combine: from these to the loss, and "loss" among its parts.
    """

    def __init__(
        self,
        classes: Sequence[str],
        decode: Callable[[Tensor], Tensor],
        sums: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None,
        combine: Callable[[dict[str, float]], dict[str, float]] | None = None,
    ) -> None:
        self.classes, self._decode, self._sums, self._combine = list(classes), decode, sums, combine
        self._loss: dict[str, Tensor] = {}
        self._images = 0
        # Rows (image, x1, y1, x2, y2, class) and (image, x1, y1, x2, y2, score, class), float64 so that numbers stay.
        self._objects, self._found = [_rows(6)], [_rows(7)]
        self._result: dict[str, Any] | None = None

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """`outputs` as the model gives them, `targets` as the task has them."""
        sums = {} if self._sums is None else self._sums(outputs.detach(), targets.to(outputs.device))
        for name, value in sums.items():
            self._loss[name] = self._loss.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu()
        found, targets = self._decode(outputs.detach()).double().cpu(), targets.double().cpu()
        self._found.append(_numbered(found, found[..., 5] >= 0, self._images))
        there = valid_targets(targets) | ignored_targets(targets)
        self._objects.append(_numbered(targets[..., :5], there, self._images))
        self._images += len(targets)
        self._result = None

    def reduce(self, add: Sum) -> None:
        """Each process's rows are put at a place of their own in a table of zeros; the sum of the tables has all."""
        rank, size = _process()
        images = _of_all(self._images, rank, size, add)
        before = int(images[:rank].sum())
        for collected in (self._objects, self._found):
            own = torch.cat(collected)
            own[:, 0] += before
            counts = _of_all(len(own), rank, size, add)
            table = own.new_zeros(int(counts.sum()), own.shape[1])
            start = int(counts[:rank].sum())
            table[start : start + len(own)] = own
            collected[:] = [add(table)]
        self._images, self._result = int(images.sum()), None
        if self._sums is None:
            return
        # A process without an image has no sums, and all must add the same.
        names = sorted(self._sums_of_nothing())
        zero = torch.zeros((), dtype=torch.float64)
        added = add(torch.stack([self._loss.get(name, zero) for name in names]))
        self._loss = dict(zip(names, added.unbind(), strict=True))

    def compute(self) -> dict[str, float]:
        """The loss if outputs tell it, and "map50", "map", "map75"; these are 0 where there is no object at all."""
        sums = {name: float(value) for name, value in (self._loss or self._sums_of_nothing()).items()}
        loss = {} if self._combine is None else {"loss": self._combine(sums)["loss"]}
        result = self._evaluated()
        return {**loss, "map50": result["map50"], "map": result["map"], "map75": result["map75"]}

    def details(self) -> dict[str, Any]:
        """Average precision at an overlap of 0.5 and over all of each class, objects of each, and its curve.

        `curves` has for each class the precision, at an overlap of 0.5, at 101 recalls from 0 to 1; classes without an
        object are left out.
        """
        result, objects = self._evaluated(), torch.cat(self._objects)
        labels = objects[objects[:, 5] >= 0, 5].long()
        support = torch.bincount(labels, minlength=len(self.classes)).tolist()
        return {
            "per_class_map50": result["per_class_map50"],
            "per_class_map": result["per_class_map"],
            "support": dict(zip(self.classes, support, strict=True)),
            "curves": result["curves"],
        }

    def _sums_of_nothing(self) -> dict[str, Tensor]:
        return dict.fromkeys(("box", "centre", "centreness", "class", "positives"), torch.zeros(()))

    def _evaluated(self) -> dict[str, Any]:
        if self._result is None:
            self._result = average_precision(
                torch.cat(self._objects), torch.cat(self._found), self._images, self.classes
            )
        return self._result


def _rows(columns: int) -> Tensor:
    return torch.zeros(0, columns, dtype=torch.float64)


def _numbered(values: Tensor, valid: Tensor, first: int) -> Tensor:
    """The valid rows of (B, R, C) with their image's number before them."""
    image, row = valid.nonzero().unbind(1)
    return torch.cat([(image + first).double().unsqueeze(1), values[image, row]], 1)


def _process() -> tuple[int, int]:
    """This process's number and how many there are, as the sums go over them."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _of_all(count: int, rank: int, size: int, add: Sum) -> Tensor:
    """A number of each process (size,)."""
    counts = torch.zeros(size, dtype=torch.int64)
    counts[rank] = count
    return add(counts)

"""What a segmentation is worth: overlap of regions and of contours, over a whole pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from srattn.errors import SrattnError, missing_extra
from srattn.tasks.contours import TOLERANCE, boundary_f
from srattn.tasks.losses import VOID, Loss
from srattn.tasks.losses.common import matched, two_logits
from srattn.tasks.protocol import Sum


class SegmentationMetrics:
    """Everything that `update` was given, image by image, so that sizes may differ from batch to batch.

    Predictions are made on the target's grid: logits enlarged bilinearly, then the likeliest class.

    - loss: of each image by itself, the mean over images with a valid pixel.
    - miou, dice: from the confusion of all pixels together, the mean over classes; a class that is neither in a target
      nor in a prediction is left out. They are torchmetrics' JaccardIndex and F1 with average="macro".
    - pixel_accuracy: of all valid pixels.
    - boundary_f: see `srattn.tasks.contours`; of a class the mean over the images in which it has a contour in the
      target or in the prediction, then the mean over classes that have one anywhere.

    Attributes:
        per_image: the mean intersection over union of each image in the order of `update`, over the classes in its
            target or its prediction; None for an image without a valid pixel. Of several processes each has its own.
    """

    def __init__(self, classes: list[str], loss: Loss, tolerance: float = TOLERANCE) -> None:
        try:
            from torchmetrics.functional.classification import multiclass_confusion_matrix
        except ImportError:
            raise missing_extra("torchmetrics", "train") from None
        self._confusion_of = multiclass_confusion_matrix
        self.classes, self.loss, self.tolerance = classes, loss, tolerance
        self.per_image: list[float | None] = []
        count = len(classes)
        self._processes = 1
        self._loss, self._images = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        self._confusion = torch.zeros(count, count, dtype=torch.int64)  # a row for each true class
        self._meeting = torch.zeros(2, count, dtype=torch.float64)  # of contours: the sum of F, and how many

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """`outputs` (B, K, h, w) logits, `targets` (B, H, W); computed where the outputs are."""
        logits, targets = of_outputs(outputs, self.classes), targets.to(outputs.device)
        for one, target in zip(logits, targets, strict=True):
            self._add(matched(one.unsqueeze(0), target.unsqueeze(0)), target.unsqueeze(0))

    def _add(self, logits: Tensor, target: Tensor) -> None:
        valid, count = target != VOID, len(self.classes)
        if not valid.any():
            self.per_image.append(None)
            return
        low, high = target[valid].aminmax()
        if low < 0 or high >= count:
            wrong = int(low if low < 0 else high)
            raise SrattnError(f"a target holds class {wrong}, and there are 0 to {count - 1}, and {VOID} for void")
        self._loss += self.loss(logits, target).cpu()
        self._images += 1
        predicted = logits.argmax(1)
        confusion = self._confusion_of(predicted, target, count, ignore_index=VOID, validate_args=False).cpu()
        self.per_image.append(_overlaps(confusion)["iou"][1])
        self._confusion += confusion
        values, there = boundary_f(predicted, target, valid, count, self.tolerance)
        self._meeting += torch.stack([torch.where(there, values, 0).sum(0), there.sum(0)]).cpu()

    def reduce(self, add: Sum) -> None:
        self._processes = int(add(torch.ones((), dtype=torch.int64)))
        self._loss, self._images = add(self._loss), add(self._images)
        self._confusion, self._meeting = add(self._confusion), add(self._meeting)

    def compute(self) -> dict[str, float]:
        pixels = max(int(self._confusion.sum()), 1)
        overlaps = _overlaps(self._confusion)
        return {
            "loss": float(self._loss) / max(int(self._images), 1),
            "miou": overlaps["iou"][1],
            "dice": overlaps["dice"][1],
            "pixel_accuracy": int(self._confusion.trace()) / pixels,
            "boundary_f": mean_of(*self._meeting.tolist()),
        }

    def details(self) -> dict[str, Any]:
        """By class, None where there is nothing to divide by; `support` counts the pixels of each row of `confusion`.

        `per_image` is left out of a pass that several processes shared.
        """
        overlaps, support = _overlaps(self._confusion), self._confusion.sum(1)
        accuracy = _divided(self._confusion.diagonal().tolist(), support.tolist())
        by_class = {
            "per_class_iou": overlaps["iou"][0],
            "per_class_dice": overlaps["dice"][0],
            "per_class_accuracy": accuracy,
            "per_class_boundary_f": _divided(*self._meeting.tolist()),
            "support": support.tolist(),
        }
        found: dict[str, Any] = {key: dict(zip(self.classes, row, strict=True)) for key, row in by_class.items()}
        found["confusion"] = self._confusion.tolist()
        return found if self._processes > 1 else found | {"per_image": list(self.per_image)}


def of_outputs(outputs: Tensor, classes: Sequence[str]) -> Tensor:
    """Outputs (B, K, h, w) as logits of all classes; refused if they are of another number."""
    logits = two_logits(outputs)
    if logits.shape[1] != len(classes):
        raise SrattnError(
            f"the model gives {outputs.shape[1]} logits a pixel for {len(classes)} classes; build it for them"
        )
    return logits


def mean_of(parts: Sequence[float], wholes: Sequence[float]) -> float:
    """The mean of the fractions whose whole is not 0; 0 if there is none."""
    values = [value for value in _divided(parts, wholes) if value is not None]
    return sum(values) / len(values) if values else 0.0


def _divided(parts: Sequence[float], wholes: Sequence[float]) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts, wholes, strict=True)]


def _overlaps(confusion: Tensor) -> dict[str, tuple[list[float | None], float]]:
    """From (K, K): by class and in the mean, intersection over union and Dice."""
    hit, size = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    pairs = {"iou": (hit.tolist(), (size - hit).tolist()), "dice": ((2 * hit).tolist(), size.tolist())}
    return {name: (_divided(*pair), mean_of(*pair)) for name, pair in pairs.items()}

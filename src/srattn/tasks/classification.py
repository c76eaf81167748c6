"""One class an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError
from srattn.tasks.protocol import Sum


@dataclasses.dataclass
class Classification:
    """Cross entropy over `classes`, measured by accuracy.

    Targets are class numbers (B,), or shares of the classes (B, K) where images were mixed.

    Attributes:
        label_smoothing: part of each target that is spread over all classes, training only.
        weights: (K,), how much an image counts by its class, training only; the loss is divided by their sum.
    """

    classes: list[str]
    label_smoothing: float = 0.0
    name: str = "classification"
    headline: str = "accuracy"
    weights: Tensor | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise SrattnError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor | None = None) -> Tensor:
        """`outputs` (B, K) logits, `targets` (B,) or (B, K)."""
        if self.weights is None:
            return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)
        if outputs.dtype != torch.float64:
            outputs = outputs.float()
        weights = self._weights_on(outputs.device).to(outputs.dtype)
        targets = targets.to(outputs.dtype) if targets.ndim == 2 else targets
        total = F.cross_entropy(outputs, targets, weights, reduction="sum")
        if self.label_smoothing:
            # torch's own has the classes' weights here, so that light images would be smoothed more than heavy ones.
            spread = -(outputs.log_softmax(1).mean(1) * self._of_images(targets)).sum()
            total = (1 - self.label_smoothing) * total + self.label_smoothing * spread
        weight = self._weigh(targets)
        return total / weight.where(weight > 0, 1)

    @property
    def weigh(self) -> Callable[[Tensor], Tensor] | None:
        """What the loss of some targets is divided by, where that is not their number."""
        return None if self.weights is None else self._weigh

    def _weigh(self, targets: Tensor) -> Tensor:
        return self._of_images(targets).sum()

    def _of_images(self, targets: Tensor) -> Tensor:
        """(B,); no product of matrices, which autocast would round."""
        weights = self._weights_on(targets.device)
        return (targets * weights).sum(1) if targets.ndim == 2 else weights[targets]

    def _weights_on(self, device: torch.device) -> Tensor:
        assert self.weights is not None
        self.weights = self.weights.to(device)  # kept there: a recorded step copies nothing
        return self.weights

    def tally(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums of the loss without smoothing, so that it compares with validation, and of correct answers.

        Of mixed images the class with the largest share counts as correct.
        """
        likeliest = targets.argmax(1) if targets.ndim == 2 else targets
        if outputs.dtype in (torch.bfloat16, torch.float16):  # whose sums have three digits, or overflow
            outputs = outputs.float()
        return {
            "count": torch.tensor(float(len(targets))),
            "loss": F.cross_entropy(outputs, targets, reduction="sum"),
            "correct": (outputs.argmax(1) == likeliest).sum(),
        }

    def summary(self, sums: dict[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["count"], "accuracy": sums["correct"] / sums["count"]}

    def metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics(self.classes)

    def postprocess(self, outputs: Tensor) -> Tensor:
        """(B, K) logits to probabilities."""
        return outputs.float().softmax(1)


class ClassificationMetrics:
    """Loss, accuracy, accuracy of each class and the confusion matrix over everything that `update` was given."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        count = len(classes)
        self._loss = torch.zeros((), dtype=torch.float64)
        self._confusion = torch.zeros(count, count, dtype=torch.int64)  # a row for each true class

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """`outputs` (B, K) logits, `targets` (B,)."""
        outputs, targets = outputs.detach().cpu(), targets.cpu()
        count = len(self.classes)
        self._loss += F.cross_entropy(outputs.double(), targets, reduction="sum")
        cells = torch.bincount(targets * count + outputs.argmax(1), minlength=count * count)
        self._confusion += cells.view(count, count)

    def reduce(self, add: Sum) -> None:
        self._loss, self._confusion = add(self._loss), add(self._confusion)

    def compute(self) -> dict[str, float]:
        total = int(self._confusion.sum())
        correct = int(self._confusion.trace())
        return {"loss": float(self._loss) / max(total, 1), "accuracy": correct / max(total, 1)}

    def details(self) -> dict[str, Any]:
        """`confusion` has a row for each true class and a column for each predicted one; `support` counts the rows."""
        support = self._confusion.sum(1)
        per_class = self._confusion.diagonal().double() / support.clamp(min=1)
        return {
            "per_class_accuracy": dict(zip(self.classes, per_class.tolist(), strict=True)),
            "support": dict(zip(self.classes, support.tolist(), strict=True)),
            "confusion": self._confusion.tolist(),
        }


def weights_of(given: Sequence[float] | str, labels: Tensor, classes: Sequence[str]) -> Tensor:
    """Weights of the classes, float32 (K,), whose mean over the labels is 1: only what they are to each other matters.

    Args:
        given: a number for each, or "balanced": in reverse to how often a class occurs.

    Raises:
        SrattnError: another number of weights than of classes, or no label with one above 0.
    """
    if isinstance(given, str):
        given = (1 / torch.bincount(labels, minlength=len(classes)).clamp(min=1)).tolist()
    if len(given) != len(classes):
        raise SrattnError(
            f"class_weights has {len(given)} numbers for {len(classes)} classes, which are, in order: "
            f"{', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
        )
    weights = torch.tensor(given, dtype=torch.float64)
    mean = weights[labels].mean()
    if not mean > 0:
        raise SrattnError(
            f"class_weights {list(given)} leave no image to learn from: give a class that has some more than 0"
        )
    return (weights / mean).float()

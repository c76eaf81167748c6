"""One class an image."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError, missing_extra


@dataclasses.dataclass
class Classification:
    """Cross entropy over `classes`, measured by accuracy.

    Attributes:
        label_smoothing: part of each target that is spread over all classes, training only.
    """

    classes: list[str]
    label_smoothing: float = 0.0
    name: str = "classification"
    headline: str = "accuracy"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise SrattnError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`outputs` (B, K) logits, `targets` (B,)."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def tally(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Sums of the loss without smoothing, so that it compares with validation, and of correct answers."""
        return {
            "count": float(len(targets)),
            "loss": float(F.cross_entropy(outputs, targets, reduction="sum")),
            "correct": float((outputs.argmax(1) == targets).sum()),
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
        try:
            from torchmetrics import MeanMetric, MetricCollection
            from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
        except ImportError:
            raise missing_extra("torchmetrics", "train") from None
        self.classes = classes
        count = len(classes)
        self._loss = MeanMetric().set_dtype(torch.float64)
        self._scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(count, average="micro"),
                "per_class": MulticlassAccuracy(count, average=None),
                "confusion": MulticlassConfusionMatrix(count),
            }
        )

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """`outputs` (B, K) logits, `targets` (B,)."""
        outputs, targets = outputs.detach().cpu(), targets.cpu()
        self._loss.update(F.cross_entropy(outputs.double(), targets, reduction="none"))
        self._scores.update(outputs.argmax(1), targets)

    def compute(self) -> dict[str, float]:
        return {"loss": float(self._loss.compute()), "accuracy": float(self._scores.compute()["accuracy"])}

    def details(self) -> dict[str, Any]:
        """`confusion` has a row for each true class and a column for each predicted one; `support` counts the rows."""
        scores = self._scores.compute()
        confusion = scores["confusion"]
        return {
            "per_class_accuracy": dict(zip(self.classes, scores["per_class"].tolist(), strict=True)),
            "support": dict(zip(self.classes, confusion.sum(1).tolist(), strict=True)),
            "confusion": confusion.tolist(),
        }

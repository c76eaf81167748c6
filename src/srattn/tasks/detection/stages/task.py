"""The task of a detector of two stages."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.tasks.detection.metrics import DetectionMetrics
from srattn.tasks.detection.stages.answers import BEFORE_MASK
from srattn.tasks.detection.stages.losses import SUMS, combine
from srattn.tasks.detection.stages.metrics import MaskMetrics


@dataclasses.dataclass
class TwoStage:
    """What Faster R-CNN and Mask R-CNN minimise, measured by COCO's average precision of boxes and of masks.

    Outputs of training are the sums of the losses of each image (B, 8), which the model makes itself of images and
    targets; those of evaluation are answers (B, D, 8 or 8 + S * S), see `answers.answer`, and have no loss.

    Targets are float32 (B, M, 5): x1, y1, x2, y2 in pixels of the model's input, class; rows that fill up have the
    class -1, what is neither learnt nor counted one below that (`srattn.ops.boxes.ignored_class`). Of objects with
    masks they are (B, M, 6 + L): then the height of the input, and L lengths of runs as `srattn.ops.run_lengths` has
    them, filled up with zeros; zeros alone where an object's mask is not known.

    Attributes:
        masks: whether the model answers with masks.
    """

    classes: list[str]
    masks: bool = True
    name: str = "detection"
    headline: str = "map50"

    def __post_init__(self) -> None:
        if not self.classes:
            raise SrattnError("detection needs a class")

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor | None = None) -> Tensor:
        """`outputs` (B, 8), as the model gives them where it is called with images and targets."""
        return combine(self._sums(outputs))["loss"]

    def tally(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums of the parts of the loss and of what they are divided by."""
        return {"count": torch.tensor(float(len(outputs))), **self._sums(outputs)}

    def summary(self, sums: dict[str, float]) -> dict[str, float]:
        """The loss over all steps, as if they were one, and its parts."""
        found = combine(sums)
        parts = [name for name in found if name != "loss" and (self.masks or name != "mask")]
        return {"loss": found["loss"], **{f"{name}_loss": found[name] for name in parts}}

    def metrics(self) -> DetectionMetrics:
        if self.masks:
            return MaskMetrics(self.classes, self.postprocess)
        return DetectionMetrics(self.classes, self.postprocess)

    def postprocess(self, outputs: Tensor) -> Tensor:
        """Detections (B, D, 6): x1, y1, x2, y2, score, class, best first; class -1 is padding."""
        if outputs.ndim != 3 or outputs.shape[2] < BEFORE_MASK:
            raise SrattnError(f"answers of two stages are (B, D, {BEFORE_MASK} or more), got {tuple(outputs.shape)}")
        return outputs[..., :6]

    def _sums(self, outputs: Tensor) -> dict[str, Tensor]:
        if outputs.ndim != 2 or outputs.shape[1] != len(SUMS):
            raise SrattnError(
                f"a model of two stages learns from model(images, targets), which gives (B, {len(SUMS)}), got "
                f"{tuple(outputs.shape)}"
            )
        return dict(zip(SUMS, outputs.sum(0).unbind(), strict=True))

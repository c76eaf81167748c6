"""Joints of the person in a window."""

from __future__ import annotations

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.tasks.pose.decode import decode
from srattn.tasks.pose.joints import sigmas_of
from srattn.tasks.pose.losses import loss_sums
from srattn.tasks.pose.metrics import PoseMetrics, pck
from srattn.tasks.pose.rows import Target, split_target


class Pose:
    """Heatmaps or SimCC of the joints, measured by COCO's average precision of poses.

    Outputs are heatmaps (B, K, h, w) or SimCC's logits (B, K, columns + rows). Targets are float32 (B, K + 4, 3) as
    `srattn.tasks.pose.rows` says: the joints in pixels of the model's input, and where in which image the person is,
    so that nothing here depends on a model or a size.

    Args:
        classes: names of the joints.
        columns: of SimCC's classes those of the columns; half if not given.
    """

    name = "pose"
    headline = "oks_ap"

    def __init__(self, classes: list[str], columns: int | None = None) -> None:
        if not classes:
            raise SrattnError("a pose needs a joint")
        self.classes, self.columns = classes, columns
        self._taken: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The mean over the joints of the batch that are labelled and in the input; 0 if there are none."""
        total, count = self._sums(outputs, self._target(outputs, targets))
        self._taken = (outputs.detach(), targets, total.detach(), count)
        return total / count.clamp(min=1)

    @torch.no_grad()
    def tally(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums of the joints' losses and of the joints that were found, of those that are labelled and in the input."""
        target = self._target(outputs, targets)
        taken, self._taken = self._taken, None
        if taken is not None and taken[1] is targets and taken[0].is_set_to(outputs.detach()):
            total, count = taken[2:]
        else:
            total, count = self._sums(outputs, target)
        found = decode(outputs, self.columns)
        found = torch.cat([found[..., :2] * target.size.unsqueeze(1), found[..., 2:]], 2)
        inside = (target.joints[..., :2] >= 0) & (target.joints[..., :2] <= target.size.unsqueeze(1))
        near = pck(target.joints, found, target.side * target.scale) & inside.all(2)
        return {"count": torch.tensor(float(len(targets))), "loss": total, "joints": count, "found": near.sum()}

    def summary(self, sums: dict[str, float]) -> dict[str, float]:
        """The loss and "pck" of `srattn.tasks.pose.metrics.PoseMetrics`; precision is a matter of evaluation alone."""
        joints = max(sums["joints"], 1)
        return {"loss": sums["loss"] / joints, "pck": sums["found"] / joints}

    def metrics(self) -> PoseMetrics:
        return PoseMetrics(self.classes, sigmas_of(self.classes), self.postprocess, self._sums)

    def postprocess(self, outputs: Tensor) -> Tensor:
        """Joints (B, K, 3): x and y as parts of the input's width and height, score from 0 to 1.

        `srattn.tasks.pose.in_image` brings them to pixels of the image.
        """
        return decode(outputs, self.columns)

    def _sums(self, outputs: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        with torch.autocast(outputs.device.type, enabled=False):
            return loss_sums(outputs, target, self.columns)

    def _target(self, outputs: Tensor, targets: Tensor) -> Target:
        if outputs.ndim not in (3, 4) or outputs.shape[1] != len(self.classes) or len(outputs) != len(targets):
            raise SrattnError(
                f"poses of {len(self.classes)} joints are heatmaps (B, {len(self.classes)}, h, w) or logits "
                f"(B, {len(self.classes)}, columns + rows), got {tuple(outputs.shape)} for {len(targets)} target(s)"
            )
        return split_target(targets, len(self.classes))

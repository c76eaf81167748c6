"""Boxes and classes of the objects in an image."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.heads.rows import Rows, split_rows
from srattn.tasks.detection.decode import Choice, decode
from srattn.tasks.detection.losses import PARTS, combine, loss_sums
from srattn.tasks.detection.metrics import DetectionMetrics
from srattn.tasks.detection.stages.task import TwoStage


class _Last(NamedTuple):
    """What was computed last, and of what; the tensors are held, so that their memory cannot become another's."""

    outputs: Tensor
    version: int
    targets: Tensor
    sums: dict[str, Tensor]

    def of(self, outputs: Tensor, targets: Tensor) -> bool:
        """Whether these are the same tensors, and nobody has written to the outputs since."""
        mine, same = self.outputs, targets is self.targets and outputs._version == self.version
        facts = [(x.data_ptr(), x.shape, x.stride(), x.dtype) for x in (mine, outputs)]
        return same and facts[0] == facts[1]


@dataclasses.dataclass
class Detection:
    """What FCOS and RetinaNet minimise, measured by COCO's average precision.

    Outputs are rows (B, N, 10 or 11 + classes) as `srattn.heads.rows` says, in training and in evaluation; they say
    themselves where in the image they stand, so that nothing here depends on a model or a size. Those with a
    centreness are FCOS's, the others RetinaNet's.

    Targets are float32 (B, M, 5): x1, y1, x2, y2 in pixels of the model's input, class; rows that fill up have the
    class -1, what is neither learnt nor counted one below that (`srattn.ops.boxes.ignored_class`).

    Attributes:
        choice: which answers are given, and measured.
    """

    classes: list[str]
    choice: Choice = dataclasses.field(default_factory=Choice)
    name: str = "detection"
    headline: str = "map50"

    def __post_init__(self) -> None:
        if not self.classes:
            raise SrattnError("detection needs a class")
        self._last: _Last | None = None

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor | None = None) -> Tensor:
        """`outputs` (B, N, columns), `targets` (B, M, 5)."""
        sums = self.sums(outputs, targets)
        # The step asks for its tallies next, of the same tensors: they are not computed twice.
        kept = {name: value.detach() for name, value in sums.items()}
        self._last = _Last(outputs.detach(), outputs._version, targets, kept)
        return combine(sums)["loss"]

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """See `srattn.tasks.detection.losses.loss_sums`."""
        rows = self._rows(outputs)
        if targets.ndim != 3 or targets.shape[2] != 5 or len(targets) != len(outputs):
            raise SrattnError(
                f"targets of detection are (B, M, 5), x1 y1 x2 y2 class, got {tuple(targets.shape)} for "
                f"{len(outputs)} image(s)"
            )
        with torch.autocast(outputs.device.type, enabled=False):
            return loss_sums(rows, targets)

    def tally(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums of the parts of the loss and of what they are divided by."""
        last, self._last = self._last, None
        sums = last.sums if last and last.of(outputs, targets) else self.sums(outputs, targets)
        return {"count": torch.tensor(float(len(targets))), **sums}

    def summary(self, sums: dict[str, float]) -> dict[str, float]:
        """The loss over all steps, as if they were one, and its parts; precision is a matter of evaluation alone."""
        found = combine(sums)
        return {"loss": found["loss"], **{f"{name}_loss": found[name] for name in PARTS}}

    def metrics(self) -> DetectionMetrics:
        return DetectionMetrics(self.classes, self.postprocess, self.sums, combine)

    def postprocess(self, outputs: Tensor) -> Tensor:
        """Detections (B, `choice.most`, 6): x1, y1, x2, y2, score, class, best first; class -1 is padding."""
        return decode(self._rows(outputs), self.choice)

    def _rows(self, outputs: Tensor) -> Rows:
        half = outputs.dtype in (torch.float16, torch.bfloat16)
        return split_rows(outputs.float() if half else outputs, len(self.classes))


def make_detection(
    classes: list[str],
    label_smoothing: float = 0.0,
    *,
    score: float = 0.05,
    overlap: float = 0.6,
    candidates: int = 1000,
    most: int = 100,
    stages: int = 1,
    masks: bool = False,
) -> Detection | TwoStage:
    """As the registry asks for it, with the options of `Choice`; or that of a model of two `stages`, with `masks` or
    without, whose answers are chosen by itself.

    A run's label smoothing, which has a default, is for classes that exclude each other: here each is a question of
    its own, and the focal loss takes no notice of it.
    """
    choice = Choice(score, overlap, candidates, most)
    if stages == 1 and not masks:
        return Detection(classes, choice)
    if stages != 2 or choice != Choice():
        raise SrattnError(
            f"masks are of models of 2 stages, and those choose their answers themselves; got {stages=}, {masks=}, "
            f"{choice}"
        )
    return TwoStage(classes, masks)

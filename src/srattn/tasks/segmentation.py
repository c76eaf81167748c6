"""One class a pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.tasks.losses import VOID, parse_loss
from srattn.tasks.losses.common import two_logits
from srattn.tasks.segmentation_metrics import SegmentationMetrics, mean_of, of_outputs


class Segmentation:
    """A loss over `classes`, measured by the mean intersection over union.

    Outputs are logits (B, K, h, w) on a grid of their own; of two classes, (B, 1, h, w) will do, the logit of the
    second. Targets are class numbers (B, H, W), int64; void pixels (255) count nowhere.

    Args:
        classes: at least two, the background counts as one.
        label_smoothing: part of each target that is spread over all classes, training only; of cross-entropy, the
            other losses have none.
        loss: as `srattn.tasks.losses.parse_loss` reads it: "ce", "ce+dice", "0.5*ce+lovasz".
        auxiliary: the weight of the same loss of a model's auxiliary head, whose logits follow the others in training,
            (B, 2 K, h, w); it is learnt by and not reported.
    """

    name = "segmentation"
    headline = "miou"

    def __init__(
        self, classes: list[str], label_smoothing: float = 0.0, loss: str = "ce", auxiliary: float = 0.0
    ) -> None:
        if not 2 <= len(classes) <= VOID:
            raise SrattnError(
                f"segmentation is of 2 to {VOID} classes, the background among them, got {len(classes)}: "
                f"{', '.join(classes[:5])}"
            )
        self.classes, self.label_smoothing, self.auxiliary = classes, label_smoothing, auxiliary
        self.objective = parse_loss(loss, label_smoothing=label_smoothing)
        self.measured = parse_loss(loss)  # without smoothing, so that training compares with validation
        self._taken: tuple[Tensor, Tensor, Tensor] | None = None

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor | None = None) -> Tensor:
        """`outputs` (B, K, h, w) logits, `targets` (B, H, W); the mean over the valid pixels of the batch."""
        logits, beside = self._divided(outputs)
        value = self.objective(of_outputs(logits, self.classes), targets)
        self._taken = None if self.objective.smooths else (outputs.detach(), targets, value.detach())
        return value if beside is None else value + self.auxiliary * self.objective(beside, targets)

    def _divided(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits, and those of the auxiliary head where there are any."""
        count = len(self.classes)
        if not self.auxiliary or outputs.shape[1] != 2 * count:
            return outputs, None
        return outputs[:, :count], outputs[:, count:]

    def weigh(self, targets: Tensor) -> Tensor:
        """What a batch counts beside others in a mean over all of them: its valid pixels."""
        return (targets != VOID).sum().float()

    @torch.no_grad()
    def tally(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums of the loss without smoothing and, by class, of the pixels in the intersection and in the union.

        Pixels are counted on the outputs' own grid, where the target is read at the nearest pixel.
        """
        logits, count = of_outputs(self._divided(outputs)[0], self.classes), len(self.classes)
        predicted = logits.argmax(1)
        target = nearest_on(targets, predicted.shape[1], predicted.shape[2])
        valid = target != VOID
        hit = _counts(target, valid & (predicted == target), count)
        true, said = _counts(target, valid, count), _counts(predicted, valid, count)
        place = {"dtype": torch.float32 if outputs.device.type == "mps" else torch.float64, "device": outputs.device}
        values = torch.cat([true.sum().view(1), torch.stack([hit, true + said - hit], 1).flatten()]).to(**place)
        names = ["pixels", *(f"{kind}{number}" for number in range(count) for kind in "iu")]
        loss = self._loss_of(outputs, targets).to(place["dtype"])
        sums = {"count": torch.full((), float(len(targets)), **place), "loss": loss * len(targets)}
        return sums | dict(zip(names, values.unbind(), strict=True))

    def _loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss without smoothing; not taken again if `loss` has just been asked for it."""
        taken, self._taken = self._taken, None
        if taken is not None and taken[1] is targets and taken[0].is_set_to(outputs.detach()):
            return taken[2]
        return self.measured(of_outputs(self._divided(outputs)[0], self.classes), targets)

    def summary(self, sums: dict[str, float]) -> dict[str, float]:
        numbers = range(len(self.classes))
        hits, unions = [sums[f"i{n}"] for n in numbers], [sums[f"u{n}"] for n in numbers]
        return {
            "loss": sums["loss"] / sums["count"],
            "miou": mean_of(hits, unions),
            "pixel_accuracy": sum(hits) / max(sums["pixels"], 1),
        }

    def metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics(self.classes, self.measured)

    def postprocess(self, outputs: Tensor) -> Tensor:
        """(B, K, h, w) logits to the share (B, K) of the image that is predicted to be of each class.

        Maps of classes differ in size and are many: `class_map` gives that of one batch.
        """
        predicted = of_outputs(outputs, self.classes).argmax(1).flatten(1)  # (B, h * w)
        shares = torch.zeros(len(outputs), len(self.classes), device=outputs.device)
        return shares.scatter_add_(1, predicted, torch.ones_like(predicted, dtype=shares.dtype)) / predicted.shape[1]


def class_map(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, K, h, w) to the class (B, H, W), uint8, of every pixel of an image of that size."""
    logits = two_logits(logits.float())
    if tuple(logits.shape[2:]) != size:
        logits = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits.argmax(1).to(torch.uint8)


def nearest_on(target: Tensor, height: int, width: int) -> Tensor:
    """A map (B, H, W) read on a grid (B, height, width): at the pixel that holds the centre of each cell."""
    for axis, size in ((1, height), (2, width)):
        old = target.shape[axis]
        if old != size:
            centres = (2 * torch.arange(size, device=target.device) + 1) * old // (2 * size)
            target = target.index_select(axis, centres)
    return target


def _counts(numbers: Tensor, chosen: Tensor, count: int) -> Tensor:
    """How many of the chosen pixels are of each class (K,); unlike bincount it does not wait for the device."""
    bins = torch.where(chosen, numbers, count).flatten()
    return torch.zeros(count + 1, dtype=torch.int64, device=bins.device).scatter_add_(0, bins, torch.ones_like(bins))[
        :-1
    ]

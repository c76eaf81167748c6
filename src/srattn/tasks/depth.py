"""One distance a pixel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError
from srattn.tasks.depth_distance import ByDistance
from srattn.tasks.protocol import Sum

MAX_DEPTH = 10.0
"""Metres, of rooms (NYU Depth v2); 80 is usual for streets (KITTI)."""
LEAST = 1e-3
"""Metres; what is predicted to be nearer counts as this, as in the published evaluations on NYU Depth and KITTI."""
_FLOOR = 1e-6  # of a logarithm in the loss, lower than LEAST so that near predictions still learn
_FIGURES = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "rmse_log", "silog")


class Depth:
    """The scale-invariant loss of logarithms, measured by the share of pixels within 25 % (delta1).

    Outputs are metres, (B, h, w) or (B, 1, h, w), brought to the target's grid bilinearly. Targets are metres
    (B, H, W), floating; 0, NaN and what is beyond `max_depth` is unknown and counts nowhere.

    Args:
        max_depth: metres, 10 in NYU Depth and 80 in KITTI.
        balance: the lambda of the loss: 0 looks at every logarithm by itself, 1 forgives a common factor.
    """

    name = "depth"
    headline = "delta1"

    def __init__(self, max_depth: float = MAX_DEPTH, balance: float = 0.5) -> None:
        if not max_depth > LEAST:
            raise SrattnError(f"max_depth must be above {LEAST} metres, got {max_depth}")
        if not 0 <= balance <= 1:
            raise SrattnError(f"balance must be from 0 to 1, got {balance}")
        self.max_depth, self.balance = max_depth, balance

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Over the known pixels of the batch; 0 if there are none."""
        depth = on_target(outputs, targets)
        return silog(depth, targets, known(targets, self.max_depth), self.balance)

    @torch.no_grad()
    def tally(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums of the loss, and of delta1 over the images in which anything is known."""
        depth, valid = on_target(outputs, targets), known(targets, self.max_depth)
        return {
            "count": torch.tensor(float(len(targets))),
            "loss": silog(depth, targets, valid, self.balance) * len(targets),
            "measured": valid.flatten(1).any(1).sum(),
            "delta1": _figures(depth, targets, valid, self.max_depth)[:, 0].sum(),
        }

    def summary(self, sums: dict[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["count"], "delta1": sums["delta1"] / max(sums["measured"], 1)}

    def metrics(self) -> DepthMetrics:
        return DepthMetrics(self.max_depth, self.balance)

    def postprocess(self, outputs: Tensor) -> Tensor:
        """To the least, the middle and the largest depth (B, 3) of each image: maps differ in size and are many."""
        flat = outputs.float().flatten(1)
        return torch.stack([flat.amin(1), flat.median(1).values, flat.amax(1)], 1)


def depth_map(outputs: Tensor, size: tuple[int, int]) -> Tensor:
    """Depths (B, h, w) or (B, 1, h, w) to those of every pixel of an image of `size`, float32 (B, H, W), in metres."""
    depth = outputs.unsqueeze(1) if outputs.ndim == 3 else outputs
    return F.interpolate(depth.float(), size=size, mode="bilinear", align_corners=False).squeeze(1)


class DepthMetrics:
    """The published figures (arXiv:1406.2283, section 4): means over images, of each over its known pixels.

    - delta1, delta2, delta3: share of pixels with max(p / t, t / p) below 1.25, 1.25 ** 2, 1.25 ** 3.
    - abs_rel: mean |p - t| / t. rmse: root of the mean (p - t) ** 2, metres. rmse_log: the same of natural logarithms.
    - silog: 100 times the standard deviation of log p - log t, as KITTI's benchmark has it.

    Attributes:
        per_image: delta1 of each image in the order of `update`, None for one without a known pixel. Of several
            processes each has its own.
    """

    def __init__(self, max_depth: float, balance: float = 0.5) -> None:
        self.max_depth, self.balance = max_depth, balance
        self._sums = torch.zeros(len(_FIGURES) + 1, dtype=torch.float64)  # the loss comes last
        self._counts = torch.zeros(2, dtype=torch.int64)  # images, pixels
        self._distance = ByDistance(max_depth)
        self.per_image: list[float | None] = []
        self._processes = 1

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """`outputs` and `targets` as the task takes them; computed where the outputs are."""
        targets = targets.to(outputs.device)
        depth, valid = on_target(outputs, targets), known(targets, self.max_depth)
        losses = [silog(*one, self.balance) for one in zip(depth, targets, valid, strict=True)]
        figures, measured = _figures(depth, targets, valid, self.max_depth).cpu(), valid.flatten(1).any(1).cpu()
        self._sums[:-1] += figures.sum(0)
        self._sums[-1] += sum(float(loss) for loss in losses)
        self._counts += torch.stack([measured.sum(), valid.sum().cpu()])
        self._distance.update(depth[valid].clamp(LEAST, self.max_depth), targets[valid])
        near = figures[:, 0].tolist()
        self.per_image += [value if there else None for value, there in zip(near, measured.tolist(), strict=True)]

    def reduce(self, add: Sum) -> None:
        self._processes = int(add(torch.ones((), dtype=torch.int64)))
        self._sums, self._counts = add(self._sums), add(self._counts)
        self._distance.reduce(add)

    def compute(self) -> dict[str, float]:
        *values, loss = (self._sums / self._counts[0].clamp(min=1)).tolist()
        return {"loss": loss, **dict(zip(_FIGURES, values, strict=True))}

    def details(self) -> dict[str, Any]:
        """How many images had a known pixel, and how many pixels were known; errors by distance; delta1 of each image.

        The last, "per_image" in the order of `update`, is left out of a pass that several processes shared.
        """
        images, pixels = self._counts.tolist()
        found = {"measured_images": images, "measured_pixels": pixels, "by_distance": self._distance.details()}
        return found if self._processes > 1 else found | {"per_image": list(self.per_image)}


def known(targets: Tensor, max_depth: float) -> Tensor:
    """Where a target says something (B, H, W); of NaN both comparisons are false."""
    return (targets > 0) & (targets <= max_depth)


def on_target(outputs: Tensor, targets: Tensor) -> Tensor:
    """Depths (B, h, w) or (B, 1, h, w) on the target's grid (B, H, W), in float32 or float64."""
    depth = outputs.unsqueeze(1) if outputs.ndim == 3 else outputs
    if targets.ndim != 3 or depth.ndim != 4 or depth.shape[1] != 1 or len(depth) != len(targets):
        raise SrattnError(
            f"depth takes outputs (B, h, w) and targets (B, H, W), got {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}"
        )
    depth = depth if depth.dtype == torch.float64 else depth.float()
    if depth.shape[2:] != targets.shape[1:]:
        depth = F.interpolate(depth, size=tuple(targets.shape[1:]), mode="bilinear", align_corners=False)
    return depth.squeeze(1)


def silog(depth: Tensor, targets: Tensor, valid: Tensor, balance: float = 0.5) -> Tensor:
    """The root of mean(d ** 2) - balance mean(d) ** 2 with d = log depth - log target, over all valid pixels together.

    Eigen et al. (arXiv:1406.2283, equation 4) without the root; GLPN (arXiv:2201.07436) prints it so too and trains
    with the root, as here. Where the root would be 0 its slope is taken as 0.
    """
    count = valid.sum().clamp(min=1)
    truth = torch.where(valid, targets, 1).to(depth.dtype)
    difference = torch.where(valid, depth.clamp(min=_FLOOR).log() - truth.log(), 0)
    value = difference.square().sum() / count - balance * (difference.sum() / count).square()
    above = value > torch.finfo(depth.dtype).tiny
    return torch.where(above, torch.where(above, value, 1).sqrt(), 0)


def _figures(depth: Tensor, targets: Tensor, valid: Tensor, max_depth: float) -> Tensor:
    """Of each image those of `_FIGURES` (B, 7), in float64 where the device has it; 0 without a known pixel."""
    exact = torch.float32 if depth.device.type == "mps" else torch.float64
    truth = torch.where(valid, targets, 1).to(exact)
    depth = torch.where(valid, depth.to(exact).clamp(LEAST, max_depth), 1)
    count = valid.flatten(1).sum(1).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return torch.where(valid, values, 0).flatten(1).sum(1) / count

    ratio = torch.maximum(depth / truth, truth / depth)
    log = depth.log() - truth.log()
    square = mean(log.square())
    deltas = [mean((ratio < 1.25**power).to(exact)) for power in (1, 2, 3)]
    errors = [mean((depth - truth).abs() / truth), mean((depth - truth).square()).sqrt(), square.sqrt()]
    spread = (square - mean(log).square()).clamp(min=0).sqrt()
    return torch.stack([*deltas, *errors, 100 * spread], 1)

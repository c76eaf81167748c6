"""How good poses are: similarity of joints as COCO measures it, and PCK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from srattn.tasks.detection.metrics import _of_all, _process
from srattn.tasks.pose.decode import in_image
from srattn.tasks.pose.rows import Target, split_target
from srattn.tasks.pose.similarity import OVERLAPS, by_similarity, oks_curves, similarity
from srattn.tasks.protocol import Sum

PART = 0.2
"""Of the longer side of a person's box: how far a joint that counts as found may be (PCK)."""
_FACTS = 3  # columns before the joints: image, area, longer side


class PoseMetrics:
    """Everything that `update` was given, and the loss.

    - oks_ap: COCO's average precision, where the similarity of two poses takes the place of the overlap of two boxes,
      the mean over ten from 0.5 to 0.95; "oks_ap50" and "oks_ap75" at one. Who is in which image is known, so that
      each person has one answer; at most 20 of an image count.
    - pck: the share of the labelled joints within `PART` of the longer side of the person's box.

    Args:
        names: of the joints.
        sigmas: of each, see `srattn.tasks.pose.joints.sigmas_of`.
        decode: from outputs to joints (B, K, 3) in parts of the input.
        sums: from outputs and targets to the sum of the joints' losses, and how many they are.
    """

    def __init__(
        self,
        names: Sequence[str],
        sigmas: Sequence[float],
        decode: Callable[[Tensor], Tensor],
        sums: Callable[[Tensor, Target], tuple[Tensor, Tensor]],
    ) -> None:
        self.names, self.sigmas, self._decode, self._sums = list(names), list(sigmas), decode, sums
        self._loss = torch.zeros(2, dtype=torch.float64)
        self._rows = [torch.zeros(0, _FACTS + 6 * len(self.names), dtype=torch.float64)]
        self._precision: Tensor | None = None  # of all that was collected so far
        self._processes = 1

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """`outputs` as the model gives them, `targets` (B, K + 4, 3)."""
        count = len(self.names)
        near = split_target(targets.to(outputs.device), count)
        self._loss += torch.stack(self._sums(outputs, near)).double().cpu()
        target = split_target(targets.double().cpu(), count)
        found = in_image(self._decode(outputs).double().cpu(), target.matrix, target.size)
        true = in_image(_in_parts(target), target.matrix, target.size)
        facts = torch.stack([target.image, target.area, target.side], 1)
        self._rows.append(torch.cat([facts, true.flatten(1), found.flatten(1)], 1))
        self._precision = None

    def reduce(self, add: Sum) -> None:
        """Each process's rows are put at a place of their own in a table of zeros; the sum of the tables has all."""
        rank, size = _process()
        own = torch.cat(self._rows)
        counts = _of_all(len(own), rank, size, add)
        table = own.new_zeros(int(counts.sum()), own.shape[1])
        start = int(counts[:rank].sum())
        table[start : start + len(own)] = own
        self._rows, self._loss = [add(table)], add(self._loss)
        self._precision, self._processes = None, size

    def compute(self) -> dict[str, float]:
        facts, true, found = self._tables()
        near, known = pck(true, found, facts[:, 2]), true[..., 2] > 0
        return {
            "loss": float(self._loss[0] / self._loss[1].clamp(min=1)),
            **by_similarity(self._curves()),
            "pck": float(near.sum() / known.sum().clamp(min=1)),
        }

    def details(self) -> dict[str, Any]:
        """By joint, of those that are labelled at all, the share that was found and the mean similarity; how often each
        is labelled; people; and "curves", the precision at 101 recalls from 0 to 1 for each similarity of `oks_ap`.

        `per_image` is left out of a pass that several processes shared.
        """
        facts, true, found = self._tables()
        near, labelled = pck(true, found, facts[:, 2]).sum(0).tolist(), true[..., 2] > 0
        alike, known = similarity(facts, true, found, self.sigmas), labelled.sum(0).tolist()
        sums, curves = alike.sum(0).tolist(), self._curves()
        details = {
            "per_joint_pck": {name: a / b for name, a, b in zip(self.names, near, known, strict=True) if b},
            "per_joint_oks": {name: a / b for name, a, b in zip(self.names, sums, known, strict=True) if b},
            "support": dict(zip(self.names, known, strict=True)),
            "people": len(facts),
            "curves": {} if curves is None else dict(zip(OVERLAPS, curves.tolist(), strict=True)),
        }
        return details if self._processes > 1 else details | {"per_image": self.per_image}

    @property
    def per_image(self) -> list[float | None]:
        """The similarity of each person in the order of `update`, None without a labelled joint; after `reduce` of all,
        process by process."""
        facts, true, found = self._tables()
        sums = similarity(facts, true, found, self.sigmas).sum(1).tolist()
        labelled = (true[..., 2] > 0).sum(1).tolist()
        return [total / count if count else None for total, count in zip(sums, labelled, strict=True)]

    def _curves(self) -> Tensor | None:
        if self._precision is None:
            self._precision = oks_curves(*self._tables(), self.sigmas)
        return self._precision

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Facts (N, 3), and joints as they are and as they were found (N, K, 3), in pixels of the images."""
        rows, count = torch.cat(self._rows), 3 * len(self.names)
        true, found = rows[:, _FACTS : _FACTS + count], rows[:, _FACTS + count :]
        return rows[:, :_FACTS], true.unflatten(1, (-1, 3)), found.unflatten(1, (-1, 3))


def pck(true: Tensor, found: Tensor, side: Tensor, part: float = PART) -> Tensor:
    """(N, K), bool: labelled, and within `part` of the person's longer side (N,) of where it is."""
    distance = (true[..., :2] - found[..., :2]).norm(dim=2)
    return (distance <= part * side.unsqueeze(1)) & (true[..., 2] > 0)


def _in_parts(target: Target) -> Tensor:
    """Joints (B, K, 3) in parts of the input, as `decode` gives them."""
    return torch.cat([target.joints[..., :2] / target.size.unsqueeze(1), target.joints[..., 2:]], 2)

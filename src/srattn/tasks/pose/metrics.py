"""How good poses are: similarity of joints as COCO measures it, by the package faster_coco_eval, and PCK."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from srattn.errors import missing_extra
from srattn.tasks.detection.metrics import _of_all, _process
from srattn.tasks.pose.decode import in_image
from srattn.tasks.pose.rows import Target, split_target
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

    def reduce(self, add: Sum) -> None:
        """Each process's rows are put at a place of their own in a table of zeros; the sum of the tables has all."""
        rank, size = _process()
        own = torch.cat(self._rows)
        counts = _of_all(len(own), rank, size, add)
        table = own.new_zeros(int(counts.sum()), own.shape[1])
        start = int(counts[:rank].sum())
        table[start : start + len(own)] = own
        self._rows, self._loss = [add(table)], add(self._loss)

    def compute(self) -> dict[str, float]:
        facts, true, found = self._tables()
        near, known = pck(true, found, facts[:, 2]), true[..., 2] > 0
        return {
            "loss": float(self._loss[0] / self._loss[1].clamp(min=1)),
            **oks_precision(facts, true, found, self.sigmas),
            "pck": float(near.sum() / known.sum().clamp(min=1)),
        }

    def details(self) -> dict[str, Any]:
        """The share of each joint that was found, of those that are labelled at all; how often each is; and people."""
        facts, true, found = self._tables()
        near, known = pck(true, found, facts[:, 2]).sum(0).tolist(), (true[..., 2] > 0).sum(0).tolist()
        return {
            "per_joint_pck": {name: a / b for name, a, b in zip(self.names, near, known, strict=True) if b},
            "support": dict(zip(self.names, known, strict=True)),
            "people": len(facts),
        }

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Facts (N, 3), and joints as they are and as they were found (N, K, 3), in pixels of the images."""
        rows, count = torch.cat(self._rows), 3 * len(self.names)
        true, found = rows[:, _FACTS : _FACTS + count], rows[:, _FACTS + count :]
        return rows[:, :_FACTS], true.unflatten(1, (-1, 3)), found.unflatten(1, (-1, 3))


def pck(true: Tensor, found: Tensor, side: Tensor, part: float = PART) -> Tensor:
    """(N, K), bool: labelled, and within `part` of the person's longer side (N,) of where it is."""
    distance = (true[..., :2] - found[..., :2]).norm(dim=2)
    return (distance <= part * side.unsqueeze(1)) & (true[..., 2] > 0)


def oks_precision(facts: Tensor, true: Tensor, found: Tensor, sigmas: Sequence[float]) -> dict[str, float]:
    """COCO's figures of poses; 0 where nobody has a labelled joint.

    Args:
        facts: (N, 2 or more): image, area.
        true, found: (N, K, 3) in pixels of the image: x, y, visibility or score.
    """
    if not bool((true[..., 2] > 0).any()):
        return {"oks_ap": 0.0, "oks_ap50": 0.0, "oks_ap75": 0.0}
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise missing_extra("faster-coco-eval", "train") from None
    images = [int(number) + 1 for number in facts[:, 0].tolist()]
    people = [
        {
            "id": number,
            "image_id": image,
            "category_id": 1,
            "keypoints": joints.flatten().tolist(),
            "num_keypoints": int((joints[:, 2] > 0).sum()),
            "area": area,
            "bbox": _around(joints),
            "iscrowd": 0,
        }
        for number, (image, area, joints) in enumerate(zip(images, facts[:, 1].tolist(), true, strict=True), 1)
    ]
    answers = [
        {
            "image_id": image,
            "category_id": 1,
            "keypoints": joints.flatten().tolist(),
            "score": float(joints[:, 2].mean()),
        }
        for image, joints in zip(images, found, strict=True)
    ]
    quiet = logging.getLogger("faster_coco_eval").debug
    truth = COCO(
        {
            "images": [{"id": number} for number in sorted(set(images))],
            "annotations": people,
            "categories": [{"id": 1, "name": "person"}],
        },
        print_function=quiet,
    )
    measure = COCOeval_faster(
        truth,
        truth.loadRes(answers),
        iouType="keypoints",
        print_function=quiet,
        kpt_oks_sigmas=list(sigmas),
    )
    measure.evaluate()
    measure.accumulate()
    # (similarities, recalls, classes, areas, most people); -1 where there is nobody.
    precision = torch.as_tensor(measure.eval["precision"], dtype=torch.float64)[:, :, 0, 0, -1]
    means = precision.mean(1)
    return {"oks_ap": float(means.mean()), "oks_ap50": float(means[0]), "oks_ap75": float(means[5])}


def _around(joints: Tensor) -> list[float]:
    """x, y, width, height of the labelled joints."""
    place = joints[joints[:, 2] > 0, :2] if bool((joints[:, 2] > 0).any()) else joints[:, :2]
    low, high = place.amin(0), place.amax(0)
    return [*low.tolist(), *(high - low).tolist()]


def _in_parts(target: Target) -> Tensor:
    """Joints (B, K, 3) in parts of the input, as `decode` gives them."""
    return torch.cat([target.joints[..., :2] / target.size.unsqueeze(1), target.joints[..., 2:]], 2)

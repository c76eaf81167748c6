"""Similarity of joints (OKS) as COCO measures it; precision by the package faster_coco_eval."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.errors import missing_extra

OVERLAPS = tuple(f"{0.5 + 0.05 * step:.2f}" for step in range(10))
"""The ten similarities from which on a person counts as found."""


def similarity(facts: Tensor, true: Tensor, found: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Of each joint (N, K), from 0 to 1: exp(-d ** 2 / (2 (2 sigma) ** 2 area)); 0 where it is not labelled.

    The similarity of two poses is the mean over the labelled joints ("Keypoint Evaluation" on cocodataset.org).

    Args:
        facts, true, found: as `oks_curves` takes them.
    """
    spread = 2 * torch.tensor(list(sigmas), dtype=torch.float64)
    distance = (true[..., :2] - found[..., :2]).double().square().sum(2)
    area = facts[:, 1:2].double().clamp(min=torch.finfo(torch.float64).eps)
    return torch.where(true[..., 2] > 0, torch.exp(-distance / (2 * spread.square() * area)), 0.0)


def oks_curves(facts: Tensor, true: Tensor, found: Tensor, sigmas: Sequence[float]) -> Tensor | None:
    """Precision (10, 101) at the similarities `OVERLAPS` and recalls from 0 to 1; None if nobody has a labelled joint.

    Args:
        facts: (N, 2 or more): image, area.
        true, found: (N, K, 3) in pixels of the image: x, y, visibility or score.
    """
    if not bool((true[..., 2] > 0).any()):
        return None
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
    return torch.as_tensor(measure.eval["precision"], dtype=torch.float64)[:, :, 0, 0, -1]


def by_similarity(curves: Tensor | None) -> dict[str, float]:
    """COCO's figures of poses; 0 where nobody has a labelled joint."""
    if curves is None:
        return {"oks_ap": 0.0, "oks_ap50": 0.0, "oks_ap75": 0.0}
    means = curves.mean(1)
    return {"oks_ap": float(means.mean()), "oks_ap50": float(means[0]), "oks_ap75": float(means[5])}


def _around(joints: Tensor) -> list[float]:
    """x, y, width, height of the labelled joints."""
    place = joints[joints[:, 2] > 0, :2] if bool((joints[:, 2] > 0).any()) else joints[:, :2]
    low, high = place.amin(0), place.amax(0)
    return [*low.tolist(), *(high - low).tolist()]

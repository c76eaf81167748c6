"""COCO's average precision of boxes and masks, by the package faster_coco_eval."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srattn.errors import missing_extra
from srattn.ops.boxes import ignored_class

Mask = dict[str, Any]
"""A mask as COCO has it: "size" (height, width) and "counts", the text of `srattn.ops.run_lengths.write_runs`."""


class Masks(NamedTuple):
    """Of each object and each detection."""

    objects: Sequence[Mask]
    found: Sequence[Mask]


def average_precision(
    objects: Tensor, found: Tensor, images: int, classes: Sequence[str], masks: Masks | None = None
) -> dict[str, Any]:
    """COCO's figures.

    Args:
        objects: (N, 6): image, x1, y1, x2, y2, class; below -1 of what is ignored, see
            `srattn.ops.boxes.ignored_class`.
        found: (D, 7): image, x1, y1, x2, y2, score, class.
        images: how many there are.
        masks: compare these and not the boxes.
    """
    nothing = {"map": 0.0, "map50": 0.0, "map75": 0.0, "per_class_map": {}, "per_class_map50": {}, "curves": {}}
    truth = _objects(objects, masks)
    if all(entry["iscrowd"] for entry in truth):
        return nothing
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise missing_extra("faster-coco-eval", "train") from None
    quiet = logging.getLogger("faster_coco_eval").debug
    # The sides of images are asked for where there are masks, which have them too.
    known = COCO(
        {
            "images": [{"id": number + 1, "height": 0, "width": 0} for number in range(images)],
            "annotations": truth,
            "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
        },
        print_function=quiet,
    )
    kind = "bbox" if masks is None else "segm"
    measure = COCOeval_faster(known, known.loadRes(_found(found, masks)), iouType=kind, print_function=quiet)
    measure.evaluate()
    measure.accumulate()
    # (overlaps, recalls, classes, areas, most detections); -1 where a class has no object.
    precision = torch.as_tensor(measure.eval["precision"], dtype=torch.float64)[..., 0, -1]
    there = (precision >= 0).all(1).all(0)
    means = precision.mean(1)  # (overlaps, classes)
    present = list(itertools.compress(classes, there.tolist()))
    return {
        "map": float(means[:, there].mean()),
        "map50": float(means[0, there].mean()),
        "map75": float(means[5, there].mean()),
        "per_class_map": dict(zip(present, means[:, there].mean(0).tolist(), strict=True)),
        "per_class_map50": dict(zip(present, means[0, there].tolist(), strict=True)),
        "curves": dict(zip(present, precision[0][:, there].t().tolist(), strict=True)),
    }


def _objects(objects: Tensor, masks: Masks | None) -> list[dict[str, Any]]:
    ignored = objects[:, 5] < 0
    labels = torch.where(ignored, ignored_class(objects[:, 5]), objects[:, 5]).long().tolist()
    entries: list[dict[str, Any]] = []
    rows = zip(objects.tolist(), labels, ignored.tolist(), strict=True)
    for number, ((image, x, y, x2, y2, _), label, crowd) in enumerate(rows, 1):
        entries.append(
            {
                "id": number,
                "image_id": int(image) + 1,
                "category_id": label + 1,
                "bbox": [x, y, x2 - x, y2 - y],
                "area": (x2 - x) * (y2 - y),
                "iscrowd": int(crowd),
                **({} if masks is None else {"segmentation": masks.objects[number - 1]}),
            }
        )
    return entries


def _found(found: Tensor, masks: Masks | None) -> list[dict[str, Any]]:
    return [
        {
            "image_id": int(image) + 1,
            "category_id": int(kind) + 1,
            "score": score,
            **({"bbox": [x, y, x2 - x, y2 - y]} if masks is None else {"segmentation": masks.found[number]}),
        }
        for number, (image, x, y, x2, y2, score, kind) in enumerate(found.tolist())
    ]

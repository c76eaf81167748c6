"""How good masks of objects are: COCO's measures of what a model of two stages answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from srattn.ops.boxes import ignored_class
from srattn.ops.run_lengths import encode_runs, write_runs
from srattn.tasks.detection.assign import ignored_targets, valid_targets
from srattn.tasks.detection.metrics import DetectionMetrics, _of_all, _process
from srattn.tasks.detection.precision import Mask, Masks, average_precision
from srattn.tasks.detection.stages.answers import BEFORE_MASK, paste
from srattn.tasks.protocol import Sum


class MaskMetrics(DetectionMetrics):
    """As `DetectionMetrics`, without a loss, and the same of masks: "segm_map50", "segm_map" and "segm_map75".

    Masks are kept as text, a line each ("height width runs"; of objects whose mask is not known without runs), in the
    order of the rows of boxes.

    Args:
        classes: names.
        decode: from a model's outputs to detections (B, D, 6).
    """

    def __init__(self, classes: Sequence[str], decode: Callable[[Tensor], Tensor]) -> None:
        super().__init__(classes, decode)
        self._object_lines, self._found_lines = list[str](), list[str]()
        self._masks_result: dict[str, Any] | None = None

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """`outputs` (B, D, 8 + S * S), `targets` (B, M, 5 or 6 + L); see `TwoStage`."""
        super().update(outputs, targets)
        answers, targets = outputs.detach().float().cpu(), targets.cpu()
        for image, row in (answers[..., 5] >= 0).nonzero().tolist():
            self._found_lines.append(_line(*answered_mask(answers[image, row])))
        for image, row in (valid_targets(targets) | ignored_targets(targets)).nonzero().tolist():
            size = tuple(int(side) for side in answers[image, 0, 6:BEFORE_MASK])
            runs = targets[image, row, 6:].long()
            self._object_lines.append(_line(size, runs[: int(runs.nonzero().amax()) + 1] if runs.any() else None))
        self._masks_result = None

    def reduce(self, add: Sum) -> None:
        """As of boxes; the lines of each process go to a place of their own in a string of zero bytes."""
        super().reduce(add)
        rank, size = _process()
        for lines in (self._object_lines, self._found_lines):
            own = torch.tensor(list("".join(lines).encode()), dtype=torch.uint8)
            counts = _of_all(len(own), rank, size, add)
            start, together = int(counts[:rank].sum()), torch.zeros(int(counts.sum()), dtype=torch.uint8)
            together[start : start + len(own)] = own
            lines[:] = bytes(add(together).tolist()).decode().splitlines(keepends=True)
        self._masks_result = None

    def compute(self) -> dict[str, float]:
        """Of boxes and of masks; 0 where there is no object at all."""
        masks = self._of_masks()
        return {**super().compute(), **{f"segm_{name}": masks[name] for name in ("map50", "map", "map75")}}

    def details(self) -> dict[str, Any]:
        """As of boxes, and the precision of each class's masks."""
        masks, found = self._of_masks(), super().details()
        own = {f"per_class_segm_{name}": masks[f"per_class_{name}"] for name in ("map50", "map")}
        return {**found, **own}

    def _of_masks(self) -> dict[str, Any]:
        if self._masks_result is None:
            objects, found = torch.cat(self._objects).clone(), torch.cat(self._found)
            truth = []
            for number, line in enumerate(self._object_lines):
                mask = _mask(line)
                if not mask["counts"]:  # its box in place of it, and nothing is asked of it
                    box, label = objects[number, 1:5].tolist(), objects[number, 5]
                    objects[number, 5] = label if label < 0 else ignored_class(label)
                    mask = _mask(_line(mask["size"], encode_runs(paste(torch.ones(1, 1), box, tuple(mask["size"])))))
                truth.append(mask)
            masks = Masks(truth, [_mask(line) for line in self._found_lines])
            self._masks_result = average_precision(objects, found, self._images, self.classes, masks)
        return self._masks_result


def answered_mask(row: Tensor) -> tuple[tuple[int, int], Tensor]:
    """An answer (8 + S * S) to the (height, width) of the image and the lengths of its mask's runs."""
    size = int(row[6]), int(row[7])
    side = round((len(row) - BEFORE_MASK) ** 0.5)
    return size, encode_runs(paste(row[BEFORE_MASK:].view(side, side), row[:4].tolist(), size))


def _line(size: Sequence[int], runs: Tensor | None) -> str:
    return f"{size[0]} {size[1]} {'' if runs is None else write_runs(runs.tolist())}\n"


def _mask(line: str) -> Mask:
    height, width, text = line.rstrip("\n").split(" ")
    return {"size": [int(height), int(width)], "counts": text}

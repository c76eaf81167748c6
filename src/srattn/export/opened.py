"""An exported file in the place of the model that it was made of: for predict, with the same outputs and formats."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from srattn.data.preprocess import Preprocess, to_tensor
from srattn.engine.weights import LoadedRun, known_255
from srattn.errors import SrattnError
from srattn.export import answers
from srattn.export.export import files_of
from srattn.export.facts import Facts
from srattn.export.formats import format_of, get_format
from srattn.heads.keypoints import bins
from srattn.heads.mask_rcnn import FasterRCNNHead, MaskRCNNHead

if TYPE_CHECKING:
    from PIL import Image


def read_facts(path: str | Path) -> Facts:
    """What an exported file says of itself.

    Raises:
        SrattnError: no such file, or none of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise SrattnError(f"{path} does not exist")
    name = format_of(path)
    if name is None:
        raise SrattnError(f"{path} is no exported model: those are .pt2, .onnx and .xml")
    return Facts.from_text(get_format(name).read_stamp(path), path)


def open_export(path: str | Path, size: int | None = None, threads: int | None = None) -> LoadedRun:
    """The file in its own runtime, with its classes and preprocessing.

    Args:
        size: side of the images in pixels, for a file whose height and width are dynamic.

    Raises:
        SrattnError: no such file, none of ours, or one that takes no other size.
    """
    path = Path(path)
    facts = read_facts(path)
    preprocess = preprocess_of(path, facts, size)
    if facts.options.preprocess:
        preprocess = InGraph(**preprocess.to_dict())
    model = ExportedModel(path, facts, threads)
    return LoadedRun(
        cast(Any, model), facts.labels, preprocess, {}, path, facts.task, facts.palette(), known_255(facts.card)
    )


def preprocess_of(path: Path, facts: Facts, size: int | None = None) -> Preprocess:
    """From pictures to what the model in the file takes, of another size where the file is dynamic.

    Raises:
        SrattnError: it takes no other size.
    """
    if size is None or (size, size) == facts.preprocess.size:
        return facts.preprocess
    if set(facts.options.dynamic) != {"height", "width"}:
        height, width = facts.preprocess.size
        raise SrattnError(f"{path} takes images of {height}x{width} alone: leave out --size, or export it dynamic")
    return dataclasses.replace(facts.preprocess, size=(size, size))


def batch_size_for(run: LoadedRun, wanted: int) -> int:
    """How many images go in at a time: one picture where each has its own size, else what is wanted."""
    return 1 if isinstance(run.preprocess, InGraph) else wanted


class ExportedModel(nn.Module):
    """Images as the exported model took them, to what it answered: split and filled up where the batch is fixed."""

    dimensions = 2

    def __init__(self, path: Path, facts: Facts, threads: int | None = None) -> None:
        super().__init__()
        self._run = get_format(facts.options.format).open_file(path, threads)
        self.path, self.facts = path, facts
        self.config = {key: value for key, value in facts.model.items() if key not in ("norm_eps", "edge")}
        self.norm_eps, self.edge = facts.model.get("norm_eps"), facts.model.get("edge")
        self.num_classes = len(facts.labels)
        self.task_options = _task_options(facts)
        self.has_masks = bool(self.task_options.get("masks", False))
        # What answers are remembered by: these bytes stand for the weights.
        digest = hashlib.sha256()
        for file in files_of(path):
            digest.update(file.read_bytes())
        self.sha256 = nn.Parameter(torch.tensor(list(digest.digest()), dtype=torch.float32), requires_grad=False)

    def refuse(self, *_: Any, **__: Any) -> Any:
        """What a model answers and a file does not."""
        raise SrattnError("an exported file has no features to embed: give the model that it was made of")

    forward_features = forward_head = refuse
    stages = property(refuse)

    @property
    def min_size(self) -> int:
        """Sides of images are at least that; a file that resizes pictures itself takes any."""
        return self.facts.least if self.facts.options.dynamic else 1

    def outputs(self, images: Tensor) -> list[Tensor]:
        """(B, ...) to the outputs in their order.

        Raises:
            SrattnError: images of a size that the file does not take.
        """
        options = self.facts.options
        if options.preprocess:
            images = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        else:
            self._check(images)
        images = images.cpu()
        if options.batch is None:
            return self._run(images)
        parts = []
        for part in images.split(options.batch):
            missing = options.batch - part.shape[0]
            whole = torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part
            parts.append([output[: part.shape[0]] for output in self._run(whole)])
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    def _check(self, images: Tensor) -> None:
        options, size = self.facts.options, tuple(images.shape[2:])
        for name, side, own in zip(("height", "width"), size, options.size, strict=True):
            if side != own and name not in options.dynamic:
                height, width = options.size
                raise SrattnError(
                    f"{self.path} takes images of {height}x{width}, got {size[0]}x{size[1]}: export it with "
                    "--dynamic height,width, or ask for that size alone"
                )
            if name in options.dynamic and side < self.min_size:
                raise SrattnError(
                    f"{self.path} takes images from {self.min_size} pixels a side, got {size[0]}x{size[1]}"
                )

    def forward(self, images: Tensor) -> Tensor:
        """What the model itself answers.

        Logits (B, classes) of a classifier; logits (B, K, h, w) of pixels, of a file that says classes alone those of
        one that is sure; rows of boxes, of a file with boxes those that have each box for a reference; answers of
        two stages; depths (B, H, W); of joints what they are read from.
        """
        found, answer = self.outputs(images), self.facts.options.answer
        if answer == "classes":
            return answers.logits_of_classes(found[0], self.num_classes)
        if answer == "boxes":
            return answers.rows_of_boxes(self._seen(found[0], images), found[1], self._size(images))
        if answer == "detections":
            boxes = torch.cat([self._seen(found[0][..., :4], images), found[0][..., 4:]], 2)
            if self.task_options.get("stages") == 2:
                return self._answers(boxes, found[1:], images)
            return answers.rows_of_detections(boxes, self.num_classes, self._size(images))
        return found[-1]

    def _answers(self, detections: Tensor, masks: list[Tensor], images: Tensor) -> Tensor:
        """As `srattn.tasks.detection.stages.answers.answer` has them."""
        sides = detections.new_tensor(self._size(images)).expand(*detections.shape[:2], 2)
        return torch.cat([detections, sides, *(each.flatten(2) for each in masks)], 2)

    def _size(self, images: Tensor) -> tuple[int, int]:
        """Of the model's input."""
        facts = self.facts
        return facts.preprocess.size if facts.options.preprocess else (images.shape[2], images.shape[3])

    def _seen(self, boxes: Tensor, images: Tensor) -> Tensor:
        """Boxes (B, N, 4) in pixels of the model's input."""
        if not self.facts.options.preprocess:
            return boxes
        return answers.of_picture(boxes, self.facts.preprocess, images.shape[2], images.shape[3])


def _task_options(facts: Facts) -> dict[str, Any]:
    """As `srattn.tasks.models.task_options`, from what the stamp says of the head.

    Raises:
        SrattnError: it does not say that.
    """
    try:
        head = facts.model.get("head", {})
        if facts.task == "depth":
            return {"max_depth": float(head["max_depth"])}
        if facts.task == "pose":
            return {"columns": bins(int(head["size"][1]), float(head["split"])) if "split" in head else None}
        if facts.task == "detection" and head.get("kind") in (FasterRCNNHead.kind, MaskRCNNHead.kind):
            return {"stages": 2, "masks": "masks" in facts.outputs}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise SrattnError(f"the file does not describe its head: {error!r}") from None
    return {}


class InGraph(Preprocess):
    """Preprocessing that the file does itself: a picture stays as it was decoded."""

    def pixels(self, image: Image.Image) -> Tensor:
        return to_tensor(image)

    def inverted(self, image: Image.Image) -> Image.Image:
        return image

    def normalise(self, images: Tensor) -> Tensor:
        return images

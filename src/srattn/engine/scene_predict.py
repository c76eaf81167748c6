"""Masks, boxes, depths and joints for images of any size, in pixels of the image itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.data.dense.person import person_windows
from srattn.data.palette import check_mask_classes
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.ops.boxes import clip_boxes
from srattn.ops.run_lengths import encode_runs
from srattn.tasks.depth import depth_map
from srattn.tasks.detection.stages.answers import BEFORE_MASK, paste
from srattn.tasks.losses.common import two_logits
from srattn.tasks.models import task_options
from srattn.tasks.pose import in_image as joints_in_image
from srattn.tasks.registry import make_task

if TYPE_CHECKING:
    from PIL import Image

OVERLAP = 0.25
_MEANING = {
    "segmentation": ("native", "overlap", "scales", "flip"),
    "depth": ("native", "overlap", "flip"),
    "detection": ("threshold",),
}
_ROWS = 128  # of a mask that are enlarged at a time


@dataclasses.dataclass(frozen=True)
class Looking:
    """How an image is looked at.

    Attributes:
        native: in windows at its own size, rather than whole at the size that the model was measured with.
        overlap: of neighbouring windows, as a part of their side.
        scales: sizes whose answers are averaged (of masks), 1 is the usual one.
        flip: average with the answer for the mirror image (of masks and depths).
        threshold: the least score of a box.
    """

    native: bool = False
    overlap: float = OVERLAP
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    threshold: float = 0.3

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise SrattnError(f"scales must be one or more numbers from 0.1 to 10, got {list(self.scales)}")
        if not 0 <= self.overlap <= 0.9:
            raise SrattnError(f"overlap must be from 0 to 0.9, got {self.overlap}")
        if not 0 <= self.threshold <= 1:
            raise SrattnError(f"threshold must be from 0 to 1, got {self.threshold}")
        if self.overlap != OVERLAP and not self.native:
            raise SrattnError("overlap is of the windows of native: give native too, or leave it out")

    def check(self, task: str) -> None:
        """Refuses what a task would ignore.

        Raises:
            SrattnError: the first such option, by name.
        """
        for field in dataclasses.fields(self):
            if getattr(self, field.name) != field.default and field.name not in _MEANING.get(task, ()):
                raise SrattnError(f"{field.name} has no meaning for {task}: leave it out")


@torch.inference_mode()
def predict_mask(
    run: LoadedRun,
    image: Image.Image,
    looking: Looking | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Class numbers uint8 (H, W) of a decoded picture ("L" or "RGB", as the model takes it).

    The memory beside the model's own is that of some rows of the result, whatever the size of the picture.
    """
    looking = looking or Looking()
    preprocess = run.preprocess
    if looking.native:
        from srattn.data.strips import PictureParts
        from srattn.engine.sliding import slide

        options: dict[str, Any] = {"overlap": looking.overlap, "scales": looking.scales, "flips": looking.flip}
        parts = PictureParts(preprocess.inverted(image))
        window = tuple(preprocess.size)
        model = _OfTwo(run.model)
        return slide(model, parts, normalise=preprocess.normalise, window=window, progress=progress, **options).values
    scores: Tensor | None = None
    averaged = looking.flip or len(looking.scales) > 1
    for scale in sorted(looking.scales, reverse=True):  # the finest grid first, on which the others are added
        for mirrored in (False, True) if looking.flip else (False,):
            found = _logits(run, image, scale, mirrored)
            # Where nothing is averaged, logits are enlarged: so the mask is that which evaluation measures.
            found = found.softmax(1) if averaged else found
            if scores is None:
                scores = found
            else:
                scores = scores + F.interpolate(found, scores.shape[2:], mode="bilinear", align_corners=False)
    assert scores is not None
    if progress:
        progress(1, 1)
    return likeliest(scores[0], image.height, image.width)


class _OfTwo(nn.Module):
    """A model of masks, whose one logit, if it has no more, is one of two classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return two_logits(self.model(images))


def _logits(run: LoadedRun, image: Image.Image, scale: float, mirrored: bool) -> Tensor:
    """Of all classes (1, K, h, w), on the model's grid, float32."""
    size = tuple(max(run.model.min_size, round(side * scale)) for side in run.preprocess.size)
    pixels = dataclasses.replace(run.preprocess, size=size).pixels(image).unsqueeze(0)
    device = next(run.model.parameters()).device
    inputs = run.preprocess.normalise(pixels.to(device).float() / 255)
    outputs = two_logits(run.model(inputs.flip(-1) if mirrored else inputs).float())
    return outputs.flip(-1) if mirrored else outputs


def likeliest(scores: Tensor, height: int, width: int) -> Tensor:
    """Scores (K, h, w) to the class uint8 (height, width) that is likeliest after bilinear enlargement, by strips.

    Raises:
        SrattnError: more classes than 8 bits tell apart.
    """
    check_mask_classes(scores.shape[0])
    rows = scores.shape[1]
    centres = ((torch.arange(height, dtype=torch.float64) + 0.5) * rows / height - 0.5).clamp(min=0, max=rows - 1)
    low = centres.floor().long()
    high, share = (low + 1).clamp(max=rows - 1), (centres - low).to(scores)
    found = torch.empty(height, width, dtype=torch.uint8)
    for top in range(0, height, _ROWS):
        piece = slice(top, min(top + _ROWS, height))
        part = torch.lerp(scores[:, low[piece]], scores[:, high[piece]], share[piece].view(1, -1, 1))
        wide = F.interpolate(part.unsqueeze(0), (part.shape[1], width), mode="bilinear", align_corners=False)
        found[piece] = wide[0].argmax(0).to(torch.uint8).cpu()
    return found


def predict_boxes(run: LoadedRun, image: Image.Image, looking: Looking | None = None) -> Tensor:
    """Boxes (N, 6): x1, y1, x2, y2 in pixels of the picture, score, class; the surest first."""
    return predict_objects(run, image, looking)[0]


@torch.inference_mode()
def predict_objects(
    run: LoadedRun, image: Image.Image, looking: Looking | None = None
) -> tuple[Tensor, list[Tensor] | None]:
    """Boxes as `predict_boxes` gives them; and of a model of masks the mask of each, int64 (L,), which
    `srattn.ops.run_lengths.decode_runs(mask, (image.height, image.width))` writes out."""
    looking = looking or Looking()
    preprocess = run.preprocess
    device = next(run.model.parameters()).device
    pixels = preprocess.pixels(image).unsqueeze(0).to(device)
    task: Any = make_task("detection", run.classes, **task_options(run.model))
    outputs = run.model(preprocess.normalise(pixels.float() / 255)).float()
    found, rows = task.postprocess(outputs)[0].cpu(), outputs[0].cpu()
    return objects_in_image(run, found, rows, (image.height, image.width), looking.threshold)


def objects_in_image(
    run: LoadedRun, found: Tensor, rows: Tensor, size: tuple[int, int], threshold: float
) -> tuple[Tensor, list[Tensor] | None]:
    """As `predict_objects`, of what a detector answered already.

    Args:
        found: (N, 6 or more) of `postprocess` for an image, in the model's input.
        rows: of a model of masks what it answered, (N, columns); of others they are not read.
        size: height and width of the image.
    """
    sure = (found[:, 5] >= 0) & (found[:, 4] >= threshold)
    boxes = _seen_from(found[sure, :6], run, size)
    cut, inside = _cut(boxes, size)
    if not getattr(run.model, "has_masks", False):
        return cut[inside], None
    parts = rows[sure, BEFORE_MASK:][inside]
    side = round(parts.shape[1] ** 0.5)
    # Over the box before it was cut: of the padding around the picture a part may be in it.
    pairs = zip(parts.view(-1, side, side), boxes[inside, :4].tolist(), strict=True)
    return cut[inside], [encode_runs(paste(part, box, size)) for part, box in pairs]


@torch.inference_mode()
def predict_depth(
    run: LoadedRun,
    image: Image.Image,
    looking: Looking | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Depths float32 (H, W) in metres."""
    looking = looking or Looking()
    preprocess = run.preprocess
    if looking.native:
        from srattn.data.strips import PictureParts
        from srattn.engine.sliding import slide

        options: dict[str, Any] = {"overlap": looking.overlap, "flips": looking.flip, "progress": progress}
        options |= {"window": tuple(preprocess.size), "kind": "values", "normalise": preprocess.normalise}
        return slide(run.model, PictureParts(preprocess.inverted(image)), **options).values
    device = next(run.model.parameters()).device
    inputs = preprocess.normalise(preprocess.pixels(image).unsqueeze(0).to(device).float() / 255)
    depth = run.model(inputs).float()
    if looking.flip:
        depth = (depth + run.model(inputs.flip(-1)).float().flip(-1)) / 2
    if progress:
        progress(1, 1)
    return depth_map(depth, (image.height, image.width))[0].cpu()


@torch.inference_mode()
def predict_joints(run: LoadedRun, image: Image.Image, boxes: Tensor | None = None) -> Tensor:
    """Joints (N, K, 3) of N people: x, y in pixels of the picture, score.

    Args:
        boxes: of the people, (N, 4 or more), x1, y1, x2, y2 in pixels; without them the whole picture is one person.
    """
    if boxes is None:
        boxes = torch.tensor([[0.0, 0.0, image.width, image.height]])
    windows, matrices = person_windows(image, boxes, run.preprocess)
    if not len(windows):
        return torch.zeros(0, len(run.classes), 3)
    device = next(run.model.parameters()).device
    task: Any = make_task(run.task, run.classes, **task_options(run.model))
    found = task.postprocess(run.model(windows.to(device)).float()).cpu()
    height, width = run.preprocess.size
    return joints_in_image(found, matrices, (height, width)).float()


def _seen_from(boxes: Tensor, run: LoadedRun, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 6) of the model's input in pixels of an image of `size` (height, width), not cut at its edges."""
    rows, columns = run.preprocess.sides(*size)
    top, left = run.preprocess.corner(*size)
    boxes = boxes.clone()
    for axis, (start, scale) in enumerate(((left, size[1] / columns), (top, size[0] / rows))):
        boxes[:, axis:4:2] = (boxes[:, axis:4:2] - start) * scale
    return boxes


def _cut(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes (N, 6) cut at the edges of an image, and bool (N,), of which something is left."""
    found = torch.cat([clip_boxes(boxes[:, :4], *size), boxes[:, 4:]], 1)
    return found, (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])


def shares(mask: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """The part of a mask that each class has, the largest first; classes that do not occur are left out."""
    counts = torch.bincount(mask.flatten().int(), minlength=len(classes)).tolist()
    total = max(1, mask.numel())
    found = {name: count / total for name, count in zip(classes, counts, strict=False) if count}
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))

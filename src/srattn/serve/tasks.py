"""What a model answers, by task: from a batch to plain values, and from those to the answer for one picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor

from srattn.data.depth_files import depth_image
from srattn.data.geometry import kornia_transform
from srattn.data.palette import Palette, standard_palette
from srattn.engine.predict import Classes
from srattn.engine.scene_folder import depth_unit
from srattn.engine.scene_predict import likeliest, objects_in_image, shares
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.ops.run_lengths import write_runs
from srattn.serve.picture import Picture, Seen, see, see_people
from srattn.tasks.depth import depth_map
from srattn.tasks.losses.common import two_logits
from srattn.tasks.models import task_options
from srattn.tasks.pose import in_image as in_picture
from srattn.tasks.pose.joints import skeleton_of
from srattn.tasks.registry import make_task


class Answers(Protocol):
    """One task. `compute` runs in the model's thread, `answer` in the event loop or, if `slow`, in one that decodes."""

    task: ClassVar[str]

    @property
    def slow(self) -> bool: ...

    def facts(self) -> dict[str, Any]:
        """What a client may want to know before it asks; plain values."""
        ...

    def compute(self, inputs: Tensor) -> list[Any]:
        """From images (B, C, H, W) as the model takes them to a value for each."""
        ...

    def see(self, picture: Picture, max_pixels: int, options: Mapping[str, Any]) -> Seen:
        """A picture as the model sees it; the options are those of the request."""
        ...

    def answer(self, values: list[Any], seen: Seen, *args: Any, **options: Any) -> dict[str, Any]:
        """The part of the answer that is the task's own, plain values.

        Args:
            values: of `compute`, one for each of `seen.inputs`.
            options: of the request.
        """
        ...


class _Whole:
    """What is seen as it is embedded: the whole picture."""

    _run: LoadedRun

    def see(self, picture: Picture, max_pixels: int, options: Mapping[str, Any]) -> Seen:
        return see(picture, self._run.preprocess, max_pixels)


class Classification(_Whole):
    """`classes`: name and probability, the likeliest first."""

    task: ClassVar[str] = "classification"
    slow: bool = False

    def __init__(self, run: LoadedRun) -> None:
        self._run, self._classes = run, run.classes
        self._output = Classes(run, top=len(run.classes))

    def facts(self) -> dict[str, Any]:
        return {"classes": self._classes}

    def compute(self, inputs: Tensor) -> list[tuple[list[float], list[int]]]:
        probabilities, order = self._output.compute(inputs)
        return list(zip(probabilities.tolist(), order.tolist(), strict=True))

    def answer(self, values: list[tuple[list[float], list[int]]], seen: Seen, *, top: int) -> dict[str, Any]:
        pairs = zip(values[0][0][:top], values[0][1][:top], strict=True)
        return {"classes": [{"name": self._classes[index], "probability": share} for share, index in pairs]}


class Segmentation(_Whole):
    """`mask`: the class number of every pixel of the picture, as PNG; `shares` of the picture, the largest first."""

    task: ClassVar[str] = "segmentation"
    slow: bool = True

    def __init__(self, run: LoadedRun) -> None:
        self._run = run
        self._palette = run.palette or standard_palette(run.classes)

    def facts(self) -> dict[str, Any]:
        return {"classes": self._run.classes, "colours": _hex(self._palette)}

    def compute(self, inputs: Tensor) -> list[Tensor]:
        return list(two_logits(self._run.model(inputs).float()).cpu())

    def answer(self, values: list[Tensor], seen: Seen) -> dict[str, Any]:
        mask = likeliest(values[0], seen.height, seen.width)
        parts = shares(mask, self._run.classes).items()
        image = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.numpy().tobytes())
        image.putpalette(self._palette.table().numpy().tobytes())  # viewers show the classes in their colours
        return {"shares": [{"name": name, "share": share} for name, share in parts], "mask": _png(image)}


class Detection(_Whole):
    """`boxes`: name, score and x1, y1, x2, y2 in pixels of the picture, the surest first; of a model of masks the
    `segmentation` of each besides, as COCO's tools have it."""

    task: ClassVar[str] = "detection"

    def __init__(self, run: LoadedRun) -> None:
        self._run, self._masks = run, bool(getattr(run.model, "has_masks", False))
        self._task: Any = make_task("detection", run.classes, **task_options(run.model))
        self._palette = run.palette or standard_palette(run.classes)

    def facts(self) -> dict[str, Any]:
        return {"classes": self._run.classes, "colours": _hex(self._palette)}

    @property
    def slow(self) -> bool:
        """Masks are brought to the picture's size."""
        return self._masks

    def compute(self, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        outputs = self._run.model(inputs).float()
        found = self._task.postprocess(outputs).cpu()
        return list(zip(found, outputs.cpu() if self._masks else found, strict=True))

    def answer(self, values: list[tuple[Tensor, Tensor]], seen: Seen, *, threshold: float) -> dict[str, Any]:
        size = (seen.height, seen.width)
        boxes, masks = objects_in_image(self._run, *values[0], size, threshold)
        found = [{"name": self._run.classes[int(n)], "score": s, "box": box} for *box, s, n in boxes.tolist()]
        for one, mask in zip(found, masks or (), strict=masks is not None):
            one["segmentation"] = {"size": list(size), "counts": write_runs(mask.tolist())}
        return {"boxes": found}


class Depth(_Whole):
    """`depth`: the distance of every pixel of the picture in units of `depth_scale` metres, a grey PNG of 16 bits;
    `metres`: the least, the median, and the most. With `drawing` a picture to look at, bright for near."""

    task: ClassVar[str] = "depth"
    slow: bool = True

    def __init__(self, run: LoadedRun) -> None:
        self._run = run
        self._scale = depth_unit(run)

    def facts(self) -> dict[str, Any]:
        return {"classes": []}

    def compute(self, inputs: Tensor) -> list[Tensor]:
        return list(self._run.model(inputs).float().cpu())

    def answer(self, values: list[Tensor], seen: Seen, *, drawing: bool) -> dict[str, Any]:
        depth = depth_map(values[0].unsqueeze(0), (seen.height, seen.width))[0]
        least, most = float(depth.min()), float(depth.max())
        found: dict[str, Any] = {
            "metres": {"least": least, "median": float(depth.median()), "most": most},
            "depth_scale": self._scale,
            "depth": _png(depth_image(depth, self._scale, seen.name)),
        }
        if drawing:
            shades = (255 * (most - depth) / max(most - least, 1e-6)).round().to(torch.uint8)
            found["drawing"] = _png(Image.frombytes("L", (seen.width, seen.height), shades.numpy().tobytes()))
        return found


class Pose:
    """`people`: of each its box, and its joints with a score, in pixels of the picture."""

    task: ClassVar[str] = "pose"
    slow: bool = False

    def __init__(self, run: LoadedRun) -> None:
        kornia_transform()  # missed now, and not at the first picture
        self._run = run
        self._task: Any = make_task("pose", run.classes, **task_options(run.model))

    def facts(self) -> dict[str, Any]:
        return {"classes": self._run.classes, "bones": skeleton_of(self._run.classes)}

    def see(self, picture: Picture, max_pixels: int, options: Mapping[str, Any]) -> Seen:
        return see_people(picture, self._run.preprocess, max_pixels, boxes=options["people"])

    def compute(self, inputs: Tensor) -> list[Tensor]:
        return list(self._task.postprocess(self._run.model(inputs).float()).cpu())

    def answer(self, values: list[Tensor], seen: Seen, *, people: object) -> dict[str, Any]:
        assert seen.people is not None and seen.matrices is not None
        joints = in_picture(torch.stack(values), seen.matrices, self._run.preprocess.size).tolist()
        return {
            "people": [
                {
                    "box": box,
                    "joints": [
                        {"name": name, "x": x, "y": y, "score": score}
                        for name, (x, y, score) in zip(self._run.classes, person, strict=True)
                    ],
                }
                for box, person in zip(seen.people.tolist(), joints, strict=True)
            ]
        }


_TASKS: dict[str, Callable[[LoadedRun], Answers]] = {
    each.task: each for each in (Classification, Segmentation, Detection, Depth, Pose)
}


def answers_of(run: LoadedRun) -> Answers:
    """How that model answers.

    Raises:
        SrattnError: a model without a task that can be served.
    """
    if run.task not in _TASKS:
        raise SrattnError(f"srattn serve answers {', '.join(_TASKS)}; {run.path} is a model of the task {run.task!r}")
    if not run.classes:
        raise SrattnError(f"{run.path} has no classifier, which is what can be served")
    return _TASKS[run.task](run)


def _hex(palette: Palette) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette.colours]


def _png(image: Image.Image) -> str:
    """As base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()

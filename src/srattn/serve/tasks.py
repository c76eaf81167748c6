"""What a model answers, by task: from a batch to plain values, and from those to the answer for one picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from srattn.data.palette import Palette, standard_palette
from srattn.engine.predict import Classes
from srattn.engine.scene_predict import in_image, likeliest, shares
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.serve.picture import Seen
from srattn.tasks.models import task_options
from srattn.tasks.registry import make_task


class Answers(Protocol):
    """One task. `compute` runs in the model's thread, `answer` in the event loop or, if `slow`, in one that decodes."""

    task: ClassVar[str]
    slow: ClassVar[bool]

    def facts(self) -> dict[str, Any]:
        """What a client may want to know before it asks; plain values."""
        ...

    def compute(self, inputs: Tensor) -> list[Any]:
        """From images (B, C, H, W) as the model takes them to a value for each."""
        ...

    def answer(self, value: Any, seen: Seen, *args: Any, **options: Any) -> dict[str, Any]:
        """The part of the answer that is the task's own, plain values; options are those of its request."""
        ...


class Classification:
    """`classes`: name and probability, the likeliest first."""

    task: ClassVar[str] = "classification"
    slow: ClassVar[bool] = False

    def __init__(self, run: LoadedRun) -> None:
        self._classes = run.classes
        self._output = Classes(run, top=len(run.classes))

    def facts(self) -> dict[str, Any]:
        return {"classes": self._classes}

    def compute(self, inputs: Tensor) -> list[tuple[list[float], list[int]]]:
        probabilities, order = self._output.compute(inputs)
        return list(zip(probabilities.tolist(), order.tolist(), strict=True))

    def answer(self, value: tuple[list[float], list[int]], seen: Seen, *, top: int) -> dict[str, Any]:
        pairs = zip(value[0][:top], value[1][:top], strict=True)
        return {"classes": [{"name": self._classes[index], "probability": share} for share, index in pairs]}


class Segmentation:
    """`mask`: the class number of every pixel of the picture, as PNG; `shares` of the picture, the largest first."""

    task: ClassVar[str] = "segmentation"
    slow: ClassVar[bool] = True

    def __init__(self, run: LoadedRun) -> None:
        self._run = run
        self._palette = run.palette or standard_palette(run.classes)

    def facts(self) -> dict[str, Any]:
        return {"classes": self._run.classes, "colours": _hex(self._palette)}

    def compute(self, inputs: Tensor) -> list[Tensor]:
        logits = self._run.model(inputs).float()
        if logits.shape[1] == 1:  # of the second of two classes
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        return list(logits.softmax(1).cpu())

    def answer(self, value: Tensor, seen: Seen) -> dict[str, Any]:
        mask = likeliest(value, seen.height, seen.width)
        parts = shares(mask, self._run.classes).items()
        png = base64.b64encode(_png(mask, self._palette)).decode()
        return {"shares": [{"name": name, "share": share} for name, share in parts], "mask": png}


class Detection:
    """`boxes`: name, score and x1, y1, x2, y2 in pixels of the picture, the surest first."""

    task: ClassVar[str] = "detection"
    slow: ClassVar[bool] = False

    def __init__(self, run: LoadedRun) -> None:
        self._run = run
        self._task: Any = make_task("detection", run.classes, **task_options(run.model))
        self._palette = run.palette or standard_palette(run.classes)

    def facts(self) -> dict[str, Any]:
        return {"classes": self._run.classes, "colours": _hex(self._palette)}

    def compute(self, inputs: Tensor) -> list[Tensor]:
        return list(self._task.postprocess(self._run.model(inputs).float())[..., :6].cpu())

    def answer(self, value: Tensor, seen: Seen, *, threshold: float) -> dict[str, Any]:
        sure = value[(value[:, 5] >= 0) & (value[:, 4] >= threshold)]
        boxes = in_image(sure, self._run, (seen.height, seen.width)).tolist()
        return {"boxes": [{"name": self._run.classes[int(n)], "score": s, "box": box} for *box, s, n in boxes]}


_TASKS: dict[str, Callable[[LoadedRun], Answers]] = {
    each.task: each for each in (Classification, Segmentation, Detection)
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


def _png(mask: Tensor, palette: Palette) -> bytes:
    """Class numbers (H, W) as an indexed PNG, which viewers show in the classes' colours."""
    from PIL import Image

    image = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.numpy().tobytes())
    image.putpalette(palette.table().numpy().tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()

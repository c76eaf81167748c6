"""Distillation: a task whose loss also follows a teacher."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.data.preprocess import Preprocess
from srattn.engine.open_model import model_facts
from srattn.engine.weights import LoadedRun, load_run
from srattn.errors import SrattnError
from srattn.tasks.protocol import Metrics, Task

Teacher = LoadedRun | nn.Module | str | Path
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as images are decoded to grey


class Distillation:
    """`task`, with (1 - weight) of its loss and `weight` of the distance from a teacher; measured as `task` is.

    "soft": T^2 KL(teacher / T || student / T), the mean over the batch (Hinton et al., arXiv:1503.02531).
    "hard": cross entropy on the teacher's likeliest class (DeiT, arXiv:2012.12877, where `weight` is 0.5).

    The teacher sees the student's augmented images, in its own preprocessing where that is known: its mean and
    deviation, its size, grey or RGB. It has no gradient and stays in eval mode.

    Args:
        task: what the student is trained on: classes, with outputs (B, K).
        teacher: a run or its folder; or any module from images (B, C, H, W) to logits (B, K), such as the
            `module()` of a loaded `torch.export` program.
        temperature: T, of the soft kind.
        weight: in [0, 1].
        preprocess: the student's, to be turned into the teacher's. Needed where the teacher is a run.
        teacher_preprocess: that of a teacher that is a module; by default it takes what the student takes.
        classes: the student's, in order; a run's answers are brought into this order.

    Raises:
        SrattnError: a number out of range, a teacher that cannot be loaded, or one of other classes.
    """

    def __init__(
        self,
        task: Task,
        teacher: Teacher,
        kind: Literal["soft", "hard"] = "soft",
        temperature: float = 3.0,
        weight: float = 0.5,
        *,
        preprocess: Preprocess | None = None,
        teacher_preprocess: Preprocess | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        if kind not in ("soft", "hard"):
            raise SrattnError(f"distillation is 'soft' or 'hard', got {kind!r}")
        if not 0 < temperature < float("inf"):
            raise SrattnError(f"temperature must be above 0, got {temperature}")
        if not 0 <= weight <= 1:
            raise SrattnError(f"weight must be from 0 to 1, got {weight}")
        self.task, self.kind, self.temperature, self.weight = task, kind, temperature, weight
        self.name, self.headline = task.name, task.headline
        self._run: LoadedRun | None = None
        self._order: Tensor | None = None
        if isinstance(teacher, str | Path):
            teacher = load_run(teacher)
        if isinstance(teacher, LoadedRun):
            self._run, teacher_preprocess = teacher, teacher.preprocess
            wanted = getattr(task, "classes", None) if classes is None else classes
            self._order = class_order(teacher.classes, wanted)
            teacher = teacher.model
        self._teacher = _still(teacher)
        self._device: torch.device | None = None
        self._adapt: Callable[[Tensor], Tensor] | None = None
        if teacher_preprocess is not None:
            if preprocess is None:
                raise SrattnError("the teacher has its own preprocessing: give the student's as preprocess=")
            self._adapt = between(preprocess, teacher_preprocess)

    @functools.cached_property
    def teacher_stamp(self) -> str:
        """SHA-256 of weights, settings, preprocessing and classes of a teacher that is a run; empty for a module."""
        if self._run is None:
            return ""
        facts = {**model_facts(self._run), "classes": self._run.classes}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tensor | None = None) -> Tensor:
        """`outputs` (B, K) logits of the student for `inputs` (B, C, H, W); targets as the task takes them."""
        own = self.task.loss(outputs, targets, inputs)
        if not self.weight:
            return own
        if inputs is None:
            raise SrattnError("distillation needs the images: loss(outputs, targets, inputs=images)")
        answers = self.ask(inputs)
        if answers.shape != outputs.shape:
            raise SrattnError(f"the teacher answers {tuple(answers.shape)}, the student {tuple(outputs.shape)}")
        return (1 - self.weight) * own + self.weight * self._distance(outputs.float(), answers.float())

    @torch.no_grad()
    def ask(self, inputs: Tensor) -> Tensor:
        """The teacher's logits (B, K) for the student's inputs (B, C, H, W), in the student's order of classes."""
        if self._device != inputs.device:
            self._teacher.to(inputs.device)
            self._device = inputs.device
        answers = self._teacher(inputs if self._adapt is None else self._adapt(inputs))
        return answers if self._order is None else answers[:, self._order.to(answers.device)]

    def _distance(self, outputs: Tensor, answers: Tensor) -> Tensor:
        if self.kind == "hard":
            return F.cross_entropy(outputs, answers.argmax(1))
        student, teacher = ((x / self.temperature).log_softmax(1) for x in (outputs, answers))
        return self.temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    # -- what is the task's own --------------------------------------------------------------------------------------

    def tally(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return self.task.tally(outputs, targets)

    def summary(self, sums: dict[str, float]) -> dict[str, float]:
        return self.task.summary(sums)

    def metrics(self) -> Metrics:
        return self.task.metrics()

    def postprocess(self, outputs: Tensor) -> Tensor:
        return self.task.postprocess(outputs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "task":
            raise AttributeError(name)
        return getattr(self.task, name)


def between(student: Preprocess, teacher: Preprocess) -> Callable[[Tensor], Tensor]:
    """From a student's inputs (B, C, H, W) to a teacher's: levels, channels and size.

    What was cropped away or inverted stays so: the teacher sees the student's view.
    """

    def adapt(inputs: Tensor) -> Tensor:
        images = _levels(student, inputs)
        if student.channels == 1 and teacher.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        elif student.channels == 3 and teacher.channels == 1:
            weights = torch.tensor(_GREY, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
            images = (images * weights).sum(1, keepdim=True)
        # A student trained at several sizes keeps the proportion between the two.
        height, width = (
            max(1, round(have * theirs / own))
            for have, theirs, own in zip(images.shape[2:], teacher.size, student.size, strict=True)
        )
        if (height, width) != tuple(images.shape[2:]):
            images = F.interpolate(images, (height, width), mode="bilinear", antialias=True, align_corners=False)
        return teacher.normalise(images)

    return adapt


def _levels(preprocess: Preprocess, inputs: Tensor) -> Tensor:
    """The reverse of `preprocess.normalise`: levels in [0, 1]."""
    shape = (1, -1, 1, 1)
    mean = torch.tensor(preprocess.mean, dtype=inputs.dtype, device=inputs.device).view(shape)
    std = torch.tensor(preprocess.std, dtype=inputs.dtype, device=inputs.device).view(shape)
    return inputs * std + mean


def class_order(theirs: Sequence[str], wanted: Sequence[str] | None) -> Tensor | None:
    """Where each wanted class stands among the teacher's; None where they agree already.

    Raises:
        SrattnError: a wanted class that the teacher has not learnt.
    """
    if wanted is None or list(theirs) == list(wanted):
        return None
    place = {name: index for index, name in enumerate(theirs)}
    missing = [name for name in wanted if name not in place]
    if missing:
        known = ", ".join(theirs[:5]) + (", ..." if len(theirs) > 5 else "")
        raise SrattnError(
            f"the teacher has no class {missing[0]!r}; it knows {len(theirs)} classes ({known}), and must "
            f"know all that are learnt: take one that was trained on these"
        )
    return torch.tensor([place[name] for name in wanted])


def _still(teacher: nn.Module) -> nn.Module:
    """The teacher in eval mode and without gradients."""
    try:
        teacher.eval()
    except NotImplementedError:  # an exported program has the mode in which it was exported
        if teacher.training:
            teacher.__dict__["training"] = False
    return teacher.requires_grad_(False)

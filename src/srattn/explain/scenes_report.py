"""The page that tells how a run on masks, boxes, depths or joints went: one HTML file that needs nothing beside it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor, nn

from srattn.data.dense.joints import SIDES
from srattn.data.palette import UNCOUNTED, Palette, standard_palette
from srattn.errors import SrattnError
from srattn.explain import pages, sections
from srattn.explain import scenes_sections as scenes
from srattn.explain.compare_sections import number
from srattn.explain.depth_pictures import ERROR_SCALE
from srattn.explain.headlines import headline_of
from srattn.explain.measured_cases import depth_cases, joint_cases
from srattn.explain.scene_cases import SHOWN, Cases, Scene, Subject, box_cases, mask_cases, runner
from srattn.explain.scene_words import WORDS, counted, headline_words
from srattn.explain.scenes_figures import spread
from srattn.explain.scenes_tables import hexadecimal, table_of
from srattn.files import atomic_path
from srattn.tasks.pose.joints import skeleton_of
from srattn.tasks.protocol import Task

TASKS = tuple(WORDS)
_KEYS = 40  # colours that are named


@dataclasses.dataclass
class SceneReportInputs:
    """What a report tells of. M validation images, K classes."""

    title: str
    task: Task
    """One of `TASKS`, with what it has to know of the model."""
    history: list[dict[str, float]]
    """The metrics records, one an epoch; shares are parts of 1."""
    classes: list[str]
    palette: Palette | None
    """Colours of the classes; by default the standard ones."""
    names: Sequence[str]
    """Of the validation images, in their order."""
    scene: Scene
    """A validation image by its number, (C, H, W) in [0, 1], with its target; None where it is unreadable now."""
    normalise: Callable[[Tensor], Tensor]
    """From images (B, C, H, W) in [0, 1] to what `model` takes."""
    model: nn.Module
    """In eval mode; it is run on the few images that are shown."""
    size: tuple[int, int]
    """Height and width that the plan is shown for."""
    config_yaml: str
    result: dict[str, object]
    """Final figures, versions and machine."""
    skipped: list[str]
    """Unreadable files."""
    answers: Tensor | None = None
    """Detections (M, D, 6) of all validation images, where they are known; of detection alone."""
    bones: Sequence[tuple[int, int]] = ()
    """Joints by number that a line is drawn between; by default COCO's between joints of its names."""


def write_scene_report(path: Path, inputs: SceneReportInputs, overwrite: bool = False) -> None:
    """Writes the report to `path`, whole or not at all.

    The page has no outside resource and no script; text from data sets (class names, file names) is escaped.

    Raises:
        SrattnError: inputs that do not fit together, or `path` exists and `overwrite` is false.
    """
    _check(inputs)
    if not overwrite and Path(path).exists():
        raise SrattnError(f"{path} exists; choose another path or allow it to be replaced")
    page = render(inputs)
    with atomic_path(path, overwrite=overwrite) as aside:
        # File names may hold bytes that are no text; they are shown as escapes.
        aside.write_bytes(page.encode("utf-8", "backslashreplace"))


def render(inputs: SceneReportInputs) -> str:
    """The page as a string."""
    task, result = inputs.task.name, inputs.result
    words, headline = WORDS[task], headline_of(result, {"task": task})
    palette = inputs.palette or standard_palette(inputs.classes)
    cases = _cases(inputs, palette)
    table = table_of(task, inputs.classes, result, palette)
    backbone = getattr(inputs.model, "backbone", inputs.model)
    return pages.template("scenes_report.html", ("plan", "config", "skipped")).render(
        style=pages.style(),
        title=inputs.title,
        task=task,
        words=words,
        headline=headline,
        value=number(result.get(headline.name)),
        about=headline_words(task, len(inputs.classes), int(number(result.get("val_images")) or len(inputs.names))),
        summary=scenes.summary(task, inputs.model, inputs.history, result),
        curves=scenes.curves(task, inputs.history),
        table=table,
        distances=scenes.distances(result) if task == "depth" else [],
        confusion=scenes.confusion(inputs.classes, result) if task == "segmentation" else None,
        precision=scenes.precision_recall(task, result),
        cases=cases,
        looked_at=counted(cases.looked_at, words.units, "validation "),
        keys=_keys(task, inputs.classes, palette),
        ignored=hexadecimal(UNCOUNTED) if cases.ignored else "",
        error_scale=ERROR_SCALE,
        spread=_spread(cases, task),
        plan=sections.plan_table(backbone, inputs.size),
        facts=sections.facts(scenes.other_facts(result)),
        config=inputs.config_yaml,
        skipped=inputs.skipped,
    )


def _cases(inputs: SceneReportInputs, palette: Palette) -> Cases:
    """The images to show."""
    task: Any = inputs.task
    subject = Subject(inputs.names, inputs.scene, runner(inputs.model, inputs.normalise), palette)
    if task.name == "detection":
        return box_cases(subject, task.postprocess, inputs.answers, getattr(task, "masks", False))
    measured = inputs.result.get("per_image")
    # It is not known which is which after an image has become unreadable.
    known = isinstance(measured, list) and len(measured) == len(inputs.names)
    scores = [number(value) for value in measured] if known else None  # type: ignore[union-attr]
    if task.name == "depth":
        return depth_cases(subject, scores, task.max_depth)
    if task.name == "pose":
        bones = inputs.bones or skeleton_of(inputs.classes)
        return joint_cases(subject, scores, task.postprocess, inputs.classes, bones)
    return mask_cases(subject, scores)


def _keys(task: str, classes: Sequence[str], palette: Palette) -> list[tuple[str | None, str]]:
    """Colours in the pictures and what they mean; none where there are too many to look up."""
    if task == "pose":
        return [(hexadecimal(colour), side) for side, colour in SIDES.items()]
    if task == "depth" or len(classes) > _KEYS:
        return []
    return [(hexadecimal(colour), name) for name, colour in zip(classes, palette.colours, strict=False)]


def _spread(cases: Cases, task: str) -> dict[str, Any] | None:
    """How the scores of the images lie; None of so few that the pictures say it all."""
    if len(cases.scores) <= 2 * SHOWN:
        return None
    figure = spread(cases.scores, WORDS[task].score, WORDS[task].units)
    return {"figure": Markup(figure), "middle": statistics.median(cases.scores)}


def _check(inputs: SceneReportInputs) -> None:
    if inputs.task.name not in TASKS:
        raise SrattnError(f"this report is of {' or '.join(TASKS)}, not of {inputs.task.name!r}")
    if not len(inputs.names):
        raise SrattnError("a report needs at least one validation image")
    answers = inputs.answers
    if answers is not None and (answers.ndim != 3 or len(answers) != len(inputs.names) or answers.shape[2] != 6):
        raise SrattnError(
            f"answers must be ({len(inputs.names)}, D, 6), a row for each validation image, got {tuple(answers.shape)}"
        )

"""The page that tells how a run went: one HTML file that needs nothing beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.explain import pages, sections
from srattn.files import atomic_path


@dataclass
class ReportInputs:
    """What a report tells of. N validation images, K classes."""

    title: str
    history: list[dict[str, float]]
    """The metrics records, one an epoch; accuracies are fractions."""
    classes: list[str]
    images: Tensor
    """(N, C, H, W) in [0, 1], as the model saw them before normalisation."""
    model_inputs: Tensor
    """The same, normalised: what `model` takes."""
    labels: Tensor
    """(N,) of int."""
    probabilities: Tensor
    """(N, K)."""
    model: nn.Module
    """In eval mode."""
    config_yaml: str
    result: dict[str, object]
    """Final figures, versions and machine."""
    skipped: list[str]
    """Unreadable files."""
    measure_scaling: bool = True
    """Whether to measure dense attention against SRA, which takes some seconds."""


def write_report(path: Path, inputs: ReportInputs, overwrite: bool = False) -> None:
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


def render(inputs: ReportInputs) -> str:
    """The page as a string."""
    predicted = inputs.probabilities.argmax(dim=1)
    return pages.template("report.html").render(
        title=inputs.title,
        summary=sections.summary(inputs.labels, predicted, inputs.classes, inputs.model, inputs.history, inputs.result),
        curves=sections.curves(inputs.history),
        confusion=sections.confusion(inputs.labels, predicted, inputs.classes, inputs.result),
        predictions=sections.predictions(inputs.images, inputs.labels, inputs.probabilities, inputs.classes),
        attention=sections.attention(inputs.model, inputs.images, inputs.model_inputs, inputs.labels, inputs.classes),
        plan=sections.plan_table(inputs.model, (inputs.model_inputs.shape[-2], inputs.model_inputs.shape[-1])),
        scaling=sections.scaling(inputs.model) if inputs.measure_scaling else None,
        facts=sections.facts(inputs.result),
        config=inputs.config_yaml,
        skipped=inputs.skipped,
    )


def _check(inputs: ReportInputs) -> None:
    images, classes = len(inputs.labels), len(inputs.classes)
    shapes = (
        f"images {tuple(inputs.images.shape)}, model_inputs {tuple(inputs.model_inputs.shape)}, "
        f"labels {tuple(inputs.labels.shape)}, probabilities {tuple(inputs.probabilities.shape)}, {classes} classes"
    )
    if images == 0:
        raise SrattnError("a report needs at least one validation image")
    if (
        inputs.images.shape != inputs.model_inputs.shape
        or inputs.images.ndim != 4
        or len(inputs.images) != images
        or tuple(inputs.probabilities.shape) != (images, classes)
    ):
        raise SrattnError(f"the report's inputs do not fit together: {shapes}")
    if not torch.isfinite(inputs.probabilities).all():
        raise SrattnError("the probabilities are not all finite; the model has diverged, lower the learning rate")
    if int(inputs.labels.min()) < 0 or int(inputs.labels.max()) >= classes:
        raise SrattnError(
            f"labels run from {int(inputs.labels.min())} to {int(inputs.labels.max())}; there are {classes} classes"
        )

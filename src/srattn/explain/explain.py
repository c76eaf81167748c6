"""From a trained model and images to a folder that explains them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from srattn.data.decode import BadImage, decode
from srattn.data.preprocess import to_image
from srattn.data.sources import file_of
from srattn.engine.rows.answer import shown
from srattn.engine.rows.base import Source
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.explain.explain_page import Explanation, render
from srattn.explain.points import Asked, seen_point
from srattn.explain.receptive_field import effective_receptive_field
from srattn.explain.sheets import write_sheets
from srattn.explain.study import Point, Study, study
from srattn.explain.support import KeySupport, groups_of, reduction_support
from srattn.explain.words import count_text
from srattn.files import atomic_dir
from srattn.models.backbone import Backbone

MOST_IMAGES = 24
BUDGET = 12 << 20
"""Bytes of attention that a page may embed, before they are written as text, which takes a third more."""
MOST_FOR_ONE = 3 << 20
_PROBES = 8


def explain(
    run: LoadedRun,
    sources: Iterable[Source],
    points: Sequence[Asked] = (),
    target: int | None = None,
    on_bad_image: str = "skip",
) -> Explanation:
    """Everything that is shown of a model and its images.

    Args:
        points: where to ask for attention, in each picture; the centre and the strongest Grad-CAM by default.
        target: number of the class of Grad-CAM; each image's predicted one by default.
        on_bad_image: "skip" goes on without unreadable images, "raise" does not.

    Raises:
        SrattnError: no image can be read, a point that lies in none, or too large a map.
    """
    read: list[tuple[str, Tensor, list[Point]]] = []
    skipped: list[str] = []
    for source in sources:
        name = shown(source.name)
        try:
            read.append((name, *_read(run, source, name, points)))
        except BadImage as error:
            if on_bad_image != "skip":
                raise
            skipped.append(shown(str(error)))
    if not read:
        raise SrattnError("no image could be read" + (f": {skipped[0]}" if skipped else ""))
    model = backbone_in(run)
    classes = run.classes if model is run.model else []  # those of a mask or a box are of no whole image
    budget = min(MOST_FOR_ONE, BUDGET // len(read))
    normalise = run.preprocess.normalise
    studies = [study(model, classes, name, pixels, normalise, asked, target, budget) for name, pixels, asked in read]
    sizes = list(dict.fromkeys((each.pixels.shape[1], each.pixels.shape[2]) for each in studies))
    return Explanation(
        model=str(model.config["name"]),
        facts=_facts(run, model, studies),
        studies=studies,
        fields=_fields(run, model, studies, sizes[0]),
        supports={size: _supports(model, size) for size in sizes},
        strides=model.feature_info.reduction(),
        depths=[len(stage.blocks) for stage in model.iter_stages()],
        skipped=skipped,
    )


def backbone_in(run: LoadedRun) -> Backbone:
    """The model itself, or the backbone of one that answers with masks, boxes, depths or joints.

    Raises:
        SrattnError: it has none.
    """
    inner = getattr(run.model, "backbone", run.model)
    if not isinstance(inner, Backbone):
        raise SrattnError(f"{run.path} is a {type(run.model).__name__}, and has no backbone whose attention is known")
    return inner


def write_explanation(out: Path, explanation: Explanation, page: str = "index.html") -> list[Path]:
    """Writes the page and the pictures into a new folder, whole or not at all.

    Raises:
        SrattnError: `out` exists.
    """
    with atomic_dir(out) as aside:
        (aside / page).write_bytes(render(explanation).encode("utf-8", "backslashreplace"))
        written = [aside / page, *write_sheets(aside, explanation)]
        names = [path.name for path in written]
    return [out / name for name in names]


def _read(run: LoadedRun, source: Source, name: str, points: Sequence[Asked]) -> tuple[Tensor, list[Point]]:
    """uint8 (C, H, W) as the model sees the picture, and the points in it."""
    if isinstance(source.data, BadImage):
        raise source.data
    channels = run.preprocess.channels
    if isinstance(source.data, Tensor):
        picture = to_image(source.data).convert("L" if channels == 1 else "RGB")
    else:
        picture = decode(file_of(source.data), channels, name)
    places = [seen_point(asked, run.preprocess, *picture.size, name) for asked in points]
    named = [Point(x, y, f"point {asked.text}") for asked, (x, y) in zip(points, places, strict=True)]
    return run.preprocess.pixels(picture), named


def _fields(run: LoadedRun, model: Backbone, studies: Sequence[Study], size: tuple[int, int]) -> list[Tensor]:
    """The receptive field of each stage, averaged over the images of that size."""
    levels = torch.stack([each.pixels for each in studies if tuple(each.pixels.shape[1:]) == size])
    images = run.preprocess.normalise(levels)
    probes = max(1, _PROBES // len(images))
    return [effective_receptive_field(model, size, stage, images, probes) for stage in range(len(model.stages))]


def _supports(model: Backbone, size: tuple[int, int]) -> list[list[KeySupport]]:
    """What the keys see, for each block in order of depth and each of its groups of heads."""
    found = []
    for number, stage in enumerate(model.iter_stages()):
        for block in range(len(stage.blocks)):
            groups = range(groups_of(model, number, block))
            found.append([reduction_support(model, size, number, block, group) for group in groups])
    return found


def _facts(run: LoadedRun, model: Backbone, studies: Sequence[Study]) -> list[tuple[str, str]]:
    height, width = studies[0].pixels.shape[1:]
    return [
        ("model", str(model.config["name"])),
        ("task", run.task),
        ("weights", shown(str(run.path))),
        ("parameters", count_text(sum(each.numel() for each in run.model.parameters()))),
        ("image", f"{width} × {height} pixels, as the model sees it"),
        ("classes", str(len(run.classes)) if run.classes else "none"),
        ("blocks", ", ".join(str(len(stage.blocks)) for stage in model.iter_stages())),
        ("receptive field", f"{_PROBES} gradients or more on these images"),
    ]

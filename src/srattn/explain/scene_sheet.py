"""The worst and the best cases of a model of masks, boxes, depths or joints, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from srattn.data.dense import SceneData, Scenes
from srattn.data.palette import standard_palette
from srattn.engine.scene_predict import likeliest
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.explain.depth_pictures import ERROR_SCALE, depth_panels, draw_scale
from srattn.explain.lettering import PAPER
from srattn.explain.measured_cases import depth_facts, depth_said, person_panels
from srattn.explain.overlay import panels, side_by_side
from srattn.explain.scene_cases import MATCHED, answered_objects, true_objects
from srattn.explain.scene_pictures import Panel, box_panels
from srattn.explain.scene_scores import evenly, extremes, match
from srattn.tasks.losses.common import two_logits
from srattn.tasks.models import task_options
from srattn.tasks.pose.joints import skeleton_of
from srattn.tasks.registry import make_task

CASES = 4
_PANEL = 320  # pixels of the longer side of a picture
_LEAST = 0.3  # score of a box that is drawn


def draw_cases(
    path: Path, run: LoadedRun, data: SceneData, scores: Sequence[float | None] | None, cases: int = CASES
) -> None:
    """Writes a sheet: a row a case, the worst `cases` and then the best, by `scores` (one a validation image).

    Without scores the first images are shown.
    """
    samples = cast(Scenes, data.val)
    known = scores if scores is not None and len(scores) == len(samples) else None
    if known is None or not any(score is not None for score in known):
        chosen, known = list(range(min(len(samples), 2 * cases))), None
    else:
        worst, best = extremes(known, cases)
        chosen = [*worst, *best[::-1]]  # from the worst to the best
    bones = data.bones or skeleton_of(run.classes)
    rows = [row for index in chosen if (row := case(run, samples, index, known, bones)) is not None]
    if not rows:
        raise SrattnError(f"no picture for {path}: none of the {len(chosen)} images can be read any more")
    if run.task == "depth":
        rows.append(draw_scale(ERROR_SCALE, rows[0].width))
    stacked(rows).save(path)


@torch.inference_mode()
def case(
    run: LoadedRun,
    samples: Scenes,
    index: int,
    scores: Sequence[float | None] | None = None,
    bones: Sequence[tuple[int, int]] = (),
) -> Image.Image | None:
    """One image with its truth and the prediction beside each other; None where it cannot be read."""
    scene = samples.try_scene(index)
    if scene is None:
        return None
    pixels, target = scene
    image = pixels.float() / 255
    device = next(run.model.parameters()).device
    outputs = run.model(run.preprocess.normalise(image.unsqueeze(0).to(device))).float().cpu()
    score = None if scores is None else scores[index]
    title = samples.names[index] if score is None else f"{samples.names[index]}, {100 * score:.1f} %"
    palette = run.palette or standard_palette(run.classes)
    if target.mask is not None:
        height, width = target.mask.shape
        found = likeliest(two_logits(outputs)[0], height, width)
        large = torch.nn.functional.interpolate(
            pixels.unsqueeze(0).float(), (height, width), mode="bilinear", align_corners=False
        )
        return side_by_side(large[0].round().to(torch.uint8), target.mask, found, palette, title=title)
    task: Any = make_task(run.task, run.classes, **task_options(run.model))
    if target.depth is not None:
        most = task.max_depth
        said = depth_said(outputs, target.depth)
        drawn, scale = depth_panels(image, target.depth, said, most)
        row = _row(drawn, f"{samples.names[index]}: {depth_facts(target.depth, said, most)}")
        return stacked([row, draw_scale(scale, row.width)])
    if target.joints is not None:
        facts, drawn = person_panels(image, target, task.postprocess(outputs), run.classes, bones)
        return _row(drawn, f"{samples.names[index]}: {facts}")
    said = answered_objects(outputs, task.postprocess(outputs)[0], _LEAST, getattr(task, "masks", False))
    return _row(box_panels(image, true_objects(target), said, palette), title)


def precisions(samples: Scenes, answers: Tensor) -> list[float | None]:
    """Average precision of each image by itself, all classes together; None without an object that counts, and of very
    many images for those that are not looked at.

    Args:
        answers: detections (N, D, 6), a row for each image.
    """
    found: list[float | None] = [None] * len(answers)
    for index in evenly(len(answers), MATCHED):
        scene = samples.try_scene(index)
        if scene is not None:
            truth = true_objects(scene[1])
            found[index] = match(truth.boxes, answers[index], truth.ignored).precision()
    return found


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other on white."""
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _row(drawn: Sequence[Panel], title: str) -> Image.Image:
    return panels([(panel.caption, small(panel.picture)) for panel in drawn], title)


def small(picture: Image.Image, side: int = _PANEL) -> Image.Image:
    """The picture with its longer side at most `side` pixels."""
    picture = picture.copy()
    picture.thumbnail((side, side))
    return picture

"""The worst and the best cases of a model of masks or boxes, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from srattn.data.dense import SceneData, Scenes
from srattn.data.palette import standard_palette
from srattn.data.preprocess import to_image
from srattn.engine.scene_predict import likeliest
from srattn.engine.weights import LoadedRun
from srattn.explain.box_pictures import draw_boxes
from srattn.explain.depth_pictures import colour_depth
from srattn.explain.joint_pictures import draw_joints
from srattn.explain.overlay import panels, side_by_side
from srattn.tasks.depth import depth_map
from srattn.tasks.models import task_options
from srattn.tasks.pose.joints import skeleton_of
from srattn.tasks.registry import make_task

CASES = 4


def draw_cases(path: Path, run: LoadedRun, data: SceneData, scores: list[float] | None, cases: int = CASES) -> None:
    """Writes a sheet: a row a case, the worst `cases` and then the best, by `scores` (one a validation image).

    Without scores the first images are shown.
    """
    samples = cast(Scenes, data.val)
    order = list(range(len(samples)))
    if scores is not None and len(scores) == len(order):
        order.sort(key=lambda index: scores[index])
    chosen = order if len(order) <= 2 * cases else [*order[:cases], *order[-cases:]]
    rows = [row for index in chosen if (row := case(run, samples, index, scores)) is not None]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path)


@torch.inference_mode()
def case(run: LoadedRun, samples: Scenes, index: int, scores: list[float] | None = None) -> Image.Image | None:
    """One image with its truth and the prediction beside each other; None where it cannot be read."""
    scene = samples.try_scene(index)
    if scene is None:
        return None
    pixels, target = scene
    device = next(run.model.parameters()).device
    outputs = run.model(run.preprocess.normalise(pixels.unsqueeze(0).to(device).float() / 255)).float()
    said = "" if scores is None or index >= len(scores) else f", {100 * scores[index]:.1f} %"
    title = f"{samples.names[index]}{said}"
    palette = run.palette or standard_palette(run.classes)
    if target.mask is not None:
        height, width = target.mask.shape
        found = likeliest(outputs[0].softmax(0).cpu(), height, width)
        large = torch.nn.functional.interpolate(
            pixels.unsqueeze(0).float(), (height, width), mode="bilinear", align_corners=False
        )
        return side_by_side(large[0].round().to(torch.uint8), target.mask, found, palette, title=title)
    task: Any = make_task(run.task, run.classes, **task_options(run.model))
    if target.depth is not None:
        height, width = target.depth.shape
        known = target.depth[(target.depth > 0) & target.depth.isfinite()]
        low, high = (float(known.min()), float(known.max())) if len(known) else (None, None)
        drawn = [
            ("image", to_image(pixels).convert("RGB").resize((width, height))),
            ("truth", colour_depth(target.depth, low, high)),
            ("prediction", colour_depth(depth_map(outputs, (height, width))[0].cpu(), low, high)),
        ]
        return panels([(name, small(picture)) for name, picture in drawn], title)
    if target.joints is not None:
        found = task.postprocess(outputs)[0].cpu()
        size = torch.tensor([pixels.shape[2], pixels.shape[1], 1.0])
        drawn_joints = draw_joints(pixels, (found * size).unsqueeze(0), skeleton_of(run.classes))
        return panels([("image", to_image(pixels).convert("RGB")), ("prediction", drawn_joints)], title)
    detections = task.postprocess(outputs)[0].cpu()
    boxes = torch.zeros(0, 5) if target.boxes is None else target.boxes
    truth = torch.cat([boxes[:, :4], torch.ones(len(boxes), 1), boxes[:, 4:]], 1)
    drawn = [
        ("truth", draw_boxes(pixels, truth, run.classes, palette, scores=False)),
        ("prediction", draw_boxes(pixels, sure(detections), run.classes, palette)),
    ]
    return panels(drawn, title)


def small(picture: Image.Image, side: int = 320) -> Image.Image:
    """The picture with its longer side at most `side` pixels."""
    picture = picture.copy()
    picture.thumbnail((side, side))
    return picture


def sure(boxes: Tensor, threshold: float = 0.3) -> Tensor:
    """The boxes (N, 6) that are shown: no padding, and at least `threshold`."""
    return boxes[(boxes[:, 5] >= 0) & (boxes[:, 4] >= threshold)]

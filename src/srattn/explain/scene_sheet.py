"""The worst and the best cases of a model of masks or boxes, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from srattn.data.dense import SceneData, Scenes
from srattn.data.palette import standard_palette
from srattn.engine.scene_predict import likeliest
from srattn.engine.weights import LoadedRun
from srattn.explain.box_pictures import draw_boxes
from srattn.explain.overlay import panels, side_by_side
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
    task: Any = make_task("detection", run.classes)
    detections = task.postprocess(outputs)[0].cpu()
    boxes = torch.zeros(0, 5) if target.boxes is None else target.boxes
    truth = torch.cat([boxes[:, :4], torch.ones(len(boxes), 1), boxes[:, 4:]], 1)
    drawn = [
        ("truth", draw_boxes(pixels, truth, run.classes, palette, scores=False)),
        ("prediction", draw_boxes(pixels, sure(detections), run.classes, palette)),
    ]
    return panels(drawn, title)


def sure(boxes: Tensor, threshold: float = 0.3) -> Tensor:
    """The boxes (N, 6) that are shown: no padding, and at least `threshold`."""
    return boxes[(boxes[:, 5] >= 0) & (boxes[:, 4] >= threshold)]

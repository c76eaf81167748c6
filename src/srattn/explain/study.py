"""Everything that is shown of one image: answers, points, attention, rollout and Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srattn.explain.attention import AttentionMap, map_of, point_weights, weights_to_pixels
from srattn.explain.capture import capture
from srattn.explain.grad_cam import coarse_cam
from srattn.explain.packing import Kept, choose_kept, key_boxes, pack
from srattn.explain.rollout import rollout
from srattn.models.backbone import Backbone

_CLASSES = 3


@dataclass(frozen=True)
class Point:
    """A pixel (x, y) of what the model sees, and what it is called."""

    x: int
    y: int
    name: str


@dataclass
class Cam:
    """Grad-CAM for one class, on the grid (h, w) of each stage."""

    name: str
    target: int
    stages: list[Tensor]


@dataclass
class Study:
    """What is shown of one image of (H, W) pixels."""

    name: str
    pixels: Tensor
    """(C, H, W) in [0, 1], as the model sees it before it is normalised."""
    answers: list[tuple[str, float]]
    """Classes with their probabilities, the likeliest first."""
    points: list[Point]
    attention: list[list[Tensor]]
    """For each point, (heads, H, W) of the last block of each stage."""
    rollout: Tensor
    """(H, W)."""
    cams: list[Cam]
    """The class that was asked for or the predicted one first; empty without a classifier."""
    blocks: list[dict[str, Any]]
    """What the page embeds of each block."""
    kept: list[Kept]
    boxes: list[list[list[float]]]
    """Of each embedded block, where its keys are drawn."""


def study(
    model: Backbone,
    classes: list[str],
    name: str,
    pixels: Tensor,
    normalise: Callable[[Tensor], Tensor],
    points: Sequence[Point],
    target: int | None,
    budget: int,
) -> Study:
    """Computes all of one image.

    Args:
        pixels: uint8 (C, H, W) as the model's preprocessing makes them.
        points: where to ask; the centre and the strongest point of Grad-CAM if empty.
        target: the class of Grad-CAM; the predicted one by default.
        budget: bytes of attention that the page may embed for this image.
    """
    levels = pixels.float() / 255
    batch = normalise(levels.unsqueeze(0).to(next(model.parameters()).device))
    size = (pixels.shape[1], pixels.shape[2])
    answers: list[tuple[str, float]] = []
    cams: list[Cam] = []
    if classes:
        with torch.inference_mode():
            probabilities = model(batch)[0].float().softmax(0).cpu()
        ranked = probabilities.sort(descending=True, stable=True)
        order, shares = ranked.indices.tolist(), ranked.values.tolist()
        answers = [(classes[i], share) for i, share in zip(order, shares, strict=True)]
        wanted = dict.fromkeys(([] if target is None else [target]) + order[:_CLASSES])
        stages = range(len(model.stages))
        cams = [Cam(classes[i], i, [coarse_cam(model, batch, i, s).cpu() for s in stages]) for i in wanted]
    asked = list(points) or default_points(cams, size)
    captured = capture(model, batch, "all")
    kept = choose_kept(captured, budget)
    last = {each.stage: each.block for each in captured}
    attention: list[list[Tensor]] = [[] for _ in asked]
    blocks, boxes = [], []
    for each, choice in zip(captured, kept, strict=True):
        whole = map_of(each)
        if not choice.left_out:
            blocks.append(pack(whole, choice))
            boxes.append(key_boxes(whole, size).tolist())
        if each.block == last[each.stage]:
            for maps, point in zip(attention, asked, strict=True):
                maps.append(_drawn(whole, point, size))
    whole = rollout(model, batch).cpu()
    return Study(name, levels, answers, asked, attention, whole, cams, blocks, kept, boxes)


def _drawn(attention: AttentionMap, point: Point, size: tuple[int, int]) -> Tensor:
    """(heads, H, W)."""
    return weights_to_pixels(attention, point_weights(attention, (point.y, point.x))[0], size).cpu()


def default_points(cams: Sequence[Cam], size: tuple[int, int]) -> list[Point]:
    """The centre, and where the deepest stage that speaks for the class does so most."""
    height, width = size
    points = [Point(width // 2, height // 2, "centre")]
    for cam in reversed(cams[0].stages if cams else []):
        if float(cam.max()) > 0:
            row, column = divmod(int(cam.argmax()), cam.shape[1])
            y = min(int((row + 0.5) * height / cam.shape[0]), height - 1)
            x = min(int((column + 0.5) * width / cam.shape[1]), width - 1)
            points += [Point(x, y, "strongest Grad-CAM")]
            break
    return points

"""The best and the worst of depths and of people with joints, with what was true beside what was answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from srattn.data.dense import Target
from srattn.explain.depth_pictures import depth_panels, metres
from srattn.explain.joint_pictures import Bones, joint_panels
from srattn.explain.scene_cases import Cases, Subject, grouped, marked, percent
from srattn.explain.scene_pictures import Panel
from srattn.tasks.depth import LEAST, depth_map, known
from srattn.tasks.depth_distance import ByDistance
from srattn.tasks.pose import in_image
from srattn.tasks.pose.joints import sigmas_of
from srattn.tasks.pose.metrics import pck
from srattn.tasks.pose.rows import split_target
from srattn.tasks.pose.similarity import similarity


def depth_cases(subject: Subject, per_image: Sequence[float | None] | None, max_depth: float) -> Cases:
    """Depths; `per_image` is delta1 of each image, where it was measured."""

    def card(image: Tensor, target: Target, outputs: Tensor) -> dict[str, Any]:
        assert target.depth is not None
        said = depth_said(outputs, target.depth)
        panels, scale = depth_panels(image, target.depth, said, max_depth)
        return {"facts": depth_facts(target.depth, said, max_depth), "panels": marked(panels), "scale": scale}

    return grouped(subject, per_image, card)


def depth_said(outputs: Tensor, truth: Tensor) -> Tensor:
    """Outputs for one image as metres on the truth's grid (h, w)."""
    return depth_map(outputs, (truth.shape[0], truth.shape[1]))[0].cpu()


def depth_facts(truth: Tensor, said: Tensor, max_depth: float) -> str:
    """The figures of one image, depths (h, w) in metres, in words."""
    valid = known(truth, max_depth)
    if not valid.any():
        return "no depth is known"
    whole = ByDistance(max_depth, [0.0, max_depth])
    whole.update(said[valid].clamp(LEAST, max_depth), truth[valid])
    found = whole.details()
    return f"{percent(found['delta1'][0])} within 25 %, RMSE {metres(found['rmse'][0])}"


def joint_cases(
    subject: Subject,
    per_image: Sequence[float | None] | None,
    decode: Callable[[Tensor], Tensor],
    names: Sequence[str],
    bones: Bones,
) -> Cases:
    """People; `per_image` is the similarity of each, where it was measured.

    Args:
        decode: from outputs to joints (1, K, 3) in parts of the input.
        names: of the joints.
    """

    def card(image: Tensor, target: Target, outputs: Tensor) -> dict[str, Any]:
        facts, panels = person_panels(image, target, decode(outputs), names, bones)
        return {"facts": facts, "panels": marked(panels)}

    return grouped(subject, per_image, card)


def person_panels(
    image: Tensor, target: Target, found: Tensor, names: Sequence[str], bones: Bones
) -> tuple[str, list[Panel]]:
    """The figures of one person in words, and its pictures.

    Args:
        image: (C, H, W) in [0, 1], a window around the person.
        found: joints (1, K, 3) in parts of the window.
    """
    assert target.joints is not None
    rows = split_target(target.joints.rows().double().unsqueeze(0), len(names))
    found = found.detach().cpu().double()
    true = torch.cat([rows.joints[..., :2] / rows.size.unsqueeze(1), rows.joints[..., 2:]], 2)
    here, there = (in_image(joints, rows.matrix, rows.size) for joints in (true, found))
    near, labelled = pck(here, there, rows.side)[0], int((true[..., 2] > 0).sum())
    facts = torch.stack([rows.image, rows.area, rows.side], 1)
    alike = float(similarity(facts, here, there, sigmas_of(names)).sum()) / labelled if labelled else None
    placed = found[0, :, :2] * rows.size
    words = f"OKS {percent(alike)}, {int(near.sum())} of {labelled} joints found"
    return words, joint_panels(image, rows.joints[0], placed, near, names, bones)

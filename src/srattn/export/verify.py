"""Inputs at several sizes with what eager makes of them, and how far a file's answers may be from that.

The truth is the model in float64. A file may be four times as far from it as eager is in the file's precision, and 1e-5
in any case. A file in whole numbers is made from one in float that was held against this.
Where the graph resizes pictures, rounding pixels at a slightly other threshold counts as eager does.

A choice is not far or near: classes of pixels may be any whose logit is as good as the best within what logits may
differ by, boxes that are left after suppression are held against the rule itself (`judge_detections`), and joints
against the maps that the file read them from, which in turn are held against eager.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from srattn.errors import SrattnError
from srattn.export.answers import joints_of, parts_of
from srattn.export.graph import Graph, example_for, least_dynamic
from srattn.export.options import Options
from srattn.export.pictures import Pictures
from srattn.ops.boxes import box_iou
from srattn.tasks.detection.decode import Choice

FLOOR = 1e-5
LEEWAY = 4.0
NUDGE = 2e-4
"""Of a level: more than float32 sums of levels differ by between runtimes, which then round some pixel differently."""
_FACTOR = 4 / 3
NEAR = 1e-4
"""Scores, overlaps and (in pixels, times the largest coordinate) boxes that are one and the same to a suppression."""


class Verdict(NamedTuple):
    """The worst relative error over all inputs, what was allowed there, and the shapes of the inputs."""

    error: float
    tolerance: float
    inputs: list[list[int]]


def write_cases(graph: Graph, options: Options, real: Sequence[Tensor], folder: Path) -> list[str]:
    """Writes a file for each input with eager's answers, and returns the files.

    Args:
        real: further inputs beside the random ones, as the graph takes them.
    """
    with torch.inference_mode():
        graph = Graph(graph.model, _before_choice(options), graph.pictures).eval()
        exact, others = references(graph, options)
        files = []
        for place, images in enumerate(inputs_of(graph, options, real)):
            doubled = images if images.dtype == torch.uint8 else images.double()
            truth = _answers(exact, doubled)  # rows are float32 in any model
            allowed = [FLOOR] * len(truth)
            for other, is_exact in others:
                found = _answers(other, doubled if is_exact else images)
                allowed = [max(a, LEEWAY * apart(f, t)) for a, f, t in zip(allowed, found, truth, strict=True)]
            tensors = {f"truth_{i}": t.contiguous() for i, t in enumerate(truth)}
            tensors["allowed"] = torch.tensor(allowed, dtype=torch.float64)
            if options.answer == "joints":
                tensors["columns"] = torch.tensor(graph.model.columns or 0)  # type: ignore[operator]
            path = folder / f"case_{place}.safetensors"
            save_file({"images": images.contiguous(), **tensors}, path)
            files.append(str(path))
    return files


def inputs_of(graph: Graph, options: Options, real: Sequence[Tensor]) -> list[Tensor]:
    """Random inputs, always the same, and the real ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [*(example_for(graph, options, size, batch) for size, batch in sizes(graph, options)), *real]


def references(graph: Graph, options: Options) -> tuple[Graph, list[tuple[Graph, bool]]]:
    """The truth, and graphs that may be off it, each with whether it computes in float64."""
    exact = copy.deepcopy(graph).double()
    nudged = [(_nudged(exact, nudge), True) for nudge in (NUDGE, -NUDGE) if graph.pictures]
    return exact, [(graph, False), *_less_exact(graph, options), *nudged]


def _less_exact(graph: Graph, options: Options) -> list[tuple[Graph, bool]]:
    """Eager in the precision of the file, where that is not float32."""
    if options.precision not in ("bfloat16", "float16"):
        return []
    model = copy.deepcopy(graph.model)
    if options.precision == "bfloat16":
        model = model.bfloat16()
    else:
        # Stored in half and float32 when they are used. A runtime rounds weights that it has multiplied with the
        # scales of norms, so they are rounded here as multiples of themselves, which no factor of two makes equal.
        for weight in model.parameters():
            weight.copy_((weight * _FACTOR).half().float() / _FACTOR)
    return [(Graph(model, graph.options, graph.pictures).eval(), False)]


def _nudged(graph: Graph, nudge: float) -> Graph:
    """The graph with pixels rounded a little earlier or later."""
    assert graph.pictures is not None
    return Graph(graph.model, graph.options, Pictures(graph.pictures.preprocess, nudge).double()).eval()


def _before_choice(options: Options) -> Options:
    return dataclasses.replace(options, outputs="logits") if options.answer == "classes" else options


def sizes(graph: Graph, options: Options) -> list[tuple[tuple[int, int], int]]:
    """Sizes and batches that are tried: the declared one, and others where they may differ."""
    height, width = options.size
    batches = [1, 2, 3] if options.batch is None else [options.batch] * 3
    if graph.pictures is not None:
        others = [(height + 37, 2 * width + 11), (max(2, height // 2), width)]
    else:
        least = least_dynamic(graph.model, options)
        down, right = "height" in options.dynamic, "width" in options.dynamic
        others = [
            (height + 45 if down else height, width + 19 if right else width),
            (max(least, height // 2 + 3) if down else height, max(least, width - 29) if right else width),
        ]
    return list(zip([options.size, *others], batches, strict=True))


def judge(answers: Sequence[Tensor], case: dict[str, Tensor], answer: str = "logits") -> tuple[float, float]:
    """The worst relative error of the answers to a case, and what was allowed there.

    Raises:
        SrattnError: other shapes, or one of the answers is too far away.
    """
    truth = [case[f"truth_{i}"] for i in range(sum(name.startswith("truth_") for name in case))]
    allowed = case["allowed"].tolist()
    shape = "x".join(map(str, case["images"].shape))
    if answer == "classes":
        errors = [_regret(answers[0], truth[0], case["images"])]
    else:
        parts = parts_of(list(answers), answer)
        check_shapes(parts, truth)
        errors = [apart(part, t) for part, t in zip(parts, truth, strict=True)]
    worst = (0.0, FLOOR)
    for error, most in zip(errors, allowed, strict=True):
        if not error <= most:
            raise SrattnError(
                f"the file differs from eager by {error:.1e} at {shape}, {most:.1e} is allowed; nothing was written"
            )
        if error > worst[0]:
            worst = (error, most)
    if answer == "joints":
        _judge_joints(answers[0], answers[1], case)
    return worst


def check_shapes(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    if [a.shape for a in found] != [t.shape for t in wanted]:
        shapes, others = ([tuple(t.shape) for t in each] for each in (found, wanted))
        raise SrattnError(f"the file answers with shapes {shapes}, eager with {others}; nothing was written")


def _regret(classes: Tensor, logits: Tensor, images: Tensor) -> float:
    """Half of what the worst pixel's class lacks to the best logit, relative to the largest: an error of the logits.

    Two logits that each differ by an error may change places where they lie twice as far apart. Enlarging does not
    make errors larger.
    """
    size = images.shape[1:3] if images.dtype == torch.uint8 else images.shape[2:]
    check_shapes([classes], [torch.empty(len(images), *size, device="meta")])
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    if int(classes.max()) >= logits.shape[1]:
        return float("inf")
    whole = F.interpolate(logits, size=list(size), mode="bilinear", align_corners=False)
    lacks = whole.amax(1) - whole.gather(1, classes.long().unsqueeze(1)).squeeze(1)
    return float(lacks.max() / 2 / logits.abs().max().clamp(min=1e-30))


def _judge_joints(joints: Tensor, maps: Tensor, case: dict[str, Tensor]) -> None:
    """Holds joints (B, K, 3) against what the file itself says that they were read from."""
    height, width = case["images"].shape[2:]
    wanted = joints_of(maps, int(case["columns"]) or None, height, width)
    check_shapes([joints], [wanted])
    if not bool(((joints - wanted).abs() <= NEAR * max(height, width)).all()):
        raise SrattnError("the file finds joints in other places than its own maps have them; nothing was written")


def judge_detections(detections: Tensor, boxes: Tensor, scores: Tensor, choice: Choice) -> None:
    """Holds detections (B, M, 6) against the rule, given all boxes, (B, N, 4) or (B, N, K, 4) of each class its own,
    and scores (B, N, K).

    The greedy rule keeps exactly those boxes that no better kept one of their class overlaps. So each detection is one
    of the boxes, no two of a class overlap, and each box that is missing is overlapped by a better one, or is too bad;
    all of it but for `NEAR`.

    Raises:
        SrattnError: one of these is not so.
    """
    if detections.shape != (len(boxes), choice.most, 6):
        check_shapes([detections], [torch.empty(len(boxes), choice.most, 6, device="meta")])
    for found, places, values in zip(detections, boxes, scores, strict=True):
        kept = found[found[:, 5] >= 0]
        least = choice.score if len(kept) < choice.most else float(kept[:, 4].min())
        counted = values.flatten().topk(min(choice.candidates, values.numel())).values.min()
        for label in range(values.shape[1]):
            mine, own = kept[kept[:, 5] == label], places if places.ndim == 2 else places[:, label]
            whole = (own[:, 2:] > own[:, :2]).all(1)
            if bool((mine[:, 4] < choice.score - NEAR).any()):
                raise SrattnError("the file keeps boxes that its suppression should drop; nothing was written")
            judge_kept(mine, own[whole], values[whole, label], max(least, float(counted)), choice.overlap)


def judge_kept(kept: Tensor, boxes: Tensor, scores: Tensor, least: float, overlap: float, slack: float = NEAR) -> None:
    """Holds what is left of boxes (N, 4) of one class with scores (N,) against the rule.

    Args:
        kept: (M, 5 or more): boxes and their scores.
        least: boxes with lower scores may be missing.
        overlap: as IoU.
        slack: scores that are one and the same.

    Raises:
        SrattnError: it is not the rule.
    """
    over = box_iou(kept[:, :4], kept[:, :4]).triu(1)
    if bool((over > overlap + NEAR).any()):
        raise SrattnError("the file keeps boxes that its suppression should drop; nothing was written")
    reach = NEAR * float(boxes.abs().max()) if len(boxes) else 0.0
    near = (kept[:, None, :4] - boxes).abs().amax(2) <= reach  # (kept, boxes)
    near &= (kept[:, None, 4] - scores).abs() <= slack
    if not bool(near.any(1).all()):
        raise SrattnError("the file keeps boxes that are none of the model's; nothing was written")
    drops = box_iou(kept[:, :4], boxes) > overlap - NEAR
    drops &= kept[:, None, 4] >= scores - slack
    needed = scores > least + slack
    if bool((needed & ~(near | drops).any(0)).any()):
        raise SrattnError("the file drops boxes that its suppression should keep; nothing was written")


def read_case(path: str) -> dict[str, Tensor]:
    return load_file(path)


def apart(answer: Tensor, truth: Tensor) -> float:
    """The largest difference relative to the largest value; infinite where a value is not finite."""
    if not torch.isfinite(answer).all():
        return float("inf")
    return float((answer.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-30))


def _answers(graph: Graph, images: Tensor) -> list[Tensor]:
    found = graph(images)
    return parts_of(list(found) if isinstance(found, tuple) else [found], graph.options.answer)

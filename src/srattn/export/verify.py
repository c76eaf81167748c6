"""Inputs at several sizes with what eager makes of them, and how far a file's answers may be from that.

The truth is the model in float64. A file may be four times as far from it as eager is in float32, and 1e-5 in any case.
Where the graph resizes pictures, rounding pixels at a slightly other threshold counts as eager does.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srattn.errors import SrattnError
from srattn.export.graph import Graph, example_for
from srattn.export.options import LEAST_DYNAMIC, Options
from srattn.export.pictures import Pictures

FLOOR = 1e-5
LEEWAY = 4.0
NUDGE = 2e-4
"""Of a level: more than float32 sums of levels differ by between runtimes, which then round some pixel differently."""


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
    generator = torch.random.fork_rng(devices=[])
    with generator, torch.inference_mode():
        torch.manual_seed(0)
        inputs = [example_for(graph, options, size, batch) for size, batch in sizes(graph, options)]
        exact = copy.deepcopy(graph).double()
        others = [(graph, False)] + [(_nudged(exact, nudge), True) for nudge in (NUDGE, -NUDGE) if graph.pictures]
        files = []
        for place, images in enumerate([*inputs, *real]):
            doubled = images if images.dtype == torch.uint8 else images.double()
            truth = _answers(exact, doubled)
            allowed = [FLOOR] * len(truth)
            for other, is_exact in others:
                found = _answers(other, doubled if is_exact else images)
                allowed = [max(a, LEEWAY * apart(f, t)) for a, f, t in zip(allowed, found, truth, strict=True)]
            tensors = {f"truth_{i}": t.contiguous() for i, t in enumerate(truth)}
            tensors["allowed"] = torch.tensor(allowed, dtype=torch.float64)
            path = folder / f"case_{place}.safetensors"
            save_file({"images": images.contiguous(), **tensors}, path)
            files.append(str(path))
    return files


def _nudged(graph: Graph, nudge: float) -> Graph:
    """The graph with pixels rounded a little earlier or later."""
    assert graph.pictures is not None
    return Graph(graph.model, graph.task, Pictures(graph.pictures.preprocess, nudge).double())


def sizes(graph: Graph, options: Options) -> list[tuple[tuple[int, int], int]]:
    """Sizes and batches that are tried: the declared one, and others where they may differ."""
    height, width = options.size
    batches = [1, 2, 3] if options.batch is None else [options.batch] * 3
    if graph.pictures is not None:
        others = [(height + 37, 2 * width + 11), (max(2, height // 2), width)]
    else:
        least = max(graph.model.min_size, LEAST_DYNAMIC)
        down, right = "height" in options.dynamic, "width" in options.dynamic
        others = [
            (height + 45 if down else height, width + 19 if right else width),
            (max(least, height // 2 + 3) if down else height, max(least, width - 29) if right else width),
        ]
    return list(zip([options.size, *others], batches, strict=True))


def judge(answers: Sequence[Tensor], case: dict[str, Tensor]) -> tuple[float, float]:
    """The worst relative error of the answers to a case, and what was allowed there.

    Raises:
        SrattnError: other shapes, or one of the answers is too far away.
    """
    truth = [case[f"truth_{i}"] for i in range(len(case) - 2)]
    if [a.shape for a in answers] != [t.shape for t in truth]:
        found, wanted = ([tuple(t.shape) for t in each] for each in (answers, truth))
        raise SrattnError(f"the file answers with shapes {found}, eager with {wanted}; nothing was written")
    worst = (0.0, FLOOR)
    for answer, t, allowed in zip(answers, truth, case["allowed"].tolist(), strict=True):
        error = apart(answer, t)
        if not error <= allowed:
            shape = "x".join(map(str, case["images"].shape))
            raise SrattnError(
                f"the file differs from eager by {error:.1e} at {shape}, {allowed:.1e} is allowed; nothing was written"
            )
        if error > worst[0]:
            worst = (error, allowed)
    return worst


def read_case(path: str) -> dict[str, Tensor]:
    return load_file(path)


def apart(answer: Tensor, truth: Tensor) -> float:
    """The largest difference relative to the largest value; infinite where a value is not finite."""
    if not torch.isfinite(answer).all():
        return float("inf")
    return float((answer.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-30))


def _answers(graph: Graph, images: Tensor) -> list[Tensor]:
    found = graph(images)
    return list(found) if isinstance(found, tuple) else [found]

"""Dense attention against Spatial-Reduction Attention on this machine, as the map grows."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.explain.memory import METHOD_CPU, METHOD_CUDA, peak_bytes
from srattn.layers.attention import SpatialReductionAttention
from srattn.ops.plan import Path, force_path
from srattn.ops.reference import spatial_reduction_attention

DENSE, KEPT, SRA = "dense", "dense, scores kept", "SRA"
SIDES = (14, 20, 28, 40, 56, 80, 112)

_LARGEST_SCORES = 2**29  # bytes of one N x N matrix that "scores kept" may hold
_FIT_POINTS = 4
_LEAST = 5  # what a size costs at least, in runs: three that count, one under the profiler, which is slower


class MeasurementError(SrattnError):
    """The results were wrong, so that their time means nothing."""


@dataclass
class ScalingPoint:
    """One size of the map. Times are medians in seconds, memory is a peak in bytes; None where not measured."""

    side: int
    tokens: int
    keys: int
    seconds: dict[str, float | None]
    bytes: dict[str, int | None]


@dataclass
class Scaling:
    points: list[ScalingPoint]
    dim: int
    heads: int
    ratio: int
    device: str
    threads: int
    memory_method: str
    dense_candidates: list[Path]
    rounds: int
    """The fewest runs behind any median."""
    worst_error: float
    """Largest error of SRA against the definition in float64, relative to the largest output."""
    unrest: float = 1.0
    """Largest median over the fastest run of the same kind and size: far above 1 where the machine was busy."""
    time_exponents: dict[str, float | None] = field(default_factory=dict)
    """b in time ~ tokens^b, fitted over the largest maps measured."""
    byte_exponents: dict[str, float | None] = field(default_factory=dict)


def measure_scaling(
    sides: Sequence[int] = SIDES,
    *,
    dim: int = 64,
    heads: int = 1,
    ratio: int = 8,
    budget: float = 10.0,
    most_rounds: int = 15,
    device: torch.device | str = "cpu",
    seed: int = 0,
    threads: int = 1,
    make: Callable[..., nn.Module] | None = None,
) -> Scaling:
    """Times one forward pass of dense attention and of SRA with the same projections, on the same input.

    The dense side is the fastest of all the ways to compute it here, chosen anew for every size; a second dense curve
    keeps the scores, as attention was written when SRA was published. Runs are interleaved, so that a slow
    moment of the machine meets all alike. The smallest size is always measured; a larger one is left out, with all
    beyond it, when its predicted time exceeds what is left of the budget.

    Args:
        sides: tokens on a side of the square maps, ascending.
        budget: seconds for the whole measurement, about.
        most_rounds: the most runs behind a median; at least three, whatever is given.
        threads: of a CPU; one by default, since on a busy machine several wait for each other, and the waiting would
            be what is measured.
        make: what builds the module, called as `SpatialReductionAttention(dim, num_heads, ratio=...)`.

    Raises:
        MeasurementError: SRA or dense attention disagrees with the definition, or yields values that are not finite.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _measure(sides, dim, heads, ratio, budget, most_rounds, torch.device(device), seed, make)
    finally:
        torch.set_num_threads(before)


def _measure(
    sides: Sequence[int],
    dim: int,
    heads: int,
    ratio: int,
    budget: float,
    most_rounds: int,
    device: torch.device,
    seed: int,
    make: Callable[..., nn.Module] | None,
) -> Scaling:
    start = time.perf_counter()
    build = make or SpatialReductionAttention
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sra = build(dim, heads, ratio=ratio).eval().to(device)
        dense = build(dim, heads, ratio=1).eval().to(device)
    same = {name: value for name, value in sra.state_dict().items() if not name.startswith("reduction.")}
    dense.load_state_dict(same)

    method = METHOD_CUDA if device.type == "cuda" else METHOD_CPU
    result = Scaling([], dim, heads, ratio, str(device), torch.get_num_threads(), method, [], 0, 0.0)
    with torch.inference_mode():
        first = torch.randn(1, sides[0], sides[0], dim, generator=generator).to(device)
        result.dense_candidates = _usable(dense, first)
        for path in result.dense_candidates:
            _agree(f"dense attention ({path})", dense, _forced(dense, first, path), first, 1)
        least: dict[str, float] = {}
        for side in sides:
            x = torch.randn(1, side, side, dim, generator=generator).to(device)
            runs = _runs(sra, dense, x, result.dense_candidates)
            growth = (side / result.points[-1].side) ** 4 if result.points else 1.0
            left = budget - (time.perf_counter() - start)
            if least:
                if KEPT not in least or _LEAST * growth * least[KEPT] > left / 2:
                    runs.pop(KEPT, None)
                if growth * sum(least[name] for name in runs) > left / 2:
                    break
            once = sum(_seconds(run, device) for run in runs.values())  # warms up, too
            left = budget - (time.perf_counter() - start)
            if least and _LEAST * once > left:
                break
            rounds = max(3, min(most_rounds, int(left / 3 / once)))
            result.worst_error = max(result.worst_error, _agree("SRA", sra, sra(x), x, ratio))
            times = _interleaved(runs, rounds, device)
            least = {name: min(values) for name, values in times.items()}
            result.rounds = min(result.rounds or rounds, rounds)
            medians = {name: statistics.median(values) for name, values in times.items()}
            result.unrest = max(result.unrest, *(medians[name] / least[name] for name in runs))
            result.points.append(_point(side, medians, runs, sra, device))
    tokens = [point.tokens for point in result.points]
    for name in (DENSE, KEPT, SRA):
        result.time_exponents[name] = exponent(tokens, [point.seconds[name] for point in result.points])
        result.byte_exponents[name] = exponent(tokens, [point.bytes[name] for point in result.points])
    return result


def exponent(sizes: Sequence[float], values: Sequence[float | None]) -> float | None:
    """b of the least-squares line of log value over log size, `value ~ size^b`, over the four largest sizes."""
    pairs = [(math.log(n), math.log(v)) for n, v in zip(sizes, values, strict=True) if v]
    pairs = pairs[-_FIT_POINTS:]
    if len(pairs) < 2:
        return None
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope


def _usable(dense: nn.Module, x: Tensor) -> list[Path]:
    """The ways of dense attention that do not keep the scores and that run here."""
    usable: list[Path] = []
    candidates: tuple[Path, ...] = ("sdpa", "absorbed")
    for path in candidates:
        try:
            _forced(dense, x, path)
        except SrattnError:  # a path may say that it cannot
            continue
        usable.append(path)
    return usable


def _forced(module: nn.Module, x: Tensor, path: Path) -> Tensor:
    with force_path(path):
        return module(x)


def _agree(name: str, module: nn.Module, output: Tensor, x: Tensor, ratio: int) -> float:
    """The relative error of `output` against the definition in float64; raises where it is more than rounding."""
    if not torch.isfinite(output).all():
        raise MeasurementError(f"{name} returns values that are not finite at {x.shape[1]}x{x.shape[2]} tokens")
    truth = _definition(module, x.double(), ratio)
    if output.shape != truth.shape:
        raise MeasurementError(f"{name} returns the shape {tuple(output.shape)} instead of {tuple(truth.shape)}")
    largest = float(truth.abs().max())
    error = float((output.double() - truth).abs().max())
    # As close as twice the definition itself in this precision, and a little where that happens to be exact.
    allowed = 2 * float((_definition(module, x, ratio).double() - truth).abs().max()) + 1e-5 * largest
    if error > allowed:
        raise MeasurementError(
            f"{name} is {error:.2g} off the definition at {x.shape[1]}x{x.shape[2]} tokens; {allowed:.2g} is allowed"
        )
    return error / max(largest, 1e-30)


def _definition(module: nn.Module, x: Tensor, ratio: int) -> Tensor:
    parameters = {name: value.to(x.dtype) for name, value in module.named_parameters()}
    heads: Any = module.num_heads
    return spatial_reduction_attention(x, x, x, parameters, num_heads=heads, ratio=(ratio, ratio))


def _runs(sra: nn.Module, dense: nn.Module, x: Tensor, candidates: Sequence[Path]) -> dict[str, Callable[[], Tensor]]:
    runs: dict[str, Callable[[], Tensor]] = {}
    for path in candidates:
        runs[path] = lambda path=path: _forced(dense, x, path)
    if x.element_size() * (x.shape[1] * x.shape[2]) ** 2 <= _LARGEST_SCORES:
        runs[KEPT] = lambda: _forced(dense, x, "plain")
    runs[SRA] = lambda: sra(x)
    return runs


def _interleaved(runs: dict[str, Callable[[], Tensor]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(_seconds(run, device))
    return times


def _seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _point(
    side: int, medians: dict[str, float], runs: dict[str, Callable[[], Tensor]], sra: Any, device: torch.device
) -> ScalingPoint:
    best = min((name for name in medians if name != SRA), key=medians.__getitem__)
    names = {DENSE: best, KEPT: KEPT, SRA: SRA}
    height, width = sra.reduced_size(side, side)
    return ScalingPoint(
        side=side,
        tokens=side * side,
        keys=height * width,
        seconds={name: medians.get(run) for name, run in names.items()},
        bytes={name: peak_bytes(runs[run], device) if run in runs else None for name, run in names.items()},
    )

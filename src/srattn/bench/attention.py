"""`srattn bench attention`: dense attention, SRA and linear SRA as the map grows, in time and in memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srattn.bench.memory import ChildFailed, in_child, peak_above
from srattn.bench.progress import Progress, Silent
from srattn.bench.timing import interleave, summarise
from srattn.errors import SrattnError, nearest
from srattn.layers.attention import SpatialReductionAttention
from srattn.ops.plan import force_path
from srattn.ops.reference import spatial_reduction_attention

DENSE, KEPT, SRA, LINEAR = "dense", "dense, scores kept", "SRA", "linear SRA"
KINDS = (DENSE, KEPT, SRA, LINEAR)
MODES = ("forward", "training")
SIDES = (14, 28, 56, 112, 160, 224, 320, 512)
CELLS = 7

_WORTH = 1 << 20  # bytes from which on resident memory tells something beside pages of code and threads


class Setup(NamedTuple):
    """What is measured. seconds: of timing for each size; limits: of one run."""

    sides: tuple[int, ...] = SIDES
    dim: int = 64
    heads: int = 1
    ratio: int = 8
    modes: tuple[str, ...] = MODES
    threads: int = 1
    seconds: float = 3.0
    limit_seconds: float = 20.0
    limit_bytes: float = 4e9
    memory: bool = True

    def check(self) -> None:
        """Refuses what cannot be measured, before anything is."""
        for mode in self.modes:
            if mode not in MODES:
                raise SrattnError(f"no mode {mode!r}{nearest(mode, MODES)}; modes are {', '.join(MODES)}")
        if not self.sides or not self.modes or list(self.sides) != sorted(set(self.sides)) or self.sides[0] < 1:
            raise SrattnError(f"the sides are positive and ascending, got {self.sides}, and there is at least one mode")
        if self.limit_seconds <= 0 or self.limit_bytes <= 0:
            raise SrattnError("the limits are positive")
        SpatialReductionAttention(self.dim, self.heads, ratio=self.ratio, device="meta")

    def cost(self) -> float:
        """Seconds that it takes, about."""
        return len(self.modes) * len(self.sides) * (2 * self.seconds + 4.0 * self.memory)

    def settings(self) -> dict[str, Any]:
        return self._asdict()


def measure(setup: Setup, progress: Progress | None = None) -> list[dict[str, Any]]:
    """A JSON-able row for each mode, size and kind of attention; `reason` says why one has no figures.

    A kind is left out from the size on at which one run would exceed a limit, as predicted from the size before:
    dense attention and SRA by the square of the tokens, linear SRA by their number.

    Raises:
        SrattnError: a wrong setup, or a result that differs from the definition.
    """
    setup.check()
    progress = progress or Silent()
    before = torch.get_num_threads()
    torch.set_num_threads(setup.threads)
    try:
        for kind in KINDS:
            check(kind, setup)
        return [row for mode in setup.modes for row in _sweep(setup, mode, progress)]
    finally:
        torch.set_num_threads(before)


def build(kind: str, setup: Setup) -> tuple[SpatialReductionAttention, Callable[[Tensor], Tensor]]:
    """A module of this kind, and what runs it: dense attention on its two ways, the others as planned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ratio = setup.ratio if kind == SRA else 1
        module = SpatialReductionAttention(setup.dim, setup.heads, ratio=ratio, linear=kind == LINEAR, pool_size=CELLS)

    def run(x: Tensor) -> Tensor:
        if kind in (SRA, LINEAR):
            return module(x)
        with force_path("sdpa" if kind == DENSE else "plain"):
            return module(x)

    return module, run


def check(kind: str, setup: Setup) -> None:
    """The smallest size against the definition in float64; at most 1e-5 of the largest value apart."""
    module, run = build(kind, setup)
    x = torch.randn(1, setup.sides[0], setup.sides[0], setup.dim, generator=torch.Generator().manual_seed(1))
    double = x.double()
    parameters = {name: p.detach().double() for name, p in module.named_parameters()}
    cells = module.reduction.cells
    truth = spatial_reduction_attention(
        double, double, double, parameters, num_heads=setup.heads, ratio=module.reduction.ratio, cells=cells
    )
    with torch.inference_mode():
        error = float((run(x).double() - truth).abs().max() / truth.abs().max())
    if not error <= 1e-5:
        raise SrattnError(f"{kind} is {error:.1e} off the definition: nothing is timed")


def exponents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each mode and kind, b of seconds ~ tokens^b and of bytes ~ tokens^b; None with fewer than two sizes."""
    found = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        for kind in dict.fromkeys(row["attention"] for row in rows):
            mine = [row for row in rows if row["mode"] == mode and row["attention"] == kind]
            times = [(row["tokens"], row["seconds"]["median"]) for row in mine if row["seconds"]]
            sizes = [(row["tokens"], row["peak_bytes"]) for row in mine if (row["peak_bytes"] or 0) >= _WORTH]
            found.append({"mode": mode, "attention": kind, "seconds": exponent(times), "bytes": exponent(sizes)})
    return found


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """b of the least-squares line of log value over log size, over the larger half of the points, at least three."""
    logs = sorted((math.log(size), math.log(value)) for size, value in points)
    logs = logs[-max(3, math.ceil(len(logs) / 2)) :]
    if len(logs) < 2:
        return None
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def _sweep(setup: Setup, mode: str, progress: Progress) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    built = {kind: build(kind, setup) for kind in KINDS}
    last: dict[str, tuple[int, float]] = {}
    for side in setup.sides:
        progress.note(f"{mode}: {side}x{side} tokens")
        reasons = {kind: _too_much(kind, side, setup, mode, last) for kind in KINDS}
        x = torch.randn(1, side, side, setup.dim, requires_grad=mode == "training")
        runs = {kind: _call(*built[kind], x, mode) for kind in KINDS if reasons[kind] is None}
        values = interleave(runs, seconds=setup.seconds)
        for kind in KINDS:
            summary = summarise(values[kind]) if kind in values else None
            if summary is not None:
                last[kind] = side, summary.median
            height, width = built[kind][0].reduced_size(side, side)
            rows.append(
                {
                    "attention": kind,
                    "side": side,
                    "dim": setup.dim,
                    "heads": setup.heads,
                    "ratio": setup.ratio,
                    "mode": mode,
                    "tokens": side * side,
                    "keys": height * width,
                    "seconds": None if summary is None else summary._asdict(),
                    "peak_bytes": None,
                    "reason": reasons[kind],
                }
            )
        progress.advance(2 * setup.seconds)
    if setup.memory:
        _add_memory(rows, setup, mode, progress)
    return rows


def _call(
    module: SpatialReductionAttention, run: Callable[[Tensor], Tensor], x: Tensor, mode: str
) -> Callable[[], object]:
    """One forward pass, or one with its backward pass."""

    def forward() -> None:
        with torch.inference_mode():
            run(x)

    def training() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        run(x).sum().backward()

    return forward if mode == "forward" else training


def _too_much(kind: str, side: int, setup: Setup, mode: str, last: Mapping[str, tuple[int, float]]) -> str | None:
    """Why this kind is not measured at this size, or None."""
    if kind not in last and side != setup.sides[0]:
        return "left out at a smaller size"
    needed = 4.0 * side**2 * setup.dim * (20 if mode == "training" else 6)
    if kind == KEPT:  # the scores, scaled and softmaxed; in training their gradients, too
        needed += 4.0 * setup.heads * side**4 * (4 if mode == "training" else 3)
    if needed > setup.limit_bytes:
        return f"would need about {needed / 1e9:.0f} GB, the limit is {setup.limit_bytes / 1e9:g} GB"
    if kind in last:
        smaller, seconds = last[kind]
        predicted = seconds * (side / smaller) ** (2 if kind == LINEAR else 4)
        if predicted > setup.limit_seconds:
            return f"would take about {predicted:.0f} s a run, the limit is {setup.limit_seconds:g} s"
    return None


def _add_memory(rows: list[dict[str, Any]], setup: Setup, mode: str, progress: Progress) -> None:
    """Peak memory of one run at every size that was timed, in one fresh process for each kind."""
    for kind in KINDS:
        progress.note(f"{mode}: memory of {kind}")
        mine = [row for row in rows if row["attention"] == kind and row["seconds"] is not None]
        arguments = {"kind": kind, "sides": [row["side"] for row in mine], "mode": mode, "setup": list(setup)}
        try:
            peaks = in_child(peaks_in_child.__module__, peaks_in_child.__name__, arguments, setup.threads)
        except ChildFailed as failed:
            for row in mine:
                row["reason"] = f"memory not measured: {failed}"
        else:
            for row, peak in zip(mine, peaks, strict=True):
                row["peak_bytes"] = peak
        progress.advance(len(setup.sides) * 4.0 / len(KINDS))


def peaks_in_child(kind: str, sides: list[int], mode: str, setup: list[Any]) -> list[int | None]:
    """In a fresh process: the peak above the module and its input of one run, for each side ascending."""
    known = Setup(*setup)
    torch.set_num_threads(known.threads)
    module, run = build(kind, known)
    _call(module, run, torch.randn(1, 32, 32, known.dim, requires_grad=mode == "training"), mode)()  # wakes torch
    peaks = []
    for side in sides:
        x = torch.randn(1, side, side, known.dim, requires_grad=mode == "training")
        peaks.append(peak_above(_call(module, run, x, mode)))
    return peaks

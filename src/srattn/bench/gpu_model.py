"""A whole model in bf16 beside timm's, or beside ours on its `sdpa` path without kernels where timm is absent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from srattn.bench.gpu_attention import Row, compared, row
from srattn.bench.gpu_check import failures
from srattn.bench.gpu_peers import compiled, peer_model
from srattn.bench.gpu_timing import Cost, StopClock, peak_bytes, seconds_of
from srattn.bench.peers import one_line
from srattn.models.registry import build_model
from srattn.ops.plan import force_path


class Pair:
    """Ours and the peer, with the context in which each runs."""

    def __init__(self, name: str, device: torch.device, options: dict[str, Any]) -> None:
        self.device, self.name = device, name
        label, peer, is_ours = peer_model(name) if not options else ("sdpa path", build_model(name, **options), True)
        self.peer = peer.to(device)
        self.ours = build_model(name, **options).to(device)
        self.candidates: list[tuple[str, nn.Module, Callable[[], Any]]] = [
            (label, self.peer, (lambda: force_path("sdpa")) if is_ours else contextlib.nullcontext),
            ("ours", self.ours, contextlib.nullcontext),
        ]


def images(batch: int, size: int, device: torch.device) -> Tensor:
    x = torch.randn(batch, 3, size, size, device=device)
    return x.contiguous(memory_format=torch.channels_last)


def difference(pair: Pair, batch: int, size: int) -> list[str]:
    """What is wrong with ours: the kernels may be twice as far from fp32 as torch's own operators in bf16 are."""
    model, x = pair.ours.eval(), images(batch, size, pair.device)
    with torch.no_grad():
        with force_path("plain"):
            truth = model(x)
        model.to(torch.bfloat16)
        try:
            found = model(x.to(torch.bfloat16))
            with force_path("sdpa"):
                rough = model(x.to(torch.bfloat16))
        finally:
            model.float()
    return failures([f"{pair.name}'s output"], [found], [rough], [truth.double()])


def rows_of(pair: Pair, batch: int, size: int, clock: StopClock, training: bool, costs: dict[str, Cost]) -> list[Row]:
    """Each candidate each way ("eager", "compiled"): in inference the latter replays CUDA graphs."""
    what = f"{pair.name} {'training step' if training else 'inference'}"
    shape = f"{size}x{size} batch {batch} bf16"
    found: list[Row] = []
    base = ""
    for way in costs:
        for label, model, context in pair.candidates:
            name = f"{label} {way}"
            base = name if label != "ours" else base
            if not clock.has(costs[way].seconds, f"{what}, {name}, {shape}"):
                continue
            try:
                with context(), costs[way].learn():
                    seconds = _time(model, batch, size, pair.device, training, way)
            except Exception as error:  # what a compiler or a foreign model raises must not end the run
                found.append(row("models", shape, what, name, None, note=one_line(error)))
                continue
            found.append(row("models", shape, what, name, seconds))
    return compared(found, base)


def _time(model: nn.Module, batch: int, size: int, device: torch.device, training: bool, way: str) -> float:
    run: Any = model.train(training)
    x = images(batch, size, device)
    if training:
        step = _training_step(model, run if way == "eager" else compiled(model), device)
        step(x)
        return seconds_of(step, [x], device, graph=False, budget=1.0)
    model.to(torch.bfloat16)
    try:
        forward = _inference(run if way == "eager" else compiled(model, mode="reduce-overhead"), way)
        return seconds_of(forward, [x.to(torch.bfloat16)], device, graph=way == "eager", budget=1.0)
    finally:
        model.float()


def _inference(run: Any, way: str) -> Callable[[Tensor], object]:
    def forward(x: Tensor) -> object:
        with torch.no_grad():
            if way != "eager" and x.is_cuda:
                torch.compiler.cudagraph_mark_step_begin()
            return run(x)

    return forward


def sizes_rows(pair: Pair, batches: tuple[int, int], size: int) -> list[Row]:
    """Ours with CUDA graphs at two batches in turn: each is compiled once, and nothing over repeated ones."""
    what, shape = f"{pair.name} CUDA graphs", f"{size}x{size} batch {batches[0]}, {batches[1]} bf16"
    model = pair.ours.eval().to(torch.bfloat16)
    try:
        forward = _inference(compiled(model, mode="reduce-overhead"), "compiled")
        inputs = [images(batch, size, pair.device).to(torch.bfloat16) for batch in batches]
        counts = [_frames()]
        for x in (*inputs, *inputs, *inputs):
            forward(x)
            counts.append(_frames())
        again = counts[-1] - counts[len(inputs)]
        seconds = seconds_of(forward, inputs, pair.device, graph=False, budget=1.0)
        note = f"{counts[len(inputs)] - counts[0]} compilations, {again} more over repeated sizes"
        return [row("models", shape, what, "ours compiled", seconds, note=note)]
    except Exception as error:
        return [row("models", shape, what, "ours compiled", None, note=one_line(error))]
    finally:
        model.float()


def _frames() -> int:
    """How many graphs dynamo has captured in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _training_step(model: nn.Module, run: Any, device: torch.device) -> Callable[[Tensor], object]:
    """Forward and backward under bf16 autocast; no optimiser, which is the same for both."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step(x: Tensor) -> object:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = run(x).float().square().mean()
        return torch.autograd.grad(loss, parameters)

    return step


def memory_rows(pair: Pair, batch: int, size: int) -> list[Row]:
    """Peak memory of an eager training step above the parameters."""
    found: list[Row] = []
    peaks: dict[str, float] = {}
    for label, model, context in pair.candidates:
        step, x = _training_step(model.train(), model, pair.device), images(batch, size, pair.device)
        try:
            with context():
                step(x)
                peak = peak_bytes(lambda: step(x), pair.device)  # noqa: B023
        except Exception as error:
            found.append(row("memory", f"{size}x{size} batch {batch}", pair.name, label, None, note=one_line(error)))
            continue
        note = f"peak {peak / 2**20:,.0f} MiB above the model"
        peaks[label] = peak
        found.append(row("memory", f"{size}x{size} batch {batch}", f"{pair.name} training", label, None, note=note))
    if len(peaks) == 2:
        (_, theirs), (_, mine) = peaks.items()
        found[-1]["note"] += f", {mine / max(theirs, 1):.2f} times that of the other"
    return found

"""A whole model in bf16 beside timm's, or beside ours on its `sdpa` path without kernels where timm is absent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from srattn.bench.gpu_attention import Row, row
from srattn.bench.gpu_peers import compiled, peer_model
from srattn.bench.gpu_timing import StopClock, peak_bytes, seconds_of
from srattn.bench.peers import one_line
from srattn.models.registry import build_model
from srattn.ops.plan import force_path

MODEL = "pvt_v2_b2"


class Pair:
    """Ours and the peer, with the context in which each runs."""

    def __init__(self, name: str, device: torch.device, options: dict[str, Any]) -> None:
        self.device = device
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


def rows_of(
    pair: Pair, batch: int, size: int, clock: StopClock, training: bool, ways: tuple[str, ...], costs: dict[str, float]
) -> list[Row]:
    """Each candidate each way ("eager", "compiled", "graphs"); `costs`: seconds to be had for it."""
    what = f"{MODEL} {'training step' if training else 'inference'}"
    shape = f"{size}x{size} batch {batch} bf16"
    found: list[Row] = []
    base: float | None = None
    for way in ways:
        for label, model, context in pair.candidates:
            name = f"{label} {way}"
            if not clock.has(costs[way], f"{what}, {name}, {shape}"):
                continue
            try:
                with context():
                    seconds, note = _time(model, batch, size, pair.device, training, way)
            except Exception as error:  # what a compiler or a foreign model raises must not end the run
                found.append(row("models", shape, what, name, None, note=one_line(error)))
                continue
            if way == "compiled" and label != "ours":
                base = seconds
            found.append(row("models", shape, what, name, seconds, note=note))
    for r in found:
        r["speedup"] = base / r["seconds"] if base and r["seconds"] else None
    return found


def _time(model: nn.Module, batch: int, size: int, device: torch.device, training: bool, way: str) -> tuple[float, str]:
    run: Any = model.train(training)
    if way != "eager":
        run = compiled(model, **({"mode": "reduce-overhead"} if way == "graphs" else {}))
    x = images(batch, size, device)
    if training:
        step = _training_step(model, run, device)
        step(x)
        return seconds_of(step, [x], device, graph=False), ""
    model.to(torch.bfloat16)
    x = x.to(torch.bfloat16)

    def forward(x: Tensor) -> object:
        with torch.no_grad():
            if way == "graphs" and device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            return run(x)

    try:
        if way != "graphs":
            return seconds_of(forward, [x], device, graph=way == "compiled" or device.type != "cuda"), ""
        forward(x)
        before = _frames()
        other = images(max(batch // 2, 1), size, device).to(torch.bfloat16)
        forward(other)  # a second size, compiled once
        again = _frames()
        for t in (x, other, x, other):
            forward(t)
        more = _frames() - again
        note = f"{again - before} compilation for a second size, {more} over repeated sizes"
        return seconds_of(forward, [x], device, graph=False), note
    finally:
        model.float()


def _frames() -> int:
    """How many frames dynamo has compiled in this process."""
    from torch._dynamo.utils import counters

    return (
        sum(counters["stats"].values())
        if "unique_graphs" not in counters["stats"]
        else counters["stats"]["unique_graphs"]
    )


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
    found = []
    for label, model, context in pair.candidates:
        step, x = _training_step(model.train(), model, pair.device), images(batch, size, pair.device)
        try:
            with context():
                step(x)
                peak = peak_bytes(lambda: step(x), pair.device)  # noqa: B023
        except Exception as error:
            found.append(row("memory", f"{size}x{size} batch {batch}", MODEL, label, None, note=one_line(error)))
            continue
        note = f"peak {peak / 2**20:,.0f} MiB above the model"
        found.append(row("memory", f"{size}x{size} batch {batch}", f"{MODEL} training", label, None, note=note))
    return found

"""Attention at the shapes of the first stages: the kernel against its floor, the module against the published one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from srattn.bench.gpu_check import Case, draw
from srattn.bench.gpu_peers import compiled, peer_attention
from srattn.bench.gpu_sizes import Shape
from srattn.bench.gpu_timing import Cost, StopClock, rotated, seconds_of
from srattn.bench.peers import one_line
from srattn.layers.attention import SpatialReductionAttention
from srattn.ops import attend, plan
from srattn.ops.triton import attention, choices

Row = dict[str, Any]


def floor(s: Shape, itemsize: int, ceilings: dict[str, float], training: bool) -> float:
    """Seconds below which it cannot go: bytes (x in, output out; in backward three times a map more) or operations."""
    maps = 2 + 3 * training
    moved = maps * s.batch * s.side**2 * s.dim * itemsize
    products = (1 + 2.5 * training) * 4 * s.batch * s.side**2 * s.heads * s.keys * s.dim
    rate = ceilings["bf16_flops" if itemsize == 2 else "fp32_flops"]
    return max(moved / ceilings["copy_bytes"], products / rate)


def kernel_rows(s: Shape, dtype: torch.dtype, device: torch.device, ceilings: dict[str, float]) -> list[Row]:
    """The kernel alone, keys and values given: forward, and forward with backward."""
    case = Case(s.batch, s.side**2, s.keys, s.dim, s.heads)
    given = draw(case, dtype, device)
    rest = {name: value for name, value in given.items() if name != "x"}
    inputs = rotated(lambda: torch.randn_like(given["x"]), device)

    def step(x: Tensor) -> object:
        leaves = {k: v.detach().requires_grad_() for k, v in rest.items() if isinstance(v, Tensor)}
        x = x.detach().requires_grad_()
        out = attention.attend(x, **{**rest, **leaves})
        return torch.autograd.grad(out, [x, *leaves.values()], x.detach())

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            return attention.attend(x, **rest)

    rows = []
    for training, call in ((False, forward), (True, step)):
        seconds, least = seconds_of(call, inputs, device), floor(s, dtype.itemsize, ceilings, training)
        what = "attention forward+backward" if training else "attention forward"
        rows.append(row("attention", s, what, "our kernel alone", seconds, of_floor=least / seconds))
    return rows


def path_rows(s: Shape, dtype: torch.dtype, device: torch.device, training: bool) -> list[Row]:
    """From the queries' input to the output of W^O, the reduction left out: the kernel against the flash path.

    Which one was faster is kept for later plans.
    """
    attn = SpatialReductionAttention(s.dim, s.heads, s.ratio).to(device, dtype).train(training)
    w = attend.Projections(attn.q.weight, attn.q.bias, attn.proj.weight, attn.proj.bias)
    k, v = (torch.randn(s.batch, s.keys, s.dim, device=device).to(dtype) for _ in range(2))
    inputs = rotated(lambda: torch.randn(s.batch, s.side**2, s.dim, device=device).to(dtype), device)
    leaves = [k.requires_grad_(), v.requires_grad_(), *(t for t in w if t is not None)]
    call = stepped(lambda x: attend.attention(x, k, v, w, s.heads, attn.scale), leaves, training)
    times: dict[str, float] = {}
    for path in ("absorbed", "sdpa"):
        with plan.force_path(path):
            times[path] = seconds_of(call, inputs, device)
    few = choices.Few(s.batch, s.side**2, s.keys, s.dim, s.dim, s.heads, dtype.itemsize)
    choices.keep_faster(few, device, training, min(times, key=lambda path: times[path]))
    plan.forget()
    what = f"keys given, forward{'+backward' if training else ''}"
    return [
        row("attention", s, what, "flash path with its projections", times["sdpa"]),
        row("attention", s, what, "kernel with absorption", times["absorbed"], times["sdpa"] / times["absorbed"]),
    ]


def module_rows(
    s: Shape, dtype: torch.dtype, device: torch.device, clock: StopClock, training: bool, cost: Cost
) -> list[Row]:
    """The whole module, reduction included: the published one, eager and compiled, and ours as planned.

    Ours is not compiled: recorded into a CUDA graph, as all are that can be, its launches cost nothing either.
    """
    what = "module forward+backward" if training else "module forward"
    name, peer = peer_attention(s.dim, s.heads, s.ratio)
    ours: nn.Module = SpatialReductionAttention(s.dim, s.heads, s.ratio)
    peer, ours = (m.to(device, dtype).train(training) for m in (peer, ours))
    calls: list[tuple[str, nn.Module, Callable[[], Any], Cost]] = [
        ("ours", ours, lambda: ours, Cost(0.0)),
        (f"{name} eager", peer, lambda: peer, Cost(0.0)),
        (f"{name} compiled", peer, lambda: compiled(peer), cost),
    ]
    if device.type == "cuda" and not clock.has(cost.seconds + 2, f"{what}, {s}"):
        return []
    inputs = rotated(lambda: torch.randn(s.batch, s.side, s.side, s.dim, device=device).to(dtype), device)
    rows: list[Row] = []
    for label, module, build, spent in calls:
        try:
            with spent.learn():
                seconds = seconds_of(stepped(build(), list(module.parameters()), training), inputs, device)
        except Exception as error:  # what a compiler or a foreign module raises must not end the run
            rows.append(row("modules", s, what, label, None, note=one_line(error)))
            continue
        rows.append(row("modules", s, what, label, seconds))
    return compared(rows, f"{name} compiled")


def compared(rows: list[Row], with_candidate: str) -> list[Row]:
    """Adds to each row how many times as fast it is as that candidate, where both have a figure."""
    base = next((r["seconds"] for r in rows if r["candidate"] == with_candidate), None)
    for r in rows:
        r["speedup"] = base / r["seconds"] if base and r["seconds"] else None
    return rows


def stepped(call: Any, leaves: Sequence[Tensor], training: bool) -> Callable[[Tensor], object]:
    """A pass, or a pass with the gradients of its input and of `leaves`."""

    def forward(x: Tensor) -> object:
        with torch.no_grad():
            return call(x)

    def step(x: Tensor) -> object:
        x = x.detach().requires_grad_()
        out = call(x)
        return torch.autograd.grad(out, [x, *leaves], torch.ones_like(out), allow_unused=True)

    return step if training else forward


def row(
    part: str,
    shape: object,
    what: str,
    candidate: str,
    seconds: float | None,
    speedup: float | None = None,
    of_floor: float | None = None,
    note: str = "",
) -> Row:
    """One line of the table; `speedup` over the peer that is compiled, `of_floor` the floor's share of the time."""
    return {
        "part": part, "shape": str(shape), "what": what, "candidate": candidate, "seconds": seconds,
        "speedup": speedup, "of_floor": of_floor, "note": note,
    }  # fmt: skip

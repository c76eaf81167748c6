"""Attention at the shapes of the first stages: the kernel against its floor, the module against the published one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srattn.bench.gpu_check import Case, draw
from srattn.bench.gpu_peers import compiled, peer_attention
from srattn.bench.gpu_timing import StopClock, rotated, seconds_of
from srattn.bench.peers import one_line
from srattn.layers.attention import SpatialReductionAttention
from srattn.ops import attend, plan
from srattn.ops.triton import attention, choices

Row = dict[str, Any]


class Shape(NamedTuple):
    """A map of side x side tokens under ratio R."""

    batch: int
    side: int
    ratio: int
    dim: int
    heads: int

    @property
    def keys(self) -> int:
        return (self.side // self.ratio) ** 2

    def __str__(self) -> str:
        return f"{self.side}x{self.side} batch {self.batch} C {self.dim} heads {self.heads} keys {self.keys}"


FEW = tuple(
    Shape(batch, side, ratio, dim, heads)
    for batch in (64, 16)
    for side, ratios in ((56, (8, 4)), (112, (16, 8)))
    for ratio in ratios
    for dim, heads in ((64, 1), (128, 2))
)
MANY = (Shape(4, 256, 16, 64, 1), Shape(4, 256, 8, 64, 1), Shape(4, 256, 16, 128, 2), Shape(4, 256, 8, 128, 2),
        Shape(2, 512, 16, 64, 1))  # fmt: skip
TINY = (Shape(1, 8, 4, 16, 1),)


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


def path_rows(s: Shape, dtype: torch.dtype, device: torch.device) -> list[Row]:
    """From the queries' input to the output of W^O, the reduction left out: the kernel against the flash path."""
    attn = SpatialReductionAttention(s.dim, s.heads, s.ratio).to(device, dtype).eval()
    w = attend.Projections(attn.q.weight, attn.q.bias, attn.proj.weight, attn.proj.bias)
    k, v = (torch.randn(s.batch, s.keys, s.dim, device=device).to(dtype) for _ in range(2))
    inputs = rotated(lambda: torch.randn(s.batch, s.side**2, s.dim, device=device).to(dtype), device)
    times: dict[str, float] = {}
    with torch.no_grad():
        for path in ("absorbed", "sdpa"):
            with plan.force_path(path):
                times[path] = seconds_of(lambda x: attend.attention(x, k, v, w, s.heads, attn.scale), inputs, device)
    few = choices.Few(s.batch, s.side**2, s.keys, s.dim, s.dim, s.heads, dtype.itemsize)
    choices.keep_faster(few, device, False, min(times, key=lambda path: times[path]))
    plan.forget()
    what = "attention forward, keys given"
    return [
        row("attention", s, what, "flash path with its projections", times["sdpa"]),
        row("attention", s, what, "kernel with absorption", times["absorbed"], times["sdpa"] / times["absorbed"]),
    ]


def module_rows(
    s: Shape, dtype: torch.dtype, device: torch.device, clock: StopClock, training: bool, compile_ours: bool
) -> list[Row]:
    """The whole module, reduction included: ours as planned, and the published one, eager and compiled."""
    what = "module forward+backward" if training else "module forward"
    name, peer = peer_attention(s.dim, s.heads, s.ratio)
    ours: nn.Module = SpatialReductionAttention(s.dim, s.heads, s.ratio)
    calls: list[tuple[str, Callable[[], Any], float]] = [
        (f"{name} eager", lambda: peer, 1.0),
        (f"{name} compiled", lambda: compiled(peer), 12.0),
        ("ours eager", lambda: ours, 1.0),
    ]
    if compile_ours:
        calls.append(("ours compiled", lambda: compiled(ours), 12.0))
    if device.type != "cuda":
        calls = [(label, build, 0.0) for label, build, _ in calls]
    peer, ours = (m.to(device, dtype).train(training) for m in (peer, ours))
    inputs = rotated(lambda: torch.randn(s.batch, s.side, s.side, s.dim, device=device).to(dtype), device)
    rows: list[Row] = []
    for label, build, needs in calls:
        if not clock.has(needs, f"{what}, {label}, {s}"):
            continue
        try:
            seconds = seconds_of(stepped(build(), training), inputs, device)
        except Exception as error:  # what a compiler or a foreign module raises must not end the run
            rows.append(row("attention", s, what, label, None, note=one_line(error)))
            continue
        rows.append(row("attention", s, what, label, seconds))
    base = next((r["seconds"] for r in rows if r["candidate"] == f"{name} compiled"), None)
    for r in rows:
        r["speedup"] = base / r["seconds"] if base and r["seconds"] else None
    return rows


def stepped(module: Any, training: bool) -> Callable[[Tensor], object]:
    """A pass, or a pass with all gradients."""

    def forward(x: Tensor) -> object:
        with torch.no_grad():
            return module(x)

    def step(x: Tensor) -> object:
        x = x.detach().requires_grad_()
        out = module(x)
        return torch.autograd.grad(out, [x, *module.parameters()], torch.ones_like(out))

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

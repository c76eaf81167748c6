"""Tuning of the kernels' block sizes on this device, kept in `srattn.ops.triton.cache` for every later process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from srattn.bench.gpu_check import Case, Map, What, draw
from srattn.bench.gpu_timing import StopClock, rotated, seconds_of
from srattn.ops.triton import ahead, attention, attention_launch, choices, depthwise, strips
from srattn.ops.triton.language import INTERPRETED

Launcher = Callable[[Any], object]


def tune(what: What, dtype: torch.dtype, device: torch.device, clock: StopClock) -> list[dict]:
    """Rows for what was kept."""
    if isinstance(what, Case):
        return tune_attention(what, dtype, device, clock)
    return tune_depthwise(what, dtype, device, clock)


def tune_attention(case: Case, dtype: torch.dtype, device: torch.device, clock: StopClock) -> list[dict]:
    """Tries choices of blocks forward and backward and keeps the fastest that is right."""
    given = draw(case, dtype, device)
    keys = ("x", "keys", "values", "key_bias", "bias")
    x, k, v, c, bias = (given[name] for name in keys)
    add, eps, out_bias, residual = given["add_x"], given["norm_eps"], given["out_bias"], given["residual"]
    s = attention_launch.sizes(x, k, v, bias, eps)
    truth, lse = attention.definition(x, k, v, c, bias, out_bias, residual, add, eps)
    grad = torch.randn_like(truth)
    wants = attention.definition_gradients(grad, x, k, v, c, bias, lse, add, eps)
    rows = []

    def forward(blocks: choices.Blocks) -> Launcher:
        def call(t: Tensor) -> Tensor:
            made, kept = attention._forward_like(t, k, v, c, bias, out_bias, residual, add, eps, False)
            attention_launch.forward(t, k, v, c, bias, out_bias, residual, add, eps, made, kept, False, blocks)
            return made

        return call

    def backward(blocks: choices.Blocks) -> Launcher:
        def call(t: Tensor) -> tuple[Tensor, ...]:
            made = attention._backward_like(grad, t, k, v, c, bias, lse, add, eps, False, True)
            return attention_launch.backward(grad, t, k, v, c, bias, lse, add, eps, made, blocks)

        return call

    for kind, build, right in (
        ("forward", forward, lambda found: _close(found, truth)),
        ("backward", backward, lambda found: all(map(_close, found[:3], wants[:3]))),
    ):
        tried = choices.candidates(s, kind == "backward")
        best = _fastest(tried, build, x, right, device, clock)
        if best is not None:
            blocks, seconds, first = best
            choices.keep(kind, s, device, blocks)
            rows.append(_row(f"{kind} {_words(case)}", blocks, seconds, first, len(tried)))
    return rows


def tune_depthwise(what: Map, dtype: torch.dtype, device: torch.device, clock: StopClock) -> list[dict]:
    """As `tune_attention`, for the convolution, in the form of a feed-forward or what the sizes ask for."""
    shape, form = what.shape, what.form
    x = torch.randn(*shape, device=device).to(dtype)
    w, b = (torch.randn(*s, device=device).to(dtype) for s in ((shape[-1], 1, 3, 3), (shape[-1],)))
    y = torch.empty_like(x)
    truth = depthwise.definition(x, w, b, form)
    dy, rows = torch.randn_like(x), []

    def forward(chosen: strips.Strips) -> Launcher:
        def call(t: Tensor) -> Tensor:
            depthwise.convolve(t, w, b, y, form, strips=chosen)
            return y

        return call

    def backward(chosen: strips.Strips) -> Launcher:
        return lambda t: depthwise.slopes(dy, t, w, b, form, chosen)

    for kind, build, right in (
        ("depthwise", forward, lambda found: _close(found, truth)),
        ("depthwise_backward", backward, lambda found: bool(found[0].isfinite().all())),
    ):
        tried = list(strips.STRIPS)
        best = _fastest(tried, build, x, right, device, clock)
        if best is not None:
            kept, seconds, first = best
            strips.keep_strips(kind, x, kept)
            rows.append(_row(f"{kind} {'x'.join(map(str, shape))}", kept, seconds, first, len(tried)))
    return rows


def _close(found: Tensor, truth: Tensor) -> bool:
    """A coarse guard: blocks change the order of sums and nothing else; the check itself is `gpu_check`'s."""
    scale = truth.float().abs().max()
    return bool((found.float() - truth.float()).abs().max() <= 0.03 * scale)


def _fastest(
    tried: list[Any],
    build: Callable[[Any], Launcher],
    x: Tensor,
    right: Callable[[Any], bool],
    device: torch.device,
    clock: StopClock,
) -> tuple[Any, float, float] | None:
    """(the fastest choice, its seconds, those of the first); None where none ran in time."""
    tried = tried[:1] if INTERPRETED else tried
    compile_beside(lambda: [launch for choice in tried for launch in ahead.record(build(choice), x)])
    inputs = rotated(lambda: torch.randn(x.shape, device=device).to(x.dtype), device)
    times: dict[Any, float] = {}
    first = float("nan")
    for choice in tried:
        if clock.left() < 1 and times:
            break
        try:
            call = build(choice)
            if right(call(x)):
                times[choice] = seconds_of(call, inputs, device, budget=0.03)
        except Exception as error:  # too much shared memory or registers: this choice is not to be had here
            if INTERPRETED or "illegal" in str(error):
                raise
            continue
        if choice == tried[0]:
            first = times.get(choice, first)
    last = sorted(times, key=lambda choice: times[choice])[:3]
    for choice in last if len(times) > 1 else ():  # the best ones again, for longer
        times[choice] = seconds_of(build(choice), inputs, device, budget=0.1)
    best = min(last, key=lambda choice: times[choice], default=None)
    return None if best is None else (best, times[best], first)


def compile_beside(find: Callable[[], list[ahead.Launch]]) -> None:
    """Compiles launches on threads, as far as that works; what fails is compiled, or fails, when it is launched."""
    if INTERPRETED:
        return

    def warm(launch: ahead.Launch) -> None:
        with contextlib.suppress(Exception):
            launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(warm, find()))


def _words(case: Case) -> str:
    extras = "".join(f" +{word}" for word in ("norm" * case.norm, "add" * bool(case.add)) if word)
    return f"B{case.batch} N{case.queries} M{case.keys} C{case.dim} h{case.heads}{extras}"


def _row(what: str, choice: Any, seconds: float, first: float, tried: int) -> dict[str, Any]:
    words = " ".join(f"{name} {value}" for name, value in choice._asdict().items())
    return {
        "part": "tune", "shape": what, "candidate": words, "seconds": seconds,
        "note": f"best of {tried}, rule of thumb {first * 1e6:.1f} us",
    }  # fmt: skip

"""Tuning of the kernels' block sizes on this device, kept in `srattn.ops.triton.cache` for every later process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from srattn.bench.gpu_check import Case, draw
from srattn.bench.gpu_timing import StopClock, rotated, seconds_of
from srattn.ops.triton import ahead, attention, attention_launch, choices, depthwise
from srattn.ops.triton.language import INTERPRETED

Launcher = Callable[[Any], object]


def tune_attention(case: Case, dtype: torch.dtype, device: torch.device, clock: StopClock, most: int) -> list[dict]:
    """Tries at most `most` choices of blocks forward and backward and keeps the fastest that is right."""
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
        tried = choices.candidates(s, kind == "backward")[:most]
        best = _fastest(tried, build, x, right, device, clock)
        if best is not None:
            blocks, seconds, first = best
            choices.keep(kind, s, device, blocks)
            rows.append(_row(f"{kind} {_words(case)}", blocks, seconds, first, len(tried)))
    return rows


def tune_depthwise(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, clock: StopClock, most: int
) -> list:
    """As `tune_attention`, for the convolution with GELU."""
    x = torch.randn(*shape, device=device).to(dtype)
    w, b = (torch.randn(*s, device=device).to(dtype) for s in ((shape[-1], 1, 3, 3), (shape[-1],)))
    y = torch.empty_like(x)
    truth = depthwise.definition(x, w, b, False)
    dy, rows = torch.randn_like(x), []

    def forward(strips: choices.Strips) -> Launcher:
        def call(t: Tensor) -> Tensor:
            depthwise.convolve(t, w, b, y, None, gelu=True, relu=False, turned=False, strips=strips)
            return y

        return call

    def backward(strips: choices.Strips) -> Launcher:
        return lambda t: depthwise.slopes(dy, t, w, b, False, strips)

    for kind, build, right in (
        ("depthwise", forward, lambda found: _close(found, truth)),
        ("depthwise_backward", backward, lambda found: bool(found[0].isfinite().all())),
    ):
        tried = list(choices.STRIPS[:most])
        best = _fastest(tried, build, x, right, device, clock)
        if best is not None:
            strips, seconds, first = best
            choices.keep_strips(kind, x, strips)
            rows.append(_row(f"{kind} {'x'.join(map(str, shape))}", strips, seconds, first, len(tried)))
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
    _compile_beside(tried, build, x)
    inputs = rotated(lambda: torch.randn(x.shape, device=device).to(x.dtype), device)
    best, first = None, float("nan")
    for choice in tried:
        if clock.left() < 1 and best is not None:
            break
        try:
            call = build(choice)
            if not right(call(x)):
                continue
            seconds = seconds_of(call, inputs, device)
        except Exception as error:  # too much shared memory or registers: this choice is not to be had here
            if INTERPRETED:
                raise
            if "illegal" in str(error):
                raise
            continue
        if choice == tried[0]:
            first = seconds
        if best is None or seconds < best[1]:
            best = (choice, seconds)
    return None if best is None else (*best, first)


def _compile_beside(tried: list[Any], build: Callable[[Any], Launcher], x: Tensor) -> None:
    """Compiles all choices on threads, as far as that works; what fails is compiled, or fails, when it is timed."""
    if INTERPRETED:
        return

    def warm(launch: ahead.Launch) -> None:
        with contextlib.suppress(Exception):
            launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)

    launches: list[ahead.Launch] = []
    for choice in tried:
        with contextlib.suppress(Exception):
            launches += ahead.record(build(choice), x)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(warm, launches))


def _words(case: Case) -> str:
    extras = "".join(f" +{word}" for word in ("norm" * case.norm, "add" * bool(case.add)) if word)
    return f"B{case.batch} N{case.queries} M{case.keys} C{case.dim} h{case.heads}{extras}"


def _row(what: str, choice: Any, seconds: float, first: float, tried: int) -> dict[str, Any]:
    words = " ".join(f"{name} {value}" for name, value in choice._asdict().items())
    return {
        "part": "tune", "shape": what, "candidate": words, "seconds": seconds,
        "note": f"best of {tried}, rule of thumb {first * 1e6:.1f} us",
    }  # fmt: skip

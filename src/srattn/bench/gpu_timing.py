"""Times on a GPU, the stop clock, and what the device itself can do."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CACHE_BYTES = 256 << 20
"""Inputs rotate through so many bytes, several times a second-level cache."""


class StopClock:
    """How much time is left; `skipped` collects what was left out for lack of it."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.begun = time.monotonic()
        self.skipped: list[str] = []

    def left(self) -> float:
        return self.end - time.monotonic()

    def spent(self) -> float:
        return time.monotonic() - self.begun

    def has(self, seconds: float, what: str) -> bool:
        """Whether so many seconds are left; if not, `what` is noted."""
        if self.left() >= seconds:
            return True
        self.skipped.append(f"{what} (needs {seconds:.0f} s, {max(self.left(), 0):.0f} s are left)")
        return False


class Cost:
    """Seconds that one more of a kind will take: a guess at first, then what the last one took, and a fifth more."""

    def __init__(self, guess: float) -> None:
        self.seconds = guess

    @contextlib.contextmanager
    def learn(self) -> Iterator[None]:
        """Takes the time of what is inside; one that fails early teaches nothing."""
        start = time.monotonic()
        yield
        self.seconds = 1.2 * (time.monotonic() - start)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rotated(make: Callable[[], Tensor], device: torch.device) -> list[Tensor]:
    """Inputs of one kind that together do not fit a cache, eight at most; on a CPU one."""
    first = make()
    count = -(-CACHE_BYTES // max(first.nbytes, 1)) if device.type == "cuda" else 1
    return [first, *(make() for _ in range(min(count, 8) - 1))]


def seconds_of(
    call: Callable[[Any], object],
    inputs: Sequence[Any],
    device: torch.device,
    graph: bool = True,
    budget: float = 0.2,
) -> float:
    """Median seconds of call(input), the inputs in turn, measured for about `budget` seconds.

    Recorded into a CUDA graph where that works, so that launching costs what it costs in a graph; else by events
    around the whole round. On a CPU by the clock, once.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        for x in inputs:
            call(x)
        return (time.perf_counter() - start) / len(inputs)
    for x in (*inputs, inputs[0]):  # warm-up: compilation, handles, caches of the allocator
        call(x)
    torch.cuda.synchronize(device)
    replay = _recorded(call, inputs) if graph else None
    once = replay or (lambda: [call(x) for x in inputs])
    return _median(once, budget) / len(inputs)


def _recorded(call: Callable[[Any], object], inputs: Sequence[Any]) -> Callable[[], object] | None:
    """A round as a CUDA graph; None where it cannot be recorded."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for x in inputs:
                call(x)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [call(x) for x in inputs]
        graph.replay()
        torch.cuda.synchronize()
    except Exception:  # whatever in the call cannot be recorded
        torch.cuda.synchronize()
        return None

    def replay(_: object = kept) -> None:  # what the graph writes to must live as long as it does
        graph.replay()

    return replay


def _median(once: Callable[[], object], budget: float) -> float:
    """Median seconds of a call, by events, over about `budget` seconds."""
    times: list[float] = []
    stop = time.monotonic() + budget
    while len(times) < 5 or (time.monotonic() < stop and len(times) < 200):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        once()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
        if len(times) >= 3 and time.monotonic() > stop + 10 * budget:
            break
    return statistics.median(times)


def ceilings(device: torch.device) -> dict[str, float]:
    """Bytes a second of a copy (read and written) and operations a second of bf16 and fp32 products."""
    on_gpu = device.type == "cuda"
    source = torch.empty((1 << 30) if on_gpu else (1 << 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"copy_bytes": 2 * source.numel() / seconds_of(target.copy_, [source], device)}
    del source, target
    side = 8192 if on_gpu else 64
    for name, dtype in (("bf16_flops", torch.bfloat16), ("fp32_flops", torch.float32)):
        size = side if dtype == torch.bfloat16 else side // 2
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        found[name] = 2 * size**3 / seconds_of(a.__matmul__, [b], device)
    return found


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Peak memory of a call above what was allocated before it; 0 on a CPU."""
    if device.type != "cuda":
        call()
        return 0
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before

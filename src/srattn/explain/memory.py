"""The largest number of bytes that a call holds in tensors at one moment."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

METHOD_CPU = "every allocation and release that torch.profiler records, buffers inside kernels included"
METHOD_CUDA = "torch.cuda.max_memory_allocated"


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Peak bytes allocated during `call`, above what was held before; None where torch records no allocations.

    The result of the call is counted, its arguments are not.
    """
    return _peak_cuda(call, device) if device.type == "cuda" else _peak_cpu(call)


def _peak_cuda(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_cpu(call: Callable[[], object]) -> int | None:
    with _quiet_profiler():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = call()
        del result
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
    steps = [
        (event["args"]["Ev Idx"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]" and event["args"].get("Device Type") == 0
    ]
    held = peak = 0
    for _, change in sorted(steps):
        held += change
        peak = max(peak, held)
    return peak if steps else None


@contextlib.contextmanager
def _quiet_profiler() -> Iterator[None]:
    # The profiler's library writes a line to standard error at each start; this asks it not to.
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "6")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)

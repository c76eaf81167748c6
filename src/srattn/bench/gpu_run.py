"""The run of ``srattn bench gpu``: part after part, under the stop clock; the table and the result file."""

from __future__ import annotations

import datetime
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch

from srattn.bench import gpu_attention, gpu_check, gpu_model, gpu_peers, gpu_timing, gpu_tune
from srattn.bench.gpu_attention import Row
from srattn.bench.machine import commit
from srattn.bench.peers import one_line
from srattn.files import atomic_path
from srattn.ops import plan
from srattn.ops.triton import cache
from srattn.version import __version__

FORMAT = 1


class Run:
    """Device, clock, and what was found so far."""

    def __init__(self, minutes: float, smoke: bool) -> None:
        self.smoke = smoke
        self.device = torch.device("cpu" if smoke else "cuda")
        self.dtype = torch.float32 if smoke else torch.bfloat16
        self.clock = gpu_timing.StopClock(60 * minutes)
        self.rows: list[Row] = []
        self.wrong: list[str] = []
        self.ceilings: dict[str, float] = {}

    def note(self, rows: Sequence[Row]) -> None:
        """Keeps rows and prints each at once: what was measured stays readable if the run is cut short."""
        for r in rows:
            self.rows.append(r)
            print(line(r), flush=True)


def run(parts: Sequence[str], minutes: float, smoke: bool, out: str | None, overwrite: bool) -> int:
    """Returns 1 where a kernel is wrong, else 0."""
    if not smoke:
        return _run(Run(minutes, smoke), parts, out, overwrite)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"SRATTN_CACHE": folder}):
        plan.KERNEL_DEVICES.add("cpu")
        try:
            return _run(Run(minutes, smoke), parts, out, overwrite)
        finally:
            plan.KERNEL_DEVICES.discard("cpu")
            plan.forget()


def _run(r: Run, parts: Sequence[str], out: str | None, overwrite: bool) -> int:
    steps: dict[str, Callable[[Run], None]] = {
        "check": check, "tune": tune, "attention": attention, "models": models, "memory": memory,
    }  # fmt: skip
    machine = describe(r.device)
    print("  ".join(f"{key} {value}" for key, value in machine.items()))
    if gpu_peers.timm_or_none() is None:
        print("timm is not installed: beside ours stand the published module in torch and our own sdpa path")
    interrupted = False
    try:
        r.ceilings = gpu_timing.ceilings(r.device)
        print("measured: " + ", ".join(f"{name} {value / 1e12:.3g} T/s" for name, value in r.ceilings.items()))
        for part in parts:
            print(f"\n{part} ({r.clock.spent():.0f} s)", flush=True)
            try:
                steps[part](r)
            except Exception as error:
                if r.smoke:
                    raise
                r.clock.skipped.append(f"the rest of {part}: {one_line(error)}")
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted: what was measured follows", file=sys.stderr)
    report(r)
    if out is not None:
        write(r, machine, out, overwrite)
        print(f"wrote {out}")
    return 130 if interrupted else 1 if r.wrong else 0


def check(r: Run) -> None:
    """Every kernel in every precision; a failure is printed and ends in exit code 1."""
    dtypes = (torch.float32,) if r.smoke else (torch.bfloat16, torch.float16, torch.float32)
    passed = 0
    for dtype in dtypes:
        for case in gpu_check.TINY if r.smoke else gpu_check.CASES:
            passed += judge(r, f"attention {case} {dtype}", lambda: gpu_check.check_attention(case, dtype, r.device))  # noqa: B023
        for shape, relu in [((1, 3, 4, 16), True)] if r.smoke else [((2, 56, 56, 512), False), ((2, 13, 9, 100), True)]:
            name = f"depthwise {shape} {dtype}"
            passed += judge(r, name, lambda: gpu_check.check_depthwise(shape, relu, dtype, r.device))  # noqa: B023
    print(f"{passed} comparisons with float64 within twice the error of plain torch, {len(r.wrong)} wrong", flush=True)


def judge(r: Run, name: str, compare: Callable[[], list[str]]) -> int:
    """1 where nothing is wrong; what raises is wrong."""
    if not r.clock.has(5, f"check of {name}"):
        return 0
    try:
        words = compare()
    except Exception as error:
        if "out of memory" in str(error):
            r.clock.skipped.append(f"check of {name}: {one_line(error)}")
            return 0
        words = [one_line(error)]
    if words:
        r.wrong.append(f"{name}: {'; '.join(words)}")
        print(f"WRONG {r.wrong[-1]}", flush=True)
    return int(not words)


def trusted(r: Run, kind: str) -> bool:
    """Whether no check of this kind failed; else there is no figure."""
    bad = any(words.startswith(kind) for words in r.wrong)
    if bad:
        r.clock.skipped.append(f"figures of {kind}: it is wrong, see above")
    return not bad


def tune(r: Run) -> None:
    """Block sizes of both kernels at the shapes that are measured, in a quarter of the time."""
    if r.smoke:
        gpu_tune.tune_depthwise((1, 2, 3, 16), r.dtype, r.device, r.clock, 1)
        r.note(gpu_tune.tune_attention(gpu_check.Case(1, 16, 4, 16, 1), r.dtype, r.device, r.clock, 1))
        return
    limit = gpu_timing.StopClock(min(r.clock.left(), 0.3 * (r.clock.left() + r.clock.spent())))
    if trusted(r, "attention"):
        for s in dict.fromkeys((*gpu_attention.FEW[:8:2], *gpu_attention.FEW[1:8:2], *gpu_attention.MANY)):
            case = gpu_check.Case(s.batch, s.side**2, s.keys, s.dim, s.heads)
            if limit.has(4, f"tuning at {s}"):
                r.note(gpu_tune.tune_attention(case, r.dtype, r.device, limit, 12))
    if trusted(r, "depthwise"):
        for shape in ((64, 56, 56, 512), (64, 28, 28, 1024), (64, 14, 14, 1280), (64, 7, 7, 2048)):
            if limit.has(4, f"tuning of depthwise at {shape}"):
                r.note(gpu_tune.tune_depthwise(shape, r.dtype, r.device, limit, 8))
    r.clock.skipped += limit.skipped
    plan.forget()
    print(f"kept in {cache.path()}")


def attention(r: Run) -> None:
    if not trusted(r, "attention"):
        return
    few, many = (gpu_attention.TINY, ()) if r.smoke else (gpu_attention.FEW, gpu_attention.MANY)
    for s in (*few, *many):
        if r.clock.has(3, f"kernel at {s}"):
            r.note(gpu_attention.kernel_rows(s, r.dtype, r.device, r.ceilings))
            r.note(gpu_attention.path_rows(s, r.dtype, r.device))
    limit = gpu_timing.StopClock(max(r.clock.left() - (0 if r.smoke else 200), 10))
    for training in (False,) if r.smoke else (False, True):
        for s in few[:1] if r.smoke else few:
            r.note(gpu_attention.module_rows(s, r.dtype, r.device, limit, training, compile_ours=True))
    r.clock.skipped += limit.skipped


def models(r: Run) -> None:
    if not (trusted(r, "attention") and trusted(r, "depthwise")):
        return
    if r.smoke:
        tiny = {"embed_dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "mlp_ratios": (2,) * 4}
        pair = gpu_model.Pair("pvt_v2_b0", r.device, tiny)
        r.note(gpu_model.rows_of(pair, 1, 32, r.clock, True, ("eager",), {"eager": 0.0}))
        return
    pair = gpu_model.Pair(gpu_model.MODEL, r.device, {})
    costs = {"eager": 5.0, "compiled": 60.0, "graphs": 60.0}
    r.note(gpu_model.rows_of(pair, 64, 224, r.clock, False, ("eager", "compiled"), costs))
    r.note(gpu_model.rows_of(pair, 64, 224, r.clock, True, ("eager", "compiled"), {**costs, "compiled": 90.0}))
    r.note(gpu_model.rows_of(pair, 8, 224, r.clock, False, ("graphs",), costs))


def memory(r: Run) -> None:
    if r.smoke or not r.clock.has(8, "peak memory at 512x512"):
        return
    r.note(gpu_model.memory_rows(gpu_model.Pair(gpu_model.MODEL, r.device, {}), 16, 512))


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and commit."""
    from srattn.ops.triton.language import triton

    timm = gpu_peers.timm_or_none()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, Triton's interpreter",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "timm": None if timm is None else timm.__version__,
        "srattn": __version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def line(r: Row) -> str:
    """A row in words."""
    seconds = r["seconds"]
    time = "" if seconds is None else f"{seconds * 1e6:,.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.2f} ms"
    speedup = f"{r['speedup']:.2f}x" if r.get("speedup") else ""
    share = f"{100 * r['of_floor']:.0f} % of floor" if r.get("of_floor") else ""
    cells = (
        f"{r.get('what', 'tune'):<27}",
        f"{r['shape']:<46}",
        f"{r['candidate']:<32}",
        f"{time:>12}",
        f"{speedup:>6}",
    )
    return " ".join([*cells, share, r.get("note", "")]).rstrip()


def report(r: Run) -> None:
    """What stands at the end of the output: the measured table, what is wrong, what was left out."""
    print(f"\nresults after {r.clock.spent():.0f} s; a speed-up is over the compiled peer, or over the flash path")
    for found in r.rows:
        if found["part"] != "tune":
            print(line(found))
    for words in r.wrong:
        print(f"WRONG {words}")
    for words in r.clock.skipped:
        print(f"left out: {words}")


def write(r: Run, machine: dict[str, Any], out: str, overwrite: bool) -> None:
    """The result file, whole or not at all."""
    result = {
        "kind": "gpu", "format": FORMAT, "machine": machine, "ceilings": r.ceilings, "rows": r.rows,
        "wrong": r.wrong, "left_out": r.clock.skipped, "seconds": round(r.clock.spent(), 1),
    }  # fmt: skip
    with atomic_path(out, overwrite) as aside:
        aside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

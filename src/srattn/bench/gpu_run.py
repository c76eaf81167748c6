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
from srattn.bench.gpu_sizes import FULL, TINY
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
        self.sizes = TINY if smoke else FULL
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
        "check": check, "tune": tune, "attention": attention, "models": models, "memory": memory, "modules": modules,
    }  # fmt: skip
    machine = describe(r.device)
    print("  ".join(f"{key} {value}" for key, value in machine.items()))
    if gpu_peers.timm_or_none() is None:
        print("timm is not installed: beside ours stand the published module in torch and our own sdpa path")
    interrupted = False
    torch.manual_seed(0)
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
            finally:
                if r.device.type == "cuda":
                    torch.cuda.empty_cache()
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
    gpu_tune.compile_beside(lambda: gpu_check.launches(r.sizes.checked, r.device))
    passed = 0
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for what, dtype in r.sizes.checked:
            passed += judge(r, f"{gpu_check.name_of(what)} {dtype}", lambda: gpu_check.check(what, dtype, r.device))  # noqa: B023
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
    """Block sizes of both kernels at the shapes that are measured, in under a third of the time; and what they make
    is checked again."""
    limit = gpu_timing.StopClock(min(r.clock.left(), 0.3 * (r.clock.left() + r.clock.spent())))
    for what in (*r.sizes.tuned, *r.sizes.hidden):
        name = f"{gpu_check.name_of(what)} {r.sizes.dtype} as tuned"
        if trusted(r, name.partition(" ")[0]) and limit.has(4, name):
            r.note(gpu_tune.tune(what, r.sizes.dtype, r.device, limit))
            judge(r, name, lambda: gpu_check.check(gpu_check.of_one_image(what), r.sizes.dtype, r.device))  # noqa: B023
    r.clock.skipped += limit.skipped
    plan.forget()
    print(f"kept in {cache.path()}")


def attention(r: Run) -> None:
    """The kernel alone against its floor, and the two paths against each other."""
    for s in (*r.sizes.shapes, *r.sizes.further) if trusted(r, "attention") else ():
        if r.clock.has(3, f"kernel at {s}"):
            r.note(gpu_attention.kernel_rows(s, r.sizes.dtype, r.device, r.ceilings))
            for training in (False, True):
                r.note(gpu_attention.path_rows(s, r.sizes.dtype, r.device, training))


def modules(r: Run) -> None:
    """The whole module beside the published one, the larger batches first, as far as time goes."""
    costs = {training: gpu_timing.Cost(12.0 + 12.0 * training) for training in (False, True)}
    for s in r.sizes.shapes if trusted(r, "attention") else ():
        for training in (False, True):
            r.note(gpu_attention.module_rows(s, r.sizes.dtype, r.device, r.clock, training, costs[training]))


def models(r: Run) -> None:
    """A whole model, first compared with itself without kernels."""
    if not (trusted(r, "attention") and trusted(r, "depthwise")):
        return
    pair = gpu_model.Pair(r.sizes.model, r.device, r.sizes.options)
    if not judge(r, f"model {pair.name}", lambda: gpu_model.difference(pair, min(r.sizes.batch, 4), r.sizes.size)):
        return
    for training, guess in ((False, 40.0), (True, 70.0)):
        costs = {"eager": gpu_timing.Cost(5.0), "compiled": gpu_timing.Cost(guess)}
        r.note(gpu_model.rows_of(pair, r.sizes.batch, r.sizes.size, r.clock, training, costs))
    if r.clock.has(60, "CUDA graphs at two sizes"):
        r.note(gpu_model.sizes_rows(pair, r.sizes.graphs, r.sizes.size))


def memory(r: Run) -> None:
    """Of a training step on large images."""
    batch, size = r.sizes.memory
    if r.clock.has(8, f"peak memory at {size}x{size}"):
        pair = gpu_model.Pair(r.sizes.model, r.device, r.sizes.options)
        r.note(gpu_model.memory_rows(pair, batch, size))


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
        f"{r.get('what', 'tune'):<28}",
        f"{r['shape']:<46}",
        f"{r['candidate']:<32}",
        f"{time:>12}",
        f"{speedup:>6}",
    )
    return " ".join([*cells, share, r.get("note", "")]).rstrip()


BARS = (
    # what is asked of which rows: part, what, candidate, figure, at least, in words
    ("attention", "attention forward", "our kernel alone", "of_floor", 0.65, "of the floor"),
    ("modules", "module forward", "ours", "speedup", 2.5, "times the compiled module forward"),
    ("modules", "module forward+backward", "ours", "speedup", 2.0, "times the compiled module, forward and backward"),
    ("attention", "keys given, forward", "kernel with absorption", "speedup", 1.0, "times the flash path"),
    ("models", "inference", "ours compiled", "speedup", 1.5, "times the compiled model in inference"),
    ("models", "training step", "ours compiled", "speedup", 1.5, "times the compiled model in training"),
)


def bars(rows: Sequence[Row]) -> list[str]:
    """What was aimed at, and how many of the shapes that were measured reach it. (The planner takes the faster of
    kernel and flash path, so falling short of the latter costs nothing once it is tuned.)"""
    words = []
    for part, what, candidate, figure, least, text in BARS:
        found = [
            (r[figure], r["shape"])
            for r in rows
            if r["part"] == part and r["candidate"] == candidate and r.get(figure) and r["what"].endswith(what)
        ]
        if found:
            reached = sum(value >= least for value, _ in found)
            value, shape = min(found)
            words.append(f"at least {least:g} {text}: {reached} of {len(found)} shapes, least {value:.2f} at {shape}")
        else:
            words.append(f"at least {least:g} {text}: not measured")
    return words


def report(r: Run) -> None:
    """What stands at the end of the output: the measured table, what is wrong, what was left out."""
    print(f"\nresults after {r.clock.spent():.0f} s; a speed-up is over the compiled peer, or over the flash path")
    for found in r.rows:
        if found["part"] != "tune":
            print(line(found))
    for words in bars(r.rows):
        print(words)
    for words in r.wrong:
        print(f"WRONG {words}")
    for words in r.clock.skipped:
        print(f"left out: {words}")


def write(r: Run, machine: dict[str, Any], out: str, overwrite: bool) -> None:
    """The result file, whole or not at all."""
    result = {
        "kind": "gpu", "format": FORMAT, "machine": machine, "ceilings": r.ceilings, "rows": r.rows,
        "bars": bars(r.rows), "wrong": r.wrong, "left_out": r.clock.skipped, "seconds": round(r.clock.spent(), 1),
    }  # fmt: skip
    with atomic_path(out, overwrite) as aside:
        aside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

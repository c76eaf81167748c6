"""A training step (forward, backward, AdamW) under each setting of `memory`, beside timm's where it is installed.

    python benchmarks/training.py               # writes benchmarks/results/training.json

The models take turns within one process, with the same weights, images and labels; losses and the gradients of the
images are compared first. What a step needs is measured in a fresh process each: the bytes that autograd keeps for
backward, and the highest resident memory during a step above what lies there between two steps (model, state of the
optimiser). "torch" is ours without the compiled kernel. `--import NAME` imports a module before timm, where its
installation needs one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor, nn

import srattn
from srattn.models.memory import describe_training, saved_bytes

RESULTS = Path(__file__).parent / "results"
KINDS = ("timm", "srattn fast", "srattn lean", "torch fast", "torch lean")
LIMIT = 1e-4
"""Largest difference of losses and gradients of the images, relative to the largest value."""


def build(kind: str, name: str, weights: str | None = None) -> nn.Module:
    """A model in training mode, with the weights of a file in timm's layout where one is given."""
    if kind == "timm":
        import timm
        from safetensors.torch import load_file

        model: Any = timm.create_model(name)
        if weights:
            model.load_state_dict(load_file(weights))
        return model.train()
    ours: Any = srattn.create_model(name)
    if weights:
        srattn.load_checkpoint(ours, weights)
    ours.set_memory(kind.split()[1])
    return ours.train()


def stepper(model: nn.Module, images: Tensor, labels: Tensor, kind: str) -> Callable[[], Tensor]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> Tensor:
        with without_kernel(kind):
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach()

    return step


class without_kernel:
    """Leaves the compiled kernel out while a model of kind "torch ..." runs."""

    def __init__(self, kind: str) -> None:
        from srattn.ops import feed_forward_kernel

        self.module: Any = feed_forward_kernel
        self.active, self.before = kind.startswith("torch"), feed_forward_kernel.reason_against

    def __enter__(self) -> None:
        if self.active:
            self.module.reason_against = lambda *_: "left out for comparison"

    def __exit__(self, *error: object) -> None:
        self.module.reason_against = self.before


def inputs(batch: int, size: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))


def compare(models: dict[str, nn.Module], images: Tensor, labels: Tensor) -> None:
    """Stops unless every model has the loss and the gradient of the images of the first one."""
    found = {}
    for kind, model in models.items():
        x = images.clone().requires_grad_()
        with without_kernel(kind):
            loss = nn.functional.cross_entropy(model(x), labels)
            (gradient,) = torch.autograd.grad(loss, x)
        found[kind] = (loss.detach(), gradient)
    truth = next(iter(found.values()))
    for kind, values in found.items():
        for value, expected in zip(values, truth, strict=True):
            error = ((value - expected).abs().max() / expected.abs().max()).item()
            if error > LIMIT:
                sys.exit(f"{kind} differs by {error:.1e}: nothing is timed")


def times(models: dict[str, nn.Module], images: Tensor, labels: Tensor, rounds: int, limit: float) -> dict[str, Any]:
    """Seconds of each step, the models in turn; the first two rounds do not count."""
    steps = {kind: stepper(model, images, labels, kind) for kind, model in models.items()}
    found: dict[str, list[float]] = {kind: [] for kind in steps}
    start = time.perf_counter()
    for index in range(rounds + 2):
        for kind, step in steps.items():
            begin = time.perf_counter()
            step()
            if index >= 2:
                found[kind].append(time.perf_counter() - begin)
        if index >= 4 and time.perf_counter() - start > limit:
            break
    return found


def memory(kind: str, name: str, batch: int, size: int, threads: int, imports: list[str]) -> dict[str, int]:
    """Bytes of one step, measured in a process of its own whose allocator gives back what is freed."""
    words = [sys.executable, __file__, "--one", kind, "--model", name, "--batch", str(batch), "--size", str(size)]
    words += ["--threads", str(threads), *(f"--import={name}" for name in imports)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{kind}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def one(kind: str, name: str, batch: int, size: int) -> dict[str, int]:
    images, labels = inputs(batch, size)
    model = build(kind, name)
    step = stepper(model, images, labels, kind)
    step()
    step()
    base = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest value so far
    step()
    peak = resident("VmHWM") - base
    with without_kernel(kind):
        kept = saved_bytes(model, lambda: nn.functional.cross_entropy(model(images), labels))
    return {"kept_bytes": kept, "peak_bytes": peak}


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def run(args: argparse.Namespace) -> dict[str, Any]:
    images, labels = inputs(args.batch, args.size)
    source = srattn.create_model(args.model, edge="floor")
    kinds = [kind for kind in KINDS if kind != "timm" or has_timm()]
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "weights.safetensors")
        srattn.save_checkpoint(source, weights, layout="timm")
        models = {kind: build(kind, args.model, weights) for kind in kinds}
    compare(models, images, labels)
    seconds = times(models, images, labels, args.rounds, args.limit)
    first = kinds[0]
    needs = {kind: memory(kind, args.model, args.batch, args.size, args.threads, args.imports) for kind in kinds}
    rows = []
    for kind in kinds:
        turns = zip(seconds[first], seconds[kind], strict=True)
        row = {
            "kind": kind,
            "ms": 1e3 * statistics.median(seconds[kind]),
            "fastest_ms": 1e3 * min(seconds[kind]),
            "rounds": len(seconds[kind]),
            f"times_as_fast_as_{first}": statistics.median(theirs / ours for theirs, ours in turns),
            **needs[kind],
            f"kept_of_{first}": needs[kind]["kept_bytes"] / needs[first]["kept_bytes"],
            f"peak_of_{first}": needs[kind]["peak_bytes"] / needs[first]["peak_bytes"],
        }
        rows.append(row)
        print(
            f"{kind:<12} {row['ms']:7.0f} ms   {row[f'times_as_fast_as_{first}']:.2f} times {first}   kept "
            f"{row['kept_bytes'] / 1e6:6.0f} MB ({row[f'kept_of_{first}']:.2f})   peak above the model "
            f"{row['peak_bytes'] / 1e6:6.0f} MB ({row[f'peak_of_{first}']:.2f})"
        )
    feed_forward = {}
    for kind in ("srattn fast", "torch lean"):
        model: Any = models[kind]
        with without_kernel(kind):
            feed_forward[kind] = describe_training(model, args.size, args.batch)
    return {"model": args.model, "batch": args.batch, "size": args.size, "rows": rows, "feed_forward": feed_forward}


def has_timm() -> bool:
    try:
        importlib.import_module("timm")
    except ImportError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pvt_v2_b0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which no further round starts")
    parser.add_argument("--import", dest="imports", action="append", default=[], help="module to import before timm")
    parser.add_argument("--out", type=Path, default=RESULTS / "training.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in args.imports:
        importlib.import_module(name)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.one:
        print(json.dumps(one(args.one, args.model, args.batch, args.size)))
        return
    versions = {"timm": importlib.import_module("timm").__version__} if has_timm() else {}
    result = {**run(args), "machine": {**describe(args.threads), **versions}}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

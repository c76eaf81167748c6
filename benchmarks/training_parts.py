"""What our own parts of a training step are worth: each beside torch's, and whole steps with and without them.

    python benchmarks/training_parts.py                       # benchmarks/results/training_parts.json and .md
    python benchmarks/training_parts.py --recipe cifar10_gpu  # on a GPU, with the kernels that a step takes there

Sizes and counts are those that one step of the recipe meets. A part is measured forward and backward together, ours and
torch's in turn in one process; a product with how often it occurs says what it takes of a step. Whole steps run a few
at a time in each setting, one after the other, and the first of a few is not counted. Where a part has no kernel on the
device it is left out. On a GPU parts are timed in a recorded graph, without what the host takes to launch them, and the
table ends with what takes the GPU's time, kernel by kernel.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
import yaml
from machine import describe
from torch import Tensor, nn

from srattn import recipes
from srattn.bench.timing import Summary, interleave, ratios, summarise
from srattn.data.loader import Batch
from srattn.engine import TrainConfig
from srattn.engine.config import ResolvedConfig
from srattn.engine.defaults import resolve
from srattn.engine.device import pick_device
from srattn.engine.distributed import World
from srattn.engine.heap import kept_heap
from srattn.engine.learner import Learner
from srattn.engine.muon import muon_step
from srattn.engine.optimiser import MuonWithAdamW
from srattn.engine.start import make_model
from srattn.layers.batch_norm import TokenBatchNorm
from srattn.layers.depthwise_reduction import DepthwiseReduction
from srattn.layers.local_perception import LocalPerception
from srattn.ops import batch_norm, depthwise, plan, reduce
from srattn.ops.native import library
from srattn.ops.triton import batch_norm as triton_batch_norm
from srattn.ops.triton import depthwise as triton
from srattn.ops.triton import layer_norm
from srattn.tasks.registry import make_task

RESULTS = Path(__file__).parent / "results"
CLASSES = 10
STEPS = 4  # of one setting at a stretch, the first of which is not counted
RECORDED = 10  # calls of a part in one graph on a GPU
OURS, TORCH, PLAIN = "ours", "torch's", "without our kernels"
KERNELS = {"batch_norm": triton_batch_norm, "depthwise": triton, "layer_norm": layer_norm}
"""On a GPU: what `--without` leaves to torch."""


class Part(NamedTuple):
    """A part of the step: what is computed, on a map of which shape and type, with GELU before it or not."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    ratio: tuple[int, int] = (1, 1)
    gelu: bool = False


class Bench:
    """The recipe's learner, on random images that lie ready."""

    def __init__(self, config: ResolvedConfig) -> None:
        self.config, self.device = config, pick_device(config.device)
        torch.manual_seed(0)
        size = config.batch_size
        self.images = torch.randn(size, config.channels, config.size, config.size)
        self.batch = Batch(self.images, torch.randint(CLASSES, (size,)), torch.arange(size))
        self.learner = self.make_learner()
        self.number = 0

    def make_learner(self, **options: Any) -> Learner:
        config = dataclasses.replace(self.config, **options)
        task = make_task(config.task, [str(i) for i in range(CLASSES)], config.label_smoothing)
        return Learner(config, make_model(config, CLASSES), task, World(self.device))

    def step(self, learner: Learner | None = None) -> None:
        (learner or self.learner).step(self.batch, self.config.batch_size, self.number, self.config.lr)
        self.number += 1
        self.wait()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # -- parts ------------------------------------------------------------------------------------------------------

    def parts(self) -> collections.Counter[Part]:
        """The parts of one step, each with how often it occurs."""
        found: collections.Counter[Part] = collections.Counter()

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0]
            if isinstance(module, TokenBatchNorm):
                found[Part("batch norm", tuple(x.shape), x.dtype, gelu=bool(kwargs.get("gelu")))] += 1
            elif isinstance(module, LocalPerception):
                found[Part("x + depthwise 3x3", tuple(x.shape), x.dtype)] += 1
            elif isinstance(module, DepthwiseReduction):
                found[Part("depthwise reduction", tuple(x.shape), x.dtype, module.ratio)] += 1
            elif isinstance(module, nn.LayerNorm):
                found[Part("layer norm", tuple(x.shape), x.dtype)] += 1

        model = make_model(self.config, CLASSES).to(self.device).train()
        handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in model.modules()]
        with self.learner.precision.autocast():
            model(self.images.to(self.device))
        for handle in handles:
            handle.remove()
        return found

    def candidates(self, part: Part) -> dict[str, Callable[[], None]]:
        """Ours and torch's, forward and backward; nothing where both are the same."""
        channels = part.shape[-1]
        x = torch.randn(part.shape, device=self.device).to(part.dtype).requires_grad_()
        w, b = (torch.randn(channels, device=self.device, requires_grad=True) for _ in range(2))
        if part.kind == "layer norm":
            if not layer_norm.takes(x, w, b):
                return {}
            with self.learner.precision.autocast():
                dtype = F.linear(x[:1], w[None]).dtype  # of what the next product would round it to
            forms: dict[str, Callable[[], Tensor]] = {
                OURS: lambda: layer_norm.layer_norm(x, w, b, 1e-6, dtype=dtype)[0],
                TORCH: lambda: F.layer_norm(x, (channels,), w, b, 1e-6).to(dtype),
            }
        elif part.kind == "batch norm":
            if not batch_norm.has_kernel(x, w, b):
                return {}
            forms = {
                OURS: lambda: batch_norm.batch_norm(x, w, b, gelu=part.gelu)[0],
                TORCH: lambda: _torch_norm(F.gelu(x) if part.gelu else x, w, b),
            }
        else:
            w = torch.randn(channels, 1, *(part.ratio if part.ratio != (1, 1) else (3, 3)), device=self.device)
            w.requires_grad_()
            if part.kind == "depthwise reduction":
                if self.device.type == "cpu" and not self._in_halves(x):
                    return {}
                forms = {
                    OURS: lambda: reduce.depthwise(x, w, b, "pad"),
                    TORCH: lambda: F.conv2d(
                        x.permute(0, 3, 1, 2), w, b, stride=part.ratio, groups=channels
                    ).permute(0, 2, 3, 1),
                }  # fmt: skip
            elif depthwise.reason_against(x, w, b) is not None and not (
                self.device.type in plan.KERNEL_DEVICES and triton.takes(x, w)
            ):
                return {}
            else:
                forms = {
                    OURS: lambda: depthwise.depthwise(x, w, b, residual=True),
                    TORCH: lambda: depthwise.plain(x, w, b, residual=True),
                }
        return {name: self._both_ways(form, (x, w, b)) for name, form in forms.items()}

    def _in_halves(self, x: Tensor) -> bool:
        with self.learner.precision.autocast():
            return reduce._in_halves(x)

    def _both_ways(self, form: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> Callable[[], None]:
        with torch.no_grad(), self.learner.precision.autocast():
            gradient = torch.randn_like(form())

        def run() -> None:
            with self.learner.precision.autocast():
                y = form()
            torch.autograd.grad(y, leaves, gradient)

        if self.device.type == "cpu":
            return run
        return self._recorded(run)

    def _recorded(self, run: Callable[[], None]) -> Callable[[], None]:
        """Some calls as one graph, so that launches take no time."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        self.wait()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(RECORDED):
                run()

        def replay() -> None:
            graph.replay()
            self.wait()

        return replay

    def muon(self) -> dict[str, Callable[[], None]]:
        """A step of Muon on the recipe's matrices, ours and torch's; nothing where the recipe has another optimiser."""
        optimiser = self.learner.optimiser
        if not isinstance(optimiser, MuonWithAdamW):
            return {}
        shapes = [p.shape for group in optimiser.muon_groups for p in group["params"] if p.ndim == 2]
        matrices, grads, buffers = ([torch.randn(s, device=self.device) for s in shapes] for _ in range(3))
        theirs = [nn.Parameter(matrix.clone()) for matrix in matrices]
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = grad
        other = torch.optim.Muon(theirs, lr=1e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")

        def ours() -> None:
            with torch.no_grad():
                muon_step(matrices, grads, buffers, 1e-3, 0.05)
            self.wait()

        def torchs() -> None:
            other.step()
            self.wait()

        return {OURS: ours, TORCH: torchs}

    # -- whole steps ------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, tuple[Callable[[], contextlib.AbstractContextManager[Any]], Callable[[], Learner]]]:
        """Under which a step is made, each with its learner: what is compiled in one is not in another."""
        cpu = self.device.type == "cpu"
        keep = kept_heap if cpu else contextlib.nullcontext
        own = lambda: self.learner  # noqa: E731
        found = {OURS: (keep, own), PLAIN: (lambda: _without_kernels(keep()), own if cpu else self.make_learner)}
        if cpu:
            found["the heap given back"] = (contextlib.nullcontext, own)
        elif self.config.cuda_graph:
            found["launched by the host"] = (keep, lambda: self.make_learner(cuda_graph=False))
        return found

    def steps(self, rounds: int, alone: bool = False) -> dict[str, list[float]]:
        """Seconds of a step in each setting, a value a round; `alone`: ours without any other."""
        shuffle, wanted = random.Random(0), [OURS] if alone else list(self.settings())
        settings = {name: (setting, make()) for name, (setting, make) in self.settings().items() if name in wanted}
        for setting, learner in settings.values():
            with setting():
                self.step(learner)
        values: dict[str, list[float]] = {name: [] for name in settings}
        for _ in range(rounds):
            for name in shuffle.sample(list(settings), len(settings)):
                setting, learner = settings[name]
                taken = []
                with setting():
                    for _ in range(STEPS):
                        began = time.perf_counter()
                        self.step(learner)
                        taken.append(time.perf_counter() - began)
                values[name].append(statistics.median(taken[1:]))
        return values

    def kernels(self, steps: int = 3, most: int = 40) -> list[dict[str, Any]]:
        """What a GPU's time goes to: milliseconds and launches of a step by kernel, the longest first."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self.step()
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(steps):
                self.step()
        events = [event for event in profiler.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
        events.sort(key=lambda event: -event.self_device_time_total)
        return [
            {
                "kernel": event.key[:120],
                "milliseconds": event.self_device_time_total / 1e3 / steps,
                "launches": event.count / steps,
            }
            for event in events[:most]
        ]


@contextlib.contextmanager
def _without_kernels(within: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """Torch's own operators in place of our kernels for training, on a CPU and on a GPU."""
    switched_off = mock.patch.object(library, "why_not", lambda operand="float32": "switched off")
    with within, switched_off, mock.patch.object(plan, "KERNEL_DEVICES", frozenset()):
        yield


def _torch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Torch's batch norm of tokens, in the form in which it is fastest on a CPU: every token an image of one pixel."""
    flat = x.flatten(0, -2)[:, :, None, None]
    return F.batch_norm(flat, None, None, weight, bias, training=True).view(x.shape)


def _row(name: str, count: int, values: dict[str, list[float]]) -> dict[str, Any]:
    """Milliseconds of ours and torch's, and how many times ours torch's takes."""
    ours, other = summarise(values[OURS]), summarise(values[TORCH])
    times = ratios(values[TORCH], values[OURS])
    return {"part": name, "count": count, "ours": ours._asdict(), "torch": other._asdict(), "times": times._asdict()}


def measure(config: ResolvedConfig, seconds: float, rounds: int, alone: bool = False) -> dict[str, Any]:
    """All of it, as it is written: parts where `seconds` are given to them, other settings of a step unless `alone`."""
    bench = Bench(config)
    rows = []
    keep = kept_heap() if bench.device.type == "cpu" else contextlib.nullcontext()
    with keep:
        parts = bench.parts().items() if seconds else ()
        for part, count in sorted(parts, key=lambda item: (item[0].kind, -_size(item[0]))):
            if runs := bench.candidates(part):
                values = interleave(runs, seconds=seconds)
                if bench.device.type == "cuda":
                    values = {name: [value / RECORDED for value in given] for name, given in values.items()}
                rows.append(_row(_name(part), count, values))
                _tell(rows[-1])
        if seconds and (runs := bench.muon()):
            rows.append(_row("Muon, all matrices", 1, interleave(runs, seconds=seconds)))
            _tell(rows[-1])
    taken = bench.steps(rounds, alone)
    base = taken[OURS]
    steps = [
        {
            "setting": name,
            "step": summarise(values)._asdict(),
            "images_per_second": config.batch_size / statistics.median(values),
            "times": ratios(values, base)._asdict(),
        }
        for name, values in taken.items()
    ]
    found = {
        "recipe": config.model,
        "batch": config.batch_size,
        "precision": config.precision,
        "machine": describe(config.threads),
        "parts": rows,
        "steps": steps,
    }
    if bench.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(bench.device)
        found["kernels"] = bench.kernels()
    return found


def _size(part: Part) -> int:
    return torch.Size(part.shape).numel()


def _name(part: Part) -> str:
    ratio = "" if part.kind != "depthwise reduction" else f" by {part.ratio[0]}x{part.ratio[1]}"
    before = "GELU, " if part.gelu else ""
    shape = "x".join(map(str, part.shape))
    return f"{before}{part.kind}{ratio}, {shape}, {str(part.dtype).removeprefix('torch.')}"


def _tell(row: dict[str, Any]) -> None:
    print(f"{row['part']}: {row['times']['median']:.2f} times", flush=True)


def table(recipe: str, found: dict[str, Any]) -> str:
    """Markdown."""
    machine = found["machine"]
    place = found.get("gpu") or f"{machine['cpu']} ({machine['capability']}), {machine['threads']} threads"
    lines = [
        f"# The parts of a training step: {recipe}",
        "",
        f"{found['batch']} images a step in {found['precision']}. {place}; torch {machine['torch']}, "
        f"srattn {machine['srattn']}, commit {machine['commit']}. Medians over the rounds, forward and backward "
        "together; behind the ratio, half the distance of its quartiles.",
        "",
        "| part | in a step | ours, ms | torch's, ms | torch's / ours |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in found["parts"]:
        lines.append(
            f"| {row['part']} | {row['count']} | {1e3 * row['ours']['median']:.2f} | "
            f"{1e3 * row['torch']['median']:.2f} | {_times(row['times'])} |"
        )
    lines += ["", "| whole step | ms | images/s | times ours |", "|---|--:|--:|--:|"]
    for row in found["steps"]:
        lines.append(
            f"| {row['setting']} | {1e3 * row['step']['median']:.1f} | {row['images_per_second']:.0f} | "
            f"{_times(row['times'])} |"
        )
    if "kernels" in found:
        lines += ["", "| kernel on the GPU | ms a step | launches |", "|---|--:|--:|"]
        lines += [f"| `{k['kernel']}` | {k['milliseconds']:.3f} | {k['launches']:.0f} |" for k in found["kernels"]]
    return "\n".join([*lines, ""])


def _times(summary: dict[str, Any]) -> str:
    return f"{summary['median']:.2f} ± {Summary(**summary).spread * summary['median']:.2f}"


def _setting(text: str) -> tuple[str, str, int]:
    """ "batch_norm.TILE=4096": the kernel, a number of its module that is in capitals, and what it is to be.

    Raises:
        SystemExit: there is none of that name.
    """
    place, _, number = text.partition("=")
    kernel, _, name = place.partition(".")
    known = [f"{k}.{n}" for k, module in KERNELS.items() for n, v in vars(module).items() if n.isupper() and _whole(v)]
    if place not in known or not number.isdecimal():
        raise SystemExit(f"--set takes a whole number for one of {', '.join(known)}, got {text!r}")
    return kernel, name, int(number)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--override", default="{}", help="further options of srattn train, as YAML: '{batch_size: 64}'")
    parser.add_argument("--without", nargs="+", default=[], choices=KERNELS, help="kernels of a GPU to leave out")
    parser.add_argument("--set", nargs="+", default=[], metavar="KERNEL.NAME=NUMBER", help="as in batch_norm.TILE=4096")
    parser.add_argument("--alone", action="store_true", help="whole steps with our kernels only; each setting compiles")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each part; 0 for whole steps alone")
    parser.add_argument("--rounds", type=int, default=7, help="of whole steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="training_parts", help="of the files in --results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    values = {**recipes.load(args.recipe), "threads": args.threads, **(yaml.safe_load(args.override) or {})}
    with contextlib.ExitStack() as stack:
        for name in args.without:
            stack.enter_context(mock.patch.object(KERNELS[name], "takes", lambda *_: False))
        for kernel, name, number in (_setting(text) for text in args.set):
            stack.enter_context(mock.patch.object(KERNELS[kernel], name, number))
        found = measure(resolve(TrainConfig(**values)), args.seconds, args.rounds, args.alone)
    found |= {"recipe": args.recipe, "without": args.without, "set": args.set}
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"{args.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (args.results / f"{args.name}.md").write_text(table(args.recipe, found), encoding="utf-8")
    print(table(args.recipe, found))


if __name__ == "__main__":
    main()

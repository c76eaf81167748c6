"""What a step takes in a run, with its loader, and on a GPU how much of that the GPU stands still.

    python benchmarks/training_loop.py --recipe cifar10_gpu --data FOLDER       # prints JSON; --out FILE keeps it

`training_parts.py` times a recipe's step by itself, on images that lie ready. This is the run: batches are prepared
beside it, steps are looked at, sinks are written. After `--warm` steps it takes the times of `--steps` of them; on a
GPU a few more are recorded with what runs there, and the time in which nothing did is added up. A second thread notes
all the while where the first is in its code, of which the most frequent places are told.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from machine import describe

from srattn import recipes
from srattn.engine import TrainConfig, train
from srattn.files import atomic_path

SAMPLES_EVERY = 0.003  # seconds; a number that steps are no multiple of
PLACES = 12


class Enough(Exception):
    """All steps that were wanted have been made."""


class Places(threading.Thread):
    """Where the thread that makes one of these is, again and again: the innermost lines of srattn, with counts."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.watched, self.over = threading.get_ident(), threading.Event()
        self.found: collections.Counter[str] = collections.Counter()

    def run(self) -> None:
        while not self.over.wait(SAMPLES_EVERY):
            frame = sys._current_frames().get(self.watched)
            if frame is not None:
                self.found[_place(frame)] += 1

    def shares(self) -> dict[str, float]:
        self.over.set()
        total = max(1, self.found.total())
        return {place: round(count / total, 4) for place, count in self.found.most_common(PLACES)}


def _place(frame: FrameType) -> str:
    inner: FrameType | None = frame
    while inner is not None and "srattn" not in Path(inner.f_code.co_filename).parts:
        inner = inner.f_back
    here = inner or frame
    return f"{Path(here.f_code.co_filename).name}:{here.f_lineno} {here.f_code.co_name}"


class Watch:
    """Told of every step; takes times, then records the GPU, then ends the run."""

    def __init__(self, warm: int, steps: int, recorded: int) -> None:
        self.warm, self.steps, self.recorded = warm, steps, recorded
        self.times: list[float] = []
        self.places: Places | None = None
        self.shares: dict[str, float] = {}
        self.gpu: dict[str, float] = {}
        self._profiler: Any = None

    def __call__(self, done: int) -> None:
        on_gpu = torch.cuda.is_available()
        if done >= self.warm and len(self.times) <= self.steps:
            self.times.append(time.perf_counter())
            if self.places is None:
                self.places = Places()
                self.places.start()
            return
        if done < self.warm:
            return
        if self.places is not None and not self.shares:
            self.shares = self.places.shares()
        if on_gpu and self._profiler is None:
            torch.cuda.synchronize()
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profiler.start()
            self._until = done + self.recorded
        elif on_gpu and done < self._until:
            return
        else:
            if on_gpu:
                torch.cuda.synchronize()
                self._profiler.stop()
                self.gpu = standing_still(self._profiler.events())
            raise Enough

    def close(self) -> None:
        if self.places is not None:
            self.places.over.set()
            self.places.join()

    def milliseconds(self) -> list[float]:
        return [1e3 * (b - a) for a, b in zip(self.times, self.times[1:], strict=False)]


def standing_still(events: Any) -> dict[str, float]:
    """Of the GPU between its first and its last kernel: milliseconds, the part without any, the longest such time."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA  # pyright: ignore[reportPrivateImportUsage]
    )
    return idle(spans)


def idle(spans: list[tuple[float, float]]) -> dict[str, float]:
    """`spans` (start, end) in microseconds, by their start; they may overlap."""
    if not spans:
        return {}
    first, until, still, longest = spans[0][0], spans[0][0], 0.0, 0.0
    for start, end in spans:
        gap = max(0.0, start - until)
        still, longest, until = still + gap, max(longest, gap), max(until, end)
    return {
        "milliseconds": round((until - first) / 1e3, 3),
        "still": round(still / max(until - first, 1e-9), 4),
        "longest_ms": round(longest / 1e3, 3),
    }


def measure(config: TrainConfig, watch: Watch) -> dict[str, Any]:
    """Trains `config` until `watch` has seen enough; its run folder is not kept."""
    try:
        train(config, on_step=watch)
    except Enough:
        pass
    else:
        raise SystemExit("the run ended before all steps were seen: give it more epochs, or fewer --steps")
    finally:
        watch.close()
    taken = watch.milliseconds()
    quartiles = statistics.quantiles(taken, n=4)
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "step_ms": {"median": statistics.median(taken), "mean": statistics.fmean(taken), "quartiles": quartiles},
        "images_per_second": round(1e3 * (config.batch_size or 0) / statistics.fmean(taken), 1),
        "on_the_gpu": watch.gpu,
        "where": watch.shares,
        "machine": {**describe(config.threads or 1), **gpu},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar10_gpu")
    parser.add_argument("--data", help="in place of the recipe's")
    parser.add_argument("--override", default="{}", help="further options of srattn train, as YAML: '{num_workers: 4}'")
    parser.add_argument("--warm", type=int, default=40, help="steps that are not counted: they compile and record")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--recorded", type=int, default=10, help="steps after these whose kernels are recorded")
    parser.add_argument("--out", type=Path, help="a file of JSON")
    args = parser.parse_args()
    values = {**recipes.load(args.recipe), **(yaml.safe_load(args.override) or {})}
    values |= {} if args.data is None else {"data": args.data}
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(**{**values, "out": f"{folder}/run"})
        found = measure(config, Watch(args.warm, args.steps, args.recorded))
    text = json.dumps({"recipe": args.recipe, "override": args.override, **found}, indent=1) + "\n"
    if args.out is not None:
        with atomic_path(args.out) as aside:
            aside.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

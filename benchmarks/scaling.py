"""Training on one and on two processes: images a second, and where the time goes.

    python benchmarks/scaling.py --data FOLDER      # writes benchmarks/results/scaling.json and .md

Rounds alternate between the numbers of processes; each is launched by torchrun and runs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe

from srattn import recipes
from srattn.data.loader import Loader
from srattn.data.reader import default_preprocess
from srattn.data.spec import parse_augment
from srattn.engine import TrainConfig
from srattn.engine.defaults import resolve
from srattn.engine.distributed import gradients_meet, join
from srattn.engine.learner import Learner
from srattn.engine.progress import Silent
from srattn.engine.read import read_images
from srattn.engine.start import prepare_model
from srattn.tasks.registry import make_task

RESULTS = Path(__file__).parent / "results"
WARM_UP = 3
HOW = """Each number of processes trains the same model on the same global batch for the same steps, so that two
processes have twice the cores. The time of a step is divided into three: the loader (the process waits for images),
communication (gradients and the step's sums are exchanged: the time of the step less that of the same step without any
exchange, measured in the same processes right after), and compute, which is the rest. Medians over all steps of all
rounds."""


def measure(args: argparse.Namespace) -> None:
    """In each process of torchrun: the steps; the first process prints its figures as one line of JSON."""
    values = {**recipes.load("cifar10"), "data": args.data, "threads": 1, "batch_size": args.batch_size}
    values |= json.loads(args.override)
    config = resolve(TrainConfig(**values))
    torch.set_num_threads(1)
    with join("auto", "cpu") as world:
        augment = parse_augment(config.augment, default_preprocess(config.data, config.size, config.channels))
        data = read_images(config, augment, Silent())
        loader = Loader(data, augment, config.batch_size, 0, config.num_workers, rank=world.rank, world=world.size)
        task = make_task(config.task, data.classes, config.label_smoothing)
        model, _ = prepare_model(config, data.classes)
        learner = Learner(config, model, task, world)
        batches = loader.train(0)
        figures: dict[str, list[float]] = {"step": [], "loader": [], "alone": []}
        for number in range(args.steps + WARM_UP):
            world.sum(torch.zeros(1))  # all begin together
            waited, began = loader.seconds_waiting, time.perf_counter()
            batch = next(batches)
            loss, norm, tally = learner.step(batch, config.batch_size, number, 1e-4)
            world.sum(torch.stack([loss, norm, *tally.values()]).double())
            step = time.perf_counter() - began
            waited = loader.seconds_waiting - waited
            began = time.perf_counter()
            with gradients_meet(learner.runner, meet=False):
                learner.step(batch, config.batch_size, number, 0.0)
            alone = time.perf_counter() - began
            if number >= WARM_UP:
                for name, value in (("step", step), ("loader", waited), ("alone", alone)):
                    figures[name].append(value)
        batches.close()  # type: ignore[attr-defined]
        if world.first:
            print("FIGURES " + json.dumps({"processes": world.size, **figures}), flush=True)


def launch(processes: int, words: list[str]) -> dict[str, Any]:
    """One round with so many processes, each of one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, "--worker", *words], env=environment, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if done.returncode or not lines:
        raise SystemExit(f"{processes} processes failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("FIGURES "))


def summary(rounds: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Medians over all steps of all rounds of one number of processes, in milliseconds."""
    steps, waits, alone = ([v for one in rounds for v in one[name]] for name in ("step", "loader", "alone"))
    pairs = [(s, w, max(0.0, s - w - a)) for s, w, a in zip(steps, waits, alone, strict=True)]
    step, loader, communication = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    communication = communication if rounds[0]["processes"] > 1 else 0.0  # there is nobody to talk to
    return {
        "processes": rounds[0]["processes"],
        "images_per_second": round(1e3 * batch_size / step, 1),
        "step_ms": round(step, 2),
        "loader_ms": round(loader, 2),
        "communication_ms": round(communication, 2),
        "compute_ms": round(step - loader - communication, 2),
        "steps": len(steps),
    }


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    rows, machine = result["rows"], result["machine"]
    lines = [
        "# Scaling over processes",
        "",
        f"{result['model']} on CIFAR-10, {result['batch_size']} images a step over all processes, a thread a process.",
        "",
        "| processes | images/s | times one | step | loader | compute | communication |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        times = row["images_per_second"] / rows[0]["images_per_second"]
        parts = " | ".join(f"{row[f'{name}_ms']:.1f} ms" for name in ("step", "loader", "compute", "communication"))
        lines.append(f"| {row['processes']} | {row['images_per_second']:.0f} | {times:.2f} | {parts} |")
    versions = ", ".join(f"{key} {machine[key]}" for key in ("torch", "srattn", "python", "commit"))
    lines += ["", f"{machine['cpu']}, {machine['cores']} cores; {versions}.", "", HOW, ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 as the hub's Parquet files, or other images")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--override", default="{}", help="further options of srattn train, as JSON")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        measure(args)
        return
    words = ["--data", args.data, "--batch_size", str(args.batch_size), "--steps", str(args.steps)]
    words += ["--override", args.override]
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in args.processes}
    for _ in range(args.rounds):
        for count in args.processes:
            found[count].append(launch(count, words))
    rows = [summary(rounds, args.batch_size) for rounds in found.values()]
    model = {**recipes.load("cifar10"), **json.loads(args.override)}["model"]
    result = {"model": model, "batch_size": args.batch_size, "rows": rows, "machine": describe(1)}
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.results / "scaling.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()

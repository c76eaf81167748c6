"""CIFAR-10 from scratch: ours, a ResNet and a plain ViT of equal size, in the same recipe and the same minutes.

    python benchmarks/cifar10.py --data FOLDER --only ours --seed 0     # one run
    python benchmarks/cifar10.py --data FOLDER                          # all of them, seeds 0 and 1
    python benchmarks/cifar10.py --report                               # the tables again, from what is there
    python benchmarks/cifar10.py --report --add                         # beside the runs that the tables hold already
    python benchmarks/cifar10.py --data FOLDER --recipe cifar10_gpu --only ours --seed 0 --minutes 5   # on a GPU

The recipe is `srattn recipes cifar10`, or that for a GPU; the candidates differ in the model alone, and in how many
epochs fit: each one's steps are timed first, and the cosine ends where its minutes do (--epochs gives all the same
number instead). On a GPU the minutes are the run's budget, by whose clock the cosine falls, compilation included. A run
that was stopped goes on from its last checkpoint, one that is finished is left alone. The test images are looked at
after each epoch for the curve and choose nothing: the weights of the last epoch count. Writes
benchmarks/results/RECIPE.json, .md and .png, or what --name says in place of the recipe's name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from cifar10_peers import register
from machine import describe
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from srattn import force_path, recipes
from srattn.data.loader import Batch
from srattn.engine import TrainConfig, train
from srattn.engine.compiled import eager_unless
from srattn.engine.config import ResolvedConfig
from srattn.engine.defaults import resolve
from srattn.engine.device import pick_device
from srattn.engine.distributed import World
from srattn.engine.learner import Learner
from srattn.engine.progress import Lines
from srattn.engine.start import make_model
from srattn.tasks.registry import make_task

RESULTS = Path(__file__).parent / "results"
CANDIDATES: dict[str, dict[str, Any]] = {
    "ours": {},
    "resnet": {"model": "bench_resnet", "model_options": {}},
    "vit": {"model": "bench_vit", "model_options": {}},
}
TRAIN_IMAGES, TEST_IMAGES, CLASSES = 50_000, 10_000, 10
MARGIN = 0.9
"""The part of the minutes that is planned: a step may take longer in an hour than in the first seconds."""


def config_of(candidate: str, seed: int, args: argparse.Namespace) -> TrainConfig:
    """The recipe with the candidate's model and the run's own folder."""
    values = recipes.load(args.recipe) | CANDIDATES[candidate]
    if candidate == "resnet" and values.get("optimiser") == "muon":  # which has nothing there that it could move
        values["optimiser"] = "muon_conv"
    values |= {"seed": seed, "threads": args.threads, "out": str(args.runs / f"{candidate}-seed{seed}")}
    values |= {} if args.data is None else {"data": args.data}
    values |= yaml.safe_load(args.override) or {}
    if args.epochs:
        return TrainConfig(**{**values, "epochs": args.epochs})
    config = TrainConfig(**values)
    if not args.minutes:
        return config
    if pick_device(config.device).type == "cuda":
        return TrainConfig(**{**values, "budget_minutes": args.minutes})
    with force_path(args.path) if args.path else contextlib.nullcontext():
        speed = measured_speed(resolve(config), args.measure_seconds)
    seconds = config.passes * TRAIN_IMAGES / speed["train"] + TEST_IMAGES / speed["eval"]
    epochs = max(1, int(60 * args.minutes * MARGIN / seconds))
    print(f"{candidate}: {speed['train']:.0f} images/s, {seconds:.0f} s an epoch, {epochs} epochs", flush=True)
    return TrainConfig(**{**values, "epochs": epochs, "max_minutes": args.minutes})


def measured_speed(config: ResolvedConfig, seconds: float = 20.0) -> dict[str, float]:
    """Images a second of whole training steps, and of evaluation, on images that lie ready."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make_model(config, CLASSES)
            task = make_task(config.task, [str(i) for i in range(CLASSES)], config.label_smoothing)
            device = pick_device(config.device)
            learner = Learner(config, model, task, World(device))
            size = config.batch_size
            images = torch.randn(size, config.channels, config.size, config.size)
            batch = Batch(images, torch.randint(CLASSES, (size,)), torch.arange(size))
            step = _rate(lambda number: learner.step(batch, size, number, config.lr), size, seconds, device)
            model.eval()
            with torch.no_grad(), learner.precision.autocast(), eager_unless(False):
                forward = _rate(lambda _: model(images.to(device)), size, seconds / 4, device)
    finally:
        torch.set_num_threads(threads)
    return {"train": step, "eval": forward}


def _rate(call: Any, size: int, seconds: float, device: torch.device) -> float:
    """Images a second by the median of the calls after the first two, which are not counted: they may compile."""
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 5 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call(len(taken))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
        if len(taken) == 2:
            began = time.perf_counter()
    return size / statistics.median(taken[2:])


def run_one(candidate: str, seed: int, args: argparse.Namespace) -> None:
    """Trains, or goes on with, one run; does nothing where it is finished."""
    folder = args.runs / f"{candidate}-seed{seed}"
    if (folder / "result.json").is_file():
        print(f"{folder} is finished")
        return
    config = TrainConfig(resume=str(folder)) if folder.exists() else config_of(candidate, seed, args)
    if not folder.exists():
        facts = {"candidate": candidate, "minutes": args.minutes, **describe(args.threads)}
        facts |= {"gpu": torch.cuda.get_device_name()} if pick_device(config.device).type == "cuda" else {}
        args.runs.mkdir(parents=True, exist_ok=True)
        _facts(folder).write_text(json.dumps(facts, indent=1) + "\n")
    with force_path(args.path) if args.path else contextlib.nullcontext():
        found = train(config, Lines())
    print(f"{candidate} seed {seed}: {100 * found.result['accuracy']:.2f}% in {found.result['seconds'] / 60:.1f} min")


def _facts(folder: Path) -> Path:
    """What the benchmark knows of a run: the candidate, its minutes, the machine and the commit that began it."""
    return folder.with_name(f"{folder.name}.json")


def mega_macs(config: dict[str, Any]) -> float:
    """Millions of multiply-adds of one image, counted by torch (matrix products, convolutions and attention)."""
    options = {**config["model_options"], "img_size": config["size"], "num_classes": CLASSES}
    from srattn.models import build_model

    model = build_model(config["model"], **options).eval().requires_grad_(False)
    # The fused attention of a CPU is not among what torch counts; its parts are.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 3, config["size"], config["size"]))
    return counter.get_total_flops() / 2e6


def read_run(folder: Path) -> dict[str, Any] | None:
    """A row of the table, from the files of a finished run."""
    if not (folder / "result.json").is_file():
        return None
    result = json.loads((folder / "result.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    minutes, spent = [], 0.0
    for record in history:
        spent += record["seconds"] / 60
        minutes.append(round(spent, 3))
    machine = json.loads(_facts(folder).read_text())
    row = {"candidate": machine.pop("candidate"), "budget_minutes": machine.pop("minutes"), "seed": result["seed"]}
    return {
        **row,
        "accuracy": result["accuracy"],
        "minutes": round(spent, 2),
        "epochs": result["epochs"],
        "passes": round(config.get("passes", 1) * (history[-1]["step"] / history[0]["step"]), 1),  # the last may be cut
        "ended": result["ended"],
        "parameters": result["parameters"],
        "mega_macs": round(mega_macs(config), 1),
        "images_per_second": round(statistics.median(r["images_per_second"] for r in history), 1),
        "loader_share": result["loader_share"],
        "curve": {"minutes": minutes, "accuracy": [record["val_accuracy"] for record in history]},
        "config": {name: value for name, value in config.items() if name != "data"},
        "machine": machine,
    }


def report(
    runs: Path, results: Path, recipe: str = "cifar10", name: str | None = None, add: bool = False
) -> list[dict[str, Any]]:
    """Writes the data, the table and the curves of all finished runs of a recipe; `add` keeps others already there."""
    name = name or recipe
    register()
    rows = [row for folder in sorted(runs.glob("*-seed*/")) if (row := read_run(folder))]
    if add and (results / f"{name}.json").is_file():
        found = {(row["candidate"], row["seed"]) for row in rows}
        before = json.loads((results / f"{name}.json").read_text())["runs"]
        rows += [row for row in before if (row["candidate"], row["seed"]) not in found]
    rows.sort(key=lambda row: (list(CANDIDATES).index(row["candidate"]), row["seed"]))
    if not rows:
        raise SystemExit(f"no finished run in {runs}")
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps({"runs": rows}, indent=1) + "\n")
    (results / f"{name}.md").write_text(table(rows, recipe))
    draw(rows, results / f"{name}.png")
    return rows


def table(rows: list[dict[str, Any]], recipe: str = "cifar10") -> str:
    """Markdown: a line a run, and the mean of each candidate."""
    budgets = " or ".join(sorted({f"{row['budget_minutes']:g}" for row in rows if row["budget_minutes"]}, key=float))
    lines = [
        "# CIFAR-10 from scratch",
        "",
        "Test accuracy of the last epoch's weights; minutes hold the evaluation after each epoch too. One recipe for "
        f"all (`srattn recipes {recipe}`), but that a ResNet has kernels where others have linear maps, and muon_conv "
        "for them; the passes over the training images are those that fit the minutes"
        f"{f', {budgets} at most' if budgets else ''}.",
        "",
        "| model | optimiser | seed | test accuracy | minutes | passes | parameters | M multiply-adds | images/s | "
        "loader | machine |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    machines = list(dict.fromkeys(_machine(row) for row in rows))
    for row in rows:
        optimiser = row["config"].get("optimiser", "adamw")
        passes = row.get("passes", row["epochs"] * row["config"].get("passes", 1))
        lines.append(
            f"| {row['candidate']} | {optimiser} | {row['seed']} | {100 * row['accuracy']:.2f} % | "
            f"{row['minutes']:.1f} | {passes:g} | {row['parameters'] / 1e6:.2f} M | "
            f"{row['mega_macs']:.0f} | {row['images_per_second']:.0f} | {100 * row['loader_share']:.1f} % | "
            f"{1 + machines.index(_machine(row))} |"
        )
    lines += ["", "| model | mean | lowest | highest | seeds |", "|---|--:|--:|--:|--:|"]
    for name in CANDIDATES:
        found = [100 * row["accuracy"] for row in rows if row["candidate"] == name]
        if found:
            mean = statistics.fmean(found)
            lines.append(f"| {name} | {mean:.2f} % | {min(found):.2f} % | {max(found):.2f} % | {len(found)} |")
    lines += ["", *(f"{number}. {machine}" for number, machine in enumerate(machines, 1)), ""]
    for row in rows:
        if "note" in row:
            lines += [f"{row['candidate']}, seed {row['seed']}: {row['note']}", ""]
    return "\n".join(lines)


def _machine(row: dict[str, Any]) -> str:
    """Where and with what a run was made."""
    machine = row["machine"]
    versions = ", ".join(f"{key} {machine[key]}" for key in ("torch", "srattn", "python", "commit"))
    place = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{place}; {versions}."


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy by minutes and by epoch; a colour a candidate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    by_time, by_epoch = figure.subplots(1, 2, sharey=True)
    colours = dict(zip(CANDIDATES, ("#1f77b4", "#d2691e", "#777777"), strict=True))
    seen: set[str] = set()
    for row in rows:
        name, curve = row["candidate"], row["curve"]
        accuracy, passes = [100 * value for value in curve["accuracy"]], row["config"].get("passes", 1)
        label = None if name in seen else name
        style = {"color": colours[name], "ls": ["-", "--", ":"][row["seed"] % 3], "lw": 1.4}
        by_time.plot(curve["minutes"], accuracy, label=label, **style)
        seen_by = [passes * (n + 1) for n in range(len(accuracy))]
        by_epoch.plot([*seen_by[:-1], row.get("passes", seen_by[-1])], accuracy, **style)
        seen.add(name)
    by_time.set(xlabel="minutes", ylabel="test accuracy in %")
    by_epoch.set(xlabel="passes over the training images")
    by_time.legend(frameon=False)
    for axes in (by_time, by_epoch):
        axes.grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder with the hub's Parquet files; the recipe's data otherwise")
    parser.add_argument("--recipe", choices=["cifar10", "cifar10_gpu"], default="cifar10")
    parser.add_argument("--only", nargs="*", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--seed", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=60.0, help="of each run; 0 for the recipe's epochs")
    parser.add_argument("--epochs", type=int, default=0, help="the same for all, in place of minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--override", default="{}", help="further options of srattn train, as YAML: '{lr: 0.002}'")
    parser.add_argument(
        "--path", choices=["plain", "sdpa", "absorbed"], help="one path of attention, in place of the plan"
    )
    parser.add_argument("--measure_seconds", type=float, default=20.0, help="how long steps are timed before a run")
    parser.add_argument("--runs", type=Path, help="where the run folders are kept; runs/RECIPE by default")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--name", help="of the files in --results; the recipe's name by default")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--add", action="store_true", help="keep the runs in --results that are not among --runs")
    args = parser.parse_args()
    args.runs = args.runs or Path("runs", args.recipe)
    register()
    if not args.report:
        for seed in args.seed:
            for candidate in args.only:
                run_one(candidate, seed, args)
    report(args.runs, args.results, args.recipe, args.name, args.add)


if __name__ == "__main__":
    main()
